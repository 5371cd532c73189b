PYTHON ?= python3.11
CARGO_TARGET_DIR ?= target
export CARGO_TARGET_DIR

.PHONY: build
build: ## build the engine (release) and put it beside the Python files
	cargo build --release -p aerobee-binding --features pyo3/extension-module
	cp $(CARGO_TARGET_DIR)/release/lib_engine.so aerobee/._engine.new.so
	mv -f aerobee/._engine.new.so aerobee/_engine.abi3.so   # by rename: running processes keep the old file
