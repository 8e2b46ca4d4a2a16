# The commands of this project.  Each works in an empty clone, with no virtual
# environment around: the first one makes .venv and installs what constraints.txt pins.

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
# Modules are compiled when they are first imported: most of what is installed never is.  Their
# bytecode is kept whatever the shell says: a start without it takes more than twice as long.
unexport PYTHONDONTWRITEBYTECODE
INSTALL := -m pip install --quiet --no-compile --disable-pip-version-check --constraint
PIP    := $(BIN)/python $(INSTALL) constraints.txt
CORE   := $(VENV)/.core
TOOLS  := $(VENV)/.tools
SPHINX := $(VENV)/.sphinx
# Runtimes of phones and boards need older versions of some packages: another environment.
DEVICES := $(VENV)-devices
# More for pytest, e.g. make test PYTEST_ARGS="-k config"
PYTEST_ARGS ?=
# A process per core, up to four, each with one thread: small networks gain nothing from more
# threads, and lose much to each other's.  WORKERS=0 runs the tests in one process.  A process
# that ends unasked ends the run: pytest-xdist may wait forever for the one in its place.
WORKERS ?= auto
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --maxprocesses 4 --dist loadfile \
          --max-worker-restart 0

# Folders of wheels and more options for scripts/gpu_check.py, e.g. GPU_ARGS="--minutes 9"
WHEELS ?=
GPU_ARGS ?=

.PHONY: help install test test-slow test-all test-devices lint format demo gpu-check gpu-wheels docs build clean

help: ## Show what can be made
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

$(CORE): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) --editable .
	$(BIN)/python -c "from cgrseg import *"  # compiles it, PyTorch and most of what the commands import
	@touch $@

# transformers lies beside the packages, for the tests of cgrseg.huggingface alone: torchmetrics
# imports it in each process that can see it, which takes 0.8 s.
$(TOOLS): $(CORE)
	$(PIP) --editable ".[dev,convert,export,geo,ray,web]"
	$(PIP) --target $(VENV)/transformers --upgrade --no-deps transformers tokenizers regex
	@touch $@

$(SPHINX): $(CORE)
	$(PIP) --editable ".[docs]"
	@touch $@

$(DEVICES)/.ready: pyproject.toml constraints-devices.txt
	$(PYTHON) -m venv $(DEVICES)
	$(DEVICES)/bin/python $(INSTALL) constraints-devices.txt \
	    --editable ".[dev,export,executorch,litert,coreml,ncnn]"
	@touch $@

install: $(TOOLS) ## Make .venv and install cgrseg with its developers' tools

test: $(TOOLS) ## Run the tests
	$(PYTEST) -m "not slow" $(PYTEST_ARGS)

test-slow: $(TOOLS) ## Run the tests that `make test` leaves out
	$(PYTEST) -m slow $(PYTEST_ARGS)

test-all: $(TOOLS) ## Run the tests, the slow ones too
	$(PYTEST) $(PYTEST_ARGS)

test-devices: $(DEVICES)/.ready ## Run the tests of ExecuTorch, LiteRT and ncnn, in an environment of their own
	CGRSEG_TEST_DEVICES=1 OMP_NUM_THREADS=1 $(DEVICES)/bin/python -m pytest \
	    tests/deploy/test_devices.py tests/deploy/test_int8.py tests/deploy/test_foreign_files.py \
	    tests/formats/test_ncnn_format.py \
	    -k "test_devices or executorch or litert or ncnn" $(PYTEST_ARGS)

lint: $(TOOLS) ## Check style, formatting and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(TOOLS) ## Format the code and mend what ruff can mend
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

demo: $(CORE) ## Train, evaluate and predict on embedded data, and write a report
	$(BIN)/cgrseg demo

# PyTorch of the machine, not that of .venv: CUDA builds often come installed.
gpu-check: ## Check everything on an NVIDIA GPU, piece by piece (WHEELS=folder: missing packages)
	$(PYTHON) scripts/gpu_check.py $(if $(WHEELS),--wheels $(WHEELS)) $(GPU_ARGS)

gpu-wheels: $(TOOLS) ## Download what gpu-check needs on a machine without a network
	$(BIN)/python scripts/gpu_wheels.py build/gpu-wheels

docs: $(SPHINX) ## Build the documentation site into build/site; a broken reference fails
	$(BIN)/python -m sphinx --quiet --fail-on-warning --keep-going -c docs . build/site
	@echo "build/site/docs/index.html"

build: $(TOOLS) ## Build the wheel and the source archive into dist/
	$(BIN)/python -m build

clean: ## Remove the environment and what builds leave
	rm -rf $(VENV) $(DEVICES) build dist *.egg-info
