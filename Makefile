# `make demo` and `make test` set up a virtual environment in .venv and run in it.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin

.PHONY: demo test slow check clean

$(VENV)/.ready: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet torch==2.13.0
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	touch $@

demo: $(VENV)/.ready
	$(BIN)/python examples/demo.py --output-dir runs/demo

test: $(VENV)/.ready
	$(BIN)/python -m pytest -n 2 --dist loadfile

slow: $(VENV)/.ready
	$(BIN)/python -m pytest -m slow

check: $(VENV)/.ready
	$(BIN)/ruff check .
	$(BIN)/python -m mypy
	$(BIN)/python -m pytest -n 2 --dist loadfile

clean:
	rm -rf $(VENV) runs
