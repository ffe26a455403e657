# `make` alone prepares the environment. Everything runs in .venv; nothing is installed anywhere else.

PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.retain-installed
EXTRAS := dev,peft,serve,multitask,experiments
PIP := $(BIN)/python -m pip --disable-pip-version-check
# Two processes with one thread each: on small machines several times faster than one process with several threads.
WORKERS ?= 2
ARGS ?=

export OMP_NUM_THREADS ?= 1
export TOKENIZERS_PARALLELISM ?= false

.PHONY: env demo test lint bench clean

env: $(STAMP)

# torch goes first and alone, so that its build is chosen once and nothing later replaces it.
$(STAMP): pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "installing retain and its dependencies into .venv (a few minutes the first time)"
	@$(PIP) install -qq -c constraints.txt setuptools torch
	@$(PIP) install -qq -c constraints.txt --no-build-isolation -e ".[$(EXTRAS)]"
	@touch $@
	@echo "ready: $(BIN)/retain --help"

demo: env
	@$(BIN)/retain demo $(ARGS)

test: env
	@$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile $(ARGS)

lint: env
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo

bench: env
	@$(BIN)/python -m benchmarks $(ARGS)

clean:
	rm -rf build dist .whl .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis src/*.egg-info
	find src tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
