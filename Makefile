# make demo   a fleet of four emulated boards trains on this machine
# make test   the whole fast suite          make check  style, types, import rules
# make test-slow  minutes rather than seconds   make bench  measurements of the software itself, also in bench/*.json
# make trials  500 small fleets to which everything happens, on all cores
VENV := .venv
PYTHON ?= python3
BIN := $(VENV)/bin
SUDO := $(shell [ "$$(id -u)" = 0 ] || { command -v sudo >/dev/null && sudo -n true 2>/dev/null && echo sudo -n; })

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow trials bench check format mosquitto clean

help:
	@sed -n 's/^# //p' Makefile

$(VENV)/.installed-%: pyproject.toml .ci/constraints.txt .ci/install
	PYTHON="$(PYTHON)" sh .ci/install $(VENV) $*
	@touch $@

mosquitto:
	@sh .ci/mosquitto "$(SUDO)"

demo: $(VENV)/.installed-demo mosquitto
	@$(BIN)/hermes-iot demo $(ARGS)

test: $(VENV)/.installed-dev mosquitto
	$(BIN)/python -m pytest -m "not slow" $(ARGS)

test-slow: $(VENV)/.installed-dev mosquitto
	$(BIN)/python -m pytest -m slow $(ARGS)

trials: $(VENV)/.installed-dev
	$(BIN)/hermes-iot simulate --faults all --seeds 0:500 $(ARGS)

bench: $(VENV)/.installed-dev mosquitto
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.simulator --out bench/simulator.json
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.compression --out bench/compression.json
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.ingest --out bench/ingest.json
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.exchange

check: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.installed-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis
