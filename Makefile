# `make demo` and `make test` are all that a newcomer needs: each makes .venv and installs what is missing, once.

PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo test test-all lint format clean

demo: .venv/installed-train
	$(BIN)/tinyddpm demo --out demo

# One thread each: two test processes with two threads each would fight over two cores.
test: .venv/installed-test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

test-all: .venv/installed-test .venv/installed-lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m ''

lint: .venv/installed-test .venv/installed-lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pyright

format: .venv/installed-lint
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv demo build dist site .pytest_cache .mypy_cache .ruff_cache .hypothesis

.venv/pyvenv.cfg:
	$(PYTHON) -m venv .venv

# A stamp for each set of extras; it is older than the files that decide what is installed when those change.
.venv/installed-train: .venv/pyvenv.cfg pyproject.toml constraints.txt
	$(PIP) --editable '.[train,plots]'
	@touch $@

.venv/installed-test: .venv/installed-train
	$(PIP) --editable '.[test]'
	@touch $@

.venv/installed-lint: .venv/installed-train
	$(PIP) --editable '.[lint]'
	@touch $@
