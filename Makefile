# `make demo` and `make test` are all that a newcomer needs: each makes .venv and installs what is missing, once.

PYTHON ?= python3
SCRIPTS := $(if $(filter Windows_NT,$(OS)),Scripts,bin)
BIN := .venv/$(SCRIPTS)
LOWEST := .venv-lowest/$(SCRIPTS)
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo test test-all test-core test-lowest mutation gpu docs dist api-check lint format clean

demo: .venv/installed-train
	$(BIN)/tinyddpm demo --out demo

# One thread each: two test processes with two threads each would fight over two cores.
test: .venv/installed-test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

test-all: .venv/installed-test .venv/installed-lint .venv/installed-docs
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m ''

# Without Torch: what needs it is skipped.
test-core: .venv/pyvenv.cfg
	$(PIP) --editable '.[test-core]'
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

# The same with the lowest versions that pyproject.toml allows, in an environment of its own.
test-lowest: .venv-lowest/installed
	OMP_NUM_THREADS=1 $(LOWEST)/python -m pytest -n 2 -p no:cacheprovider

# About half an hour of one core; docs/mutation.md reads what it leaves in build/mutation.
mutation: .venv/installed-mutation
	$(BIN)/python tests/mutation.py

# Everything that only a GPU can show, in nine minutes, with the Python and the libraries that are there; none is installed.
gpu:
	PYTHONPATH=.:backends $(PYTHON) benchmarks/gpu.py

# site/index.html; it needs no network to be read.
docs: .venv/installed-docs
	$(BIN)/python -m sphinx -q -W --keep-going -b html -c docs -d build/doctrees . site

# The sdist and the wheel.
dist: .venv/installed-test
	$(BIN)/python -m hatchling build

# What callers of an older version, by default the last tag, would find broken.
REF ?= $(shell git describe --tags --abbrev=0 2>/dev/null)
api-check: .venv/installed-lint
	$(if $(REF),$(BIN)/griffe check tinyddpm --against $(REF),@echo 'no tag to compare with; make api-check REF=COMMIT names one')

lint: .venv/installed-test .venv/installed-lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/python -m pytest -q -m '' tests/test_caller_types.py

format: .venv/installed-lint
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv .venv-lowest demo build dist site .pytest_cache .mypy_cache .ruff_cache .hypothesis

.venv/pyvenv.cfg:
	$(PYTHON) -m venv .venv

# A stamp for each set of extras; it is older than the files that decide what is installed when those change.
.venv/installed-train: .venv/pyvenv.cfg pyproject.toml constraints.txt
	$(PIP) --editable '.[train,plots]'
	@touch $@

.venv/installed-test: .venv/installed-train
	$(PIP) --editable '.[test]'
	@touch $@

.venv/installed-mutation: .venv/installed-test
	$(PIP) --editable '.[mutation]'
	@touch $@

.venv/installed-lint: .venv/installed-train
	$(PIP) --editable '.[lint]'
	@touch $@

.venv/installed-docs: .venv/installed-train
	$(PIP) --editable '.[docs]'
	@touch $@

.venv-lowest/installed: pyproject.toml constraints-lowest.txt
	$(PYTHON) -m venv .venv-lowest
	$(LOWEST)/python -m pip install --quiet --disable-pip-version-check --constraint constraints-lowest.txt --editable '.[test-core]'
	@touch $@
