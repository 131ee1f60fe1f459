# `make demo` and `make test` are all that a newcomer needs: both set up .venv by themselves, once, and again when
# pyproject.toml or constraints.txt change.

PYTHON ?= python3
# More for pytest, the demo or the benchmarks: make test ARGS="-k plan -x"
ARGS ?=

VENV := .venv
RUN := $(VENV)/bin/python
# Made last, so a venv without it is half made.
READY := $(VENV)/.ready

# The models here are small: more threads cost more than they bring, and spinning ones take the other process's core.
export OMP_NUM_THREADS ?= 1
export OMP_WAIT_POLICY ?= PASSIVE

.DEFAULT_GOAL := help
.PHONY: help demo test lint format bench clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' Makefile

demo: $(READY) ## watch a model being cut, checked and trained
	$(VENV)/bin/dnigraph demo $(ARGS)

# A process for each core. To look at a failure in the debugger: make test ARGS="-n 0 --pdb".
test: lint ## lint, types and all tests; ARGS="..." goes to pytest
	$(RUN) -m pytest -q -n auto --dist worksteal $(ARGS)

lint: $(READY) ## style and types only
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy --strict -p dnigraph

format: $(READY) ## put the style right
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .

bench: $(READY) ## run the benchmarks; ARGS="..." picks
	$(RUN) -m benchmarks $(ARGS)

clean: ## remove .venv and all that was made
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "dnigraph needs Python 3.11 or newer as '$(PYTHON)'; name another: make PYTHON=python3.12 ..."; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null \
	  || { echo "Python's venv module is missing; on Debian and Ubuntu: apt-get install python3-venv"; exit 1; }
	@test -e $@ || rm -rf $(VENV)
	@rm -f $@
	test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --constraint constraints.txt setuptools
	$(RUN) -m pip install --quiet --constraint constraints.txt --no-build-isolation --editable '.[demo,test,dev,bench]'
	@touch $@
