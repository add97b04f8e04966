# Two commands for everybody: `make demo` and `make test`. `make check` is what a change must pass.
# Set PYTHON to choose an interpreter: make demo PYTHON=python3.12

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
SHELL  := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

# The set-up is done again exactly when the versions, the interpreter or the place of this folder change.
KEY       := $(shell { cat pyproject.toml constraints.txt; $(PYTHON) -V 2>&1; pwd; } | sha256sum | cut -c1-16)
FOR_TRAIN := $(VENV)/.ready-train-$(KEY)
FOR_TESTS := $(VENV)/.ready-tests-$(KEY)
INSTALL   := $(BIN)/python -m pip install -qq --disable-pip-version-check --constraint constraints.txt
PYTEST    := $(BIN)/python -m pytest
IN_TURN   := --numprocesses 2 --dist loadfile --no-loadscope-reorder  # tests/conftest.py says in which
ROOMS     := orchestrator stages slurm

.PHONY: help demo packages test test-long check clean
help:
	@echo "make demo       trains a small GLaMM in four stages on this machine, scores it, draws it, reports it"
	@echo "make test       runs the whole test suite; installs Debian packages (Slurm, Chromium) where it may (root, apt-get)"
	@echo "make test-long  many more cases of what make test proves, in minutes"
	@echo "make check      format, lint, types, import rules, tests: what a change must pass"
	@echo "make clean      removes what set-up and tools made; runs/ and mlflow.db stay"

demo: $(FOR_TRAIN)
	@$(BIN)/orch launch recipes/quickstart.yaml

packages: $(FOR_TESTS)
	@$(BIN)/python -m slurm.devcluster
	@$(BIN)/python -m tests.packages

test: packages
	@$(PYTEST) $(IN_TURN)

test-long: packages
	@$(PYTEST) -m long --timeout 1800

check: packages
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(PYTEST) $(IN_TURN)

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find $(ROOMS) tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

$(FOR_TRAIN):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "orch needs Python 3.11 or newer; '$(PYTHON)' is $$($(PYTHON) -V 2>&1 || true). Try: make demo PYTHON=/path/to/python3.11" >&2; exit 3; }
	@[ -x $(BIN)/python ] && $(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV) || { \
	  echo "$(PYTHON) cannot make a virtual environment; on Debian and Ubuntu: apt-get install python3-venv" >&2; exit 3; }
	@echo "Installing the pinned dependencies into $(VENV) (a few minutes, the first time only) ..."
	@$(INSTALL) torch  # first, so that nothing else can choose another build of it
	@$(INSTALL) --editable '.[train]'
	@rm -f $(VENV)/.ready-*; touch $@

$(FOR_TESTS): $(FOR_TRAIN)
	@$(INSTALL) --editable '.[train,scores,tensorboard,wandb,dev]'
	@touch $@
