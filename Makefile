# Two commands do everything from a bare Python 3.11: `make quickstart` and `make test`.
# Both set up .venv themselves; quickstart installs the core only, test also the tools and oracles.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
DATA ?= scenes
ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e

# XLA on CPU asks for its temporaries anew at every step; in large pages that costs a tenth less time.
export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1

.PHONY: quickstart test lint format types bench help

quickstart: $(VENV)/core  ## tokenizers, training, sampling, report: DATA=scenes|emoji|FOLDER ARGS="..."
	$(BIN)/cm3leon quickstart --data "$(DATA)" $(ARGS)

test: $(VENV)/dev  ## all tests: ARGS="-k objective" chooses some
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

lint: $(VENV)/dev  ## style and formatting, without changing a file
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(VENV)/dev  ## repairs what lint finds, where that is safe
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(VENV)/dev  ## mypy over the package
	$(BIN)/mypy

bench: $(VENV)/dev  ## measures speed and memory: ARGS="loader train_step" chooses some
	$(BIN)/python -m benchmarks $(ARGS)

help:  ## this list
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=...")'
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

$(VENV)/core: setup.py constraints.txt | $(VENV)/bin/python
	@echo "installing the core into $(VENV) (about 0.8 GB, some minutes the first time)"
	$(INSTALL) .
	@touch $@

$(VENV)/dev: setup.py constraints.txt | $(VENV)/bin/python
	@echo "installing the core, data tools, test tools and oracles into $(VENV) (some minutes the first time)"
	$(INSTALL) '.[dev,data,demo,eval,faiss,int8,interop]'
	@touch $@ $(VENV)/core
