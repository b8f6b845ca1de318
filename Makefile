# `make demo` and `make test` do all set-up on a bare machine that has Python 3.10 or newer and network access to PyPI.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

# An environment that forbids byte code would make every process compile torch and transformers anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help setup demo test lint clean

help:
	@echo "make demo   fine-tune the shipped encoder on the shipped speech (CPU, a few minutes)"
	@echo "make test   run the test-suite (CPU, offline)"
	@echo "make lint   check the style"
	@echo "make setup  only create the virtual environment $(VENV)"

setup: $(VENV)/.ready

# uv installs in half a minute what takes pip four; pip stays as the way that always works.
$(VENV)/.ready: requirements.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet uv || true
	$(BIN)/python -m uv pip install --python $(BIN)/python -r requirements.txt -e . || \
		$(BIN)/python -m pip install -r requirements.txt -e .
	touch $@

$(VENV)/.ready-dev: requirements-dev.txt $(VENV)/.ready
	$(BIN)/python -m uv pip install --python $(BIN)/python -r requirements-dev.txt || \
		$(BIN)/python -m pip install -r requirements-dev.txt
	touch $@

demo: $(VENV)/.ready
	$(BIN)/python -m laser_hf.demo

test: $(VENV)/.ready-dev
	$(BIN)/python -m pytest -q

lint: $(VENV)/.ready-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

clean:
	rm -rf $(VENV) outputs build *.egg-info .pytest_cache .ruff_cache
