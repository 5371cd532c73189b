"""Fixtures for all tests come from the plugin that users get too."""

pytest_plugins = ["aerobee.testing.plugin", "pytester"]
