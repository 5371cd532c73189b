"""Figures beside Apache RocketMQ's; `make bench` runs them all."""
