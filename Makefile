# Two commands do everything on a fresh machine: `make demo` and `make test`. Each makes the environment if missing.
# `make test-all` adds the tests that are marked slow.
PYTHON ?= python3
BIN := .venv/bin

# Arrays are small in the tests: threads of the linear algebra cost more than they gain.
PYTEST := OPENBLAS_NUM_THREADS=1 $(BIN)/pytest --numprocesses auto --dist loadfile --no-loadscope-reorder

.PHONY: demo test test-slow test-all check clean

demo: .venv/ready
	$(BIN)/spillover demo

test: .venv/ready check
	$(PYTEST) -m "not slow"

test-slow: .venv/ready
	$(PYTEST) -m slow

test-all: test test-slow

check: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable . --group dev
	touch .venv/ready

clean:
	rm -rf .venv runs build dist .mypy_cache .pytest_cache .ruff_cache
