# Needs make and a Python >= 3.11. Everything else goes into .venv, which each target makes when there is none; stamps
# keep pip from being run again until pyproject.toml changes.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Tests mostly wait, so more of them than there are cores run side by side. Whoever is done takes from those that are not
# (worksteal): what xdist does by itself gives each a share of the long ones that are first, and one is alone at the end.
TESTS_AT_ONCE ?= 4
STAMPS := $(VENV)/stamps
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help demo test chaos check format bench docs clean

help:  ## Say what can be made
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' Makefile
	@echo "Another interpreter: make PYTHON=python3.13 ... (after make clean)"

demo: $(STAMPS)/demo  ## See real work spread over worker processes
	$(BIN)/python examples/quickstart.py

test: $(STAMPS)/test,ecosystem  ## Run all tests
	$(BIN)/python -m pytest -n $(TESTS_AT_ONCE) --dist worksteal $(PYTEST_ARGS)

chaos: $(STAMPS)/test,ecosystem  ## Kill, stop, cut and flush, and count what becomes of the tasks
	$(BIN)/python -m tests.chaos $(CHAOS_ARGS)

check: $(STAMPS)/check,docs  ## Check format, lint, types, import contracts and docs
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/sphinx-build -W --keep-going -q -b html docs docs/_build/html

format: $(STAMPS)/check,docs  ## Format the sources and mend what the linter can mend
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(STAMPS)/bench  ## Measure against ProcessPoolExecutor, other pools, and the least that a server takes
	@$(BIN)/python -m compileall -q rush_executor
	$(BIN)/python -m benchmarks $(BENCH_ARGS)

docs: $(STAMPS)/check,docs  ## Build the documentation
	$(BIN)/sphinx-build -W --keep-going -q -b html docs docs/_build/html
	@echo "Open docs/_build/html/index.html"

clean:  ## Remove .venv, caches and what was built
	rm -rf $(VENV) .venv-3.* build dist docs/_build .coverage .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The version is asked before the environment is made, and of the environment too, which may be an old one. An
# environment that could not be finished (Debian: python3-venv is missing) is removed, so that the next run starts anew.
$(STAMPS)/python:
	@if [ ! -x $(BIN)/python ]; then \
	    command -v "$(PYTHON)" >/dev/null 2>&1 || \
	        { echo "There is no '$(PYTHON)' here. Say which Python to use: make PYTHON=/path/to/python3.13 ..." >&2; exit 1; }; \
	    "$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	        { echo "rush-executor needs Python >= 3.11; '$(PYTHON)' says `"$(PYTHON)" --version 2>&1 | head -n 1`." \
	               "Say which one to use: make PYTHON=python3.13 ..." >&2; exit 1; }; \
	    echo "Making $(VENV) with `"$(PYTHON)" --version`"; \
	    "$(PYTHON)" -m venv $(VENV) || { rm -rf $(VENV); exit 1; }; \
	fi
	@$(BIN)/python -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo "$(VENV) has `$(BIN)/python --version`, and Python >= 3.11 is needed: make clean, then try again." >&2; exit 1; }
	@mkdir -p $(STAMPS)
	@touch $@

# A stamp is called as the extras that are installed with it: `make demo` installs no linter. What is needed together is
# installed in one go, as each editable installation makes an environment for its build first. Byte code is made here:
# pip makes it on one core, and none of an editable installation. Where PYTHONDONTWRITEBYTECODE is set, every process that
# is started would compile what it imports anew, which takes longer than all its imports. That some file of a library is
# not for this Python, and cannot be compiled, is no matter.
$(STAMPS)/%: pyproject.toml | $(STAMPS)/python
	@echo "Installing rush-executor[$(@F)] into $(VENV)"
	@$(PIP) --no-compile --editable '.[$(@F)]'
	@$(BIN)/python -m compileall -q rush_executor tests
	@$(BIN)/python -m compileall -q -j 0 $(VENV)/lib >/dev/null 2>&1 || $(BIN)/python -m compileall -q $(VENV)/lib >/dev/null || true
	@touch $@
