# `make demo` and `make test` do all set-up on a bare machine that has Python 3.10 or newer and network access to PyPI.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

# An environment that forbids byte code would make every process compile torch and transformers anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help setup demo test test-fast lint docs wheel clean peers benchmarks benchmarks-short faults gpu-check

help:
	@echo "make demo   fine-tune the shipped encoder on the shipped speech (CPU, a few minutes)"
	@echo "make test   run the test-suite (CPU, offline)"
	@echo "make test-fast   the same without the slow tests"
	@echo "make lint   check the style"
	@echo "make docs   build the documentation in build/site"
	@echo "make wheel  build wheel and sdist in dist"
	@echo "make benchmarks   run all CPU benchmarks and write their records (half an hour, nothing else running)"
	@echo "make benchmarks-short   renew the records of soft-DTW, bf16 and the predicted epoch (twelve minutes, nothing else running)"
	@echo "make faults       provoke faults and kills with the real commands, write docs/reliability.md (half an hour)"
	@echo "make gpu-check    run all GPU tests and benchmarks with PYTHON=python3 as it is (nine minutes at most, offline)"
	@echo "make setup  only create the virtual environment $(VENV)"

setup: $(VENV)/.ready

# uv installs in half a minute what takes pip four; pip stays as the way that always works. $(call install,FILE)
define install
@$(BIN)/python -m uv --quiet pip install --python $(BIN)/python -r $(1) || \
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r $(1)
@touch $@
endef

$(VENV)/.ready: requirements.txt pyproject.toml setup.py
	@echo "Installing packages in $(VENV) (once, a minute or a few) ..."
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check uv || true
	$(call install,requirements.txt)

$(VENV)/.ready-dev: requirements-dev.txt $(VENV)/.ready
	$(call install,requirements-dev.txt)

$(VENV)/.ready-docs: requirements-docs.txt $(VENV)/.ready
	$(call install,requirements-docs.txt)

demo: $(VENV)/.ready
	@$(BIN)/python -m laser_hf demo

test: $(VENV)/.ready-dev
	$(BIN)/python -m pytest -q -n auto --dist worksteal

test-fast: $(VENV)/.ready-dev
	$(BIN)/python -m pytest -q -n auto --dist worksteal -m "not slow"

lint: $(VENV)/.ready-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

docs: $(VENV)/.ready-docs
	$(BIN)/python scripts/docs_pages.py
	NO_MKDOCS_2_WARNING=1 PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m mkdocs build --quiet --strict

# The wheel is built from the sdist, which shows that the sdist is complete.
wheel: $(VENV)/.ready-dev
	$(BIN)/python -m build --no-isolation

# Records and pictures wait in outputs/benchmarks until the last one is there: writing one would change the tree that the
# next one names as its commit. SHORT=--quick tries benchmarks-short out with tiny sizes and keeps nothing.
WAITING := outputs/benchmarks
KEEP = cp $(WAITING)/*-cpu.json benchmarks/records/ && cp $(WAITING)/*.png docs/figures/ && $(BIN)/python scripts/render_tables.py

peers: $(VENV)/.ready-dev
	$(BIN)/python -m uv pip install --quiet --python $(BIN)/python -r benchmarks/requirements.txt || \
		$(BIN)/python -m pip install --quiet -r benchmarks/requirements.txt
	rm -rf $(WAITING) && mkdir -p $(WAITING)

benchmarks: peers
	$(BIN)/python -m benchmarks.soft_dtw --output $(WAITING)/soft_dtw-cpu.json
	$(BIN)/python -m benchmarks.perturbation --output $(WAITING)/perturbation-cpu.json
	$(BIN)/python -m benchmarks.update --output $(WAITING)/update-hubert-base-cpu.json --figure $(WAITING)/update_profile.png
	$(BIN)/python -m benchmarks.update --model wavlm-base --output $(WAITING)/update-wavlm-base-cpu.json
	$(BIN)/python -m benchmarks.epoch --predict --output $(WAITING)/epoch-hubert-base-predicted-cpu.json
	$(BIN)/python -m benchmarks.qbe --output $(WAITING)/qbe-cpu.json
	$(BIN)/python -m benchmarks.corpus --output $(WAITING)/corpus-cpu.json
	$(KEEP)

benchmarks-short: peers
	$(BIN)/python -m benchmarks.soft_dtw $(SHORT) --repeats 5 --output $(WAITING)/soft_dtw-cpu.json
	for model in hubert-base wavlm-base; do $(BIN)/python -m benchmarks.update $(SHORT) --model $$model \
		--without same released --output $(WAITING)/update-$$model-bf16-cpu.json || exit 1; done
	$(BIN)/python -m benchmarks.epoch $(SHORT) --predict --output $(WAITING)/epoch-hubert-base-predicted-cpu.json
	$(if $(SHORT),,$(KEEP))

# No virtual environment: a GPU machine may be offline, and its PyTorch fits its driver. GPU_CHECK_OUT=FOLDER gets copies
# of the records.
faults: $(VENV)/.ready-dev
	$(BIN)/python -m faults

gpu-check:
	$(PYTHON) scripts/gpu_check.py

clean:
	rm -rf $(VENV) outputs build dist *.egg-info .pytest_cache .ruff_cache
