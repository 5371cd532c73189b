# `make help` lists the words. Each sets up what it needs on a machine that has Python 3.11 and Rust; the comparisons
# with Apache RocketMQ also need Java 17 and Maven. A second run does only what has changed.

PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
CARGO_TARGET_DIR ?= target
export CARGO_TARGET_DIR
BIN := .venv/bin
PORT_BASE ?=
DATA ?= data
FUZZ_SECONDS ?= 60

.DEFAULT_GOAL := help

.PHONY: help
help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: up
up: build ## start a cluster on loopback in the background (name server 9876, broker 10911 and 10909)
	@$(BIN)/aerobee up --background --data $(DATA) $(if $(PORT_BASE),--port-base $(PORT_BASE))
	@echo "  stop it: make down$(if $(filter-out data,$(DATA)), DATA=$(DATA))        log files: $(DATA)/log        a first message:" \
		"$(BIN)/aerobee send hello --topic greetings$(if $(PORT_BASE), -n 127.0.0.1:$(PORT_BASE))"

.PHONY: down
down: ## stop what `make up` has started
	@if [ -x $(BIN)/aerobee ]; then $(BIN)/aerobee down --data $(DATA); else echo "nothing is running"; fi

.PHONY: build
build: .venv/.installed rust ## build the engine (release) and put it beside the Python files
	@cargo build -q --release -p aerobee-binding --features pyo3/extension-module
	@# By rename, and only when it differs: running processes keep the file they have mapped.
	@cmp -s $(CARGO_TARGET_DIR)/release/lib_engine.so aerobee/_engine.abi3.so || { \
		cp $(CARGO_TARGET_DIR)/release/lib_engine.so aerobee/._engine.new.so && \
		mv -f aerobee/._engine.new.so aerobee/_engine.abi3.so; }

.PHONY: test
test: build ## all tests and the checks of `make lint`
	cargo test -q -p aerobee-engine
	$(BIN)/python -m pytest -q -rs -n 2 tests/unit tests/wire tests/sim
	@# Most of their time is waiting: three processes share the files, each with clusters of its own.
	$(BIN)/python -m pytest -q -rRs -n 3 --dist loadfile --no-loadscope-reorder \
		tests/conformance/test_store_exchange.py tests/conformance tests/cluster
	@$(MAKE) --no-print-directory lint

.PHONY: lint
lint: build ## ruff, mypy, clippy, and the engine's stub against the built module
	$(BIN)/ruff check .
	$(BIN)/ruff format --check -q . || { echo "run 'make format'"; exit 1; }
	$(BIN)/mypy
	$(BIN)/python -m mypy.stubtest --mypy-config-file pyproject.toml --ignore-disjoint-bases aerobee._engine
	@if cargo clippy --version >/dev/null 2>&1; then set -x; cargo clippy -q --all-targets -- -D warnings; \
		else echo "clippy is not installed: rustup component add clippy"; fi
	@if cargo fmt --version >/dev/null 2>&1; then set -x; cargo fmt --check -q || { echo "run 'make format'"; exit 1; }; fi
	@if command -v gofmt >/dev/null; then set -x; \
		test -z "$$(gofmt -l tests/conformance/go)" || { echo "run 'make format'"; exit 1; }; fi

.PHONY: format
format: .venv/.installed rust ## bring all code into its form
	$(BIN)/ruff check -q --fix-only .
	$(BIN)/ruff format -q .
	cargo fmt
	@if command -v gofmt >/dev/null; then set -x; gofmt -w tests/conformance/go; fi

.PHONY: fuzz
fuzz: rust ## hammer every parser of the engine with spoiled input, FUZZ_SECONDS=60 each (with cargo-fuzz where it is installed)
	@if cargo +nightly fuzz --version >/dev/null 2>&1; then set -ex; cd rust/engine; for target in $$(cargo +nightly fuzz list); do \
		cargo +nightly fuzz run $$target -- -max_total_time=$(FUZZ_SECONDS); done; else set -x; \
		FUZZ_SECONDS=$(FUZZ_SECONDS) cargo test --release -q -p aerobee-engine --test fuzz_targets; fi

.PHONY: bench
bench: build java ## the design's budgets, side by side with Apache RocketMQ in one run
	$(BIN)/python -m bench

.PHONY: docs
docs: build ## write the pages of the manual that are made from the code's tables
	$(BIN)/python -m aerobee.cli.manual docs

.PHONY: clean
clean: ## remove what was built (.venv, target, caches); data stays
	rm -rf .venv $(CARGO_TARGET_DIR) build .pytest_cache .mypy_cache .ruff_cache .hypothesis aerobee/_engine*.so
	find aerobee tests bench -name __pycache__ -prune -exec rm -rf {} +

.PHONY: rust
rust:
	@command -v cargo >/dev/null || { printf '%s\n' \
		"Rust is missing (1.75 or newer): the engine is written in it. Get it with" \
		"  curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh -s -- -y --profile minimal -c clippy -c rustfmt" \
		"  . \"\$$HOME/.cargo/env\"" \
		"or from your system (apt install rustup, dnf install rustup)."; exit 1; } >&2

.PHONY: java
java:
	@command -v java >/dev/null && command -v mvn >/dev/null || { \
		echo "the comparison needs Java 17 and Maven (apt install openjdk-17-jdk maven)" >&2; exit 1; }

# The Python environment. The stamp is made last, so an interrupted run is repeated.
.venv/.installed: pyproject.toml | rust
	@if [ -z "$(PYTHON)" ]; then echo "Python 3.11 or newer is missing (apt install python3.11 python3.11-venv)" >&2; exit 1; fi
	@[ -x $(BIN)/python ] || { echo "making .venv with $$($(PYTHON) --version)"; $(PYTHON) -m venv .venv; }
	@echo "installing what pyproject.toml asks for into .venv"
	@$(BIN)/python -m pip install -q --disable-pip-version-check 'maturin>=1.7,<2'
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pip install -q --disable-pip-version-check --no-build-isolation -e '.[dev]'
	@touch $@
