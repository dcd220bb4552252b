# Two commands do everything on a fresh machine: `make demo` and `make test`. Each makes the environment if missing.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test check clean

demo: .venv/ready
	$(BIN)/spillover demo

test: .venv/ready check
	$(BIN)/pytest --numprocesses auto --dist loadfile --no-loadscope-reorder

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
