# The commands of this project.  Each works in an empty clone, with no virtual
# environment around: the first one makes .venv and installs what constraints.txt pins.

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

.PHONY: help install test test-all lint format demo build clean

help: ## Show what can be made
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

install: $(STAMP) ## Make .venv and install cgrseg with its developers' tools

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
		--constraint constraints.txt --editable ".[dev,convert]"
	@touch $@

test: $(STAMP) ## Run the tests
	$(BIN)/python -m pytest -m "not slow"

test-all: $(STAMP) ## Run the tests, the slow ones too
	$(BIN)/python -m pytest

lint: $(STAMP) ## Check style, formatting and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP) ## Format the code and mend what ruff can mend
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

demo: $(STAMP) ## Train, evaluate and predict on embedded data, and write a report
	$(BIN)/cgrseg demo

build: $(STAMP) ## Build the wheel and the source archive into dist/
	$(BIN)/python -m build

clean: ## Remove the environment and what builds leave
	rm -rf $(VENV) build dist *.egg-info
