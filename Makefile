# Everything a fresh machine needs: Python 3.10 or later, make, a package index.
#
#   make demo     install what users need, and run the demo on a private cluster
#   make test     install what developers need too, and run all tests side by side;
#                 ARGS="-k name": only these, one after another
#   make chaos    faults by seeds on real servers: N=300 schedules, or SEED=7 again
#   make bench    measure all systems side by side; under an hour, benchmarks/results.md
#   make bench-quick   the same of three systems, in a few minutes; ARGS=--smoke: does it run?
#   make lint     style, types and the direction of imports
#   make clean    remove the environment and all caches

PYTHON ?= python3
ARGS ?=
N ?= 100
SEED ?=
FIRST ?= 1
VENV := .venv
BIN := $(VENV)/bin

# Stamps: installing again is needed only when pyproject.toml has changed. The project
# itself is installed in place, so a change of its code needs nothing.
USER_STAMP := $(VENV)/.installed-for-users
DEV_STAMP := $(VENV)/.installed-for-developers

# The groups of tests, and which begin first, are in tests/conftest.py.
SIDE_BY_SIDE := --numprocesses 4 --dist loadgroup --no-loadscope-reorder

.PHONY: demo test chaos bench bench-quick lint clean
.DELETE_ON_ERROR:

demo: $(USER_STAMP)
	$(BIN)/nbsched demo $(ARGS)

test: $(DEV_STAMP)
	$(BIN)/python -m pytest $(or $(ARGS),$(SIDE_BY_SIDE))

# Twenty of these schedules are a part of the tests.
chaos: $(DEV_STAMP)
	PYTHONPATH=tests $(BIN)/python -m chaos.run \
	  $(if $(SEED),$(SEED),--first $(FIRST) --count $(N)) $(ARGS)

# Every system gets an environment of its own, made from the Python that runs this.
bench: $(BIN)/python
	$(BIN)/python -m benchmarks.run $(ARGS)

bench-quick: $(BIN)/python
	$(BIN)/python -m benchmarks.run --quick $(ARGS)

lint: $(DEV_STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

clean:
	rm -rf $(VENV) benchmarks/.envs benchmarks/.out build dist .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "nbsched needs Python 3.10 or later. Name one: make PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(USER_STAMP): pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --editable '.[local]'
	@touch $@

# pip reads dependency groups from 25.1 on; the one that comes with Python may be older.
$(DEV_STAMP): $(USER_STAMP)
	$(BIN)/python -m pip install --disable-pip-version-check --quiet 'pip>=25.1'
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --group dev
	@touch $@
