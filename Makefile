# make course [LESSONS="01 09"] [PROFILE=full]   run the lessons     make test   everything that CI checks
# make lab   JupyterLab               make site   pages to read    make bench   the measurements     make test-gpu, make gpu-report   on a CUDA machine
# make pictures   results/pictures from the notebooks               make clean    deletes pages and caches; what you ran (_runs) and data/sample stay

SHELL := /bin/bash
PYTHON ?= python3
LESSONS ?=
PROFILE ?=
BENCHES ?= crappify lab mnist_input feature_loss style cyclegan darknet_variants course
BIN := .venv/bin
export UV_COMPILE_BYTECODE := 1
export PYTHONWARNINGS ?= ignore::FutureWarning:torch.jit._script

.PHONY: setup course test test-gpu gpu-report lab site bench pictures lock navigation clean
.DEFAULT_GOAL := course

setup: .venv/.ready

# uv makes the environment; where the machine has none, it is installed into the environment itself.
.venv/.ready: pyproject.toml requirements.lock
	@echo "Setting up .venv (several GB; a minute or a few on the first run)"
	@if command -v uv >/dev/null && uv --version >/dev/null 2>&1; then \
		[ -x $(BIN)/python ] || uv venv --quiet --python '>=3.11,<3.14' .venv; UV=uv; \
	else \
		[ -x $(BIN)/python ] || $(PYTHON) -c 'import sys; sys.exit(not (3,11) <= sys.version_info[:2] < (3,14))' \
			|| { echo "Python 3.11, 3.12 or 3.13 is needed and $(PYTHON) is $$($(PYTHON) --version 2>&1). Say make PYTHON=python3.12, or install uv"; exit 1; }; \
		[ -x $(BIN)/python ] || $(PYTHON) -m venv .venv; \
		$(BIN)/python -m pip install --quiet uv; UV=$(BIN)/uv; \
	fi; \
	set -e; $$UV pip install --quiet --python $(BIN)/python -r requirements.lock; \
	$$UV pip install --quiet --python $(BIN)/python --no-deps -e .
	@touch $@

course: setup
	@echo "Running the lessons (executed copies and pages: _runs/)"
	@$(BIN)/course run $(LESSONS) $(if $(PROFILE),--profile $(PROFILE))

# Several processes side by side, one thread each: on two cores, two processes with two threads each are ten times slower.
test: setup
	@echo "1 of 2: the notebooks, top to bottom"
	@COURSE_PROFILE=sample COURSE_DEVICE=cpu $(BIN)/python tests/run_notebooks.py
	@echo "2 of 2: the tests; those that fork and kill in a process that has computed nothing before"
	@OMP_NUM_THREADS=1 COURSE_DEVICE=cpu $(BIN)/python -m pytest -n auto --dist loadfile --ignore tests/faults/test_kill.py
	@OMP_NUM_THREADS=1 COURSE_DEVICE=cpu $(BIN)/python -m pytest tests/faults/test_kill.py

test-gpu: setup
	@$(BIN)/python -c 'import torch, sys; sys.exit(0 if torch.cuda.is_available() else "make test-gpu: torch sees no CUDA device here, so nothing was tested")'
	COURSE_DEVICE=cuda $(BIN)/python tests/run_notebooks.py --jobs 1
	COURSE_TEST_GPU=1 $(BIN)/python -m pytest tests/gpu

# At most ten minutes on a card; what the card alone can show, a JSON file a part.
gpu-report: setup
	@$(BIN)/python benchmarks/gpu_report.py --keep $(GPU_ARGS)

lab: setup
	$(BIN)/jupyter lab --notebook-dir . --LabApp.default_url=/lab/tree/nbs/00_start_here.ipynb

# Static pages of the notebooks as they were executed: _site/index.html
site: setup
	@$(BIN)/python site/build.py

bench: setup
	@bad=; for f in $(BENCHES); do echo "== $$f"; $(BIN)/python benchmarks/$$f.py --keep || bad="$$bad $$f"; done; [ -z "$$bad" ] || { echo "Failed:$$bad"; exit 1; }

pictures: setup
	@$(BIN)/python benchmarks/pictures.py

# Names and versions only; universal, so that one file serves Linux, macOS and every supported Python.
lock:
	uv pip compile --quiet --universal --upgrade --no-header --no-annotate --python-version 3.11 --all-extras pyproject.toml -o requirements.lock

# Previous and next at the head and foot of every notebook.
navigation: setup
	@$(BIN)/python -c 'from course_lib.navigation import write_navigation; write_navigation()'

clean:
	rm -rf _site data/cache
