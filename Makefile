# Every job of the project by name; `make` alone lists them.
#
#   PYTHON=python3.12     the interpreter that .venv is made from
#   PIP_ARGS=...          more options for pip, for example an index
#   CONFIG=, WORKDIR=     recipe and folder of `make train`
#   ARGS=...              more flags for train and evidence, more options for
#                         pytest (make test ARGS='-k spr')
#   TEST_WORKERS=2        processes that share the tests

SHELL := bash
.DEFAULT_GOAL := help

PYTHON ?= python3
PIP_ARGS ?=
CONFIG ?= configs/tiny.py
WORKDIR ?= runs/tiny
ARGS ?=
TEST_WORKERS ?= 2

VENV ?= .venv
VENV_PYTHON := $(VENV)/bin/python
# Stamps: newer than the two files that say what to install, so that a second
# `make setup` is instant and an edited setup.cfg installs again.
READY := $(VENV)/.ready
READY_TEST := $(VENV)/.ready-test
OLD_ENOUGH := import sys; sys.exit(sys.version_info < (3, 11))

.PHONY: help
help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(firstword $(MAKEFILE_LIST)) \
	  | sed -E 's/^([a-z-]+):.*## /\1|/' \
	  | while IFS='|' read -r name text; do \
	      printf '  make %-10s %s\n' "$$name" "$$text"; done

.PHONY: check-venv
check-venv:
	@if [ -e $(VENV) ] && ! $(VENV_PYTHON) -c '$(OLD_ENOUGH)' 2>/dev/null; \
	then \
	  echo "error: the Python in $(VENV) does not start or is older than" \
	    "3.11. Fix: make distclean, then make setup PYTHON=python3.11" \
	    "(or newer)" >&2; \
	  exit 2; \
	fi

# $(call install,EXTRAS,STAMPS). `python -m venv` also completes a half-made
# folder, so an interrupted set-up heals itself.
define install
	@set -e; SECONDS=0; \
	if ! $(VENV_PYTHON) -m pip --version >/dev/null 2>&1; then \
	  if ! $(PYTHON) -c '$(OLD_ENOUGH)' 2>/dev/null; then \
	    echo "error: '$(PYTHON)' is missing or older than Python 3.11." \
	      "Fix: make setup PYTHON=python3.11 (or newer)" >&2; \
	    exit 2; \
	  fi; \
	  echo "setup: making $(VENV) with $$($(PYTHON) --version)"; \
	  if ! $(PYTHON) -m venv $(VENV); then \
	    echo "error: '$(PYTHON) -m venv' failed. Fix: install the venv module" \
	      "of this Python (Debian, Ubuntu: apt install python3-venv)" >&2; \
	    exit 2; \
	  fi; \
	fi; \
	echo "setup: installing metastone_jax[$(1)] into $(VENV)" \
	  "(the first time: about 1 GB, one to three minutes)"; \
	$(VENV_PYTHON) -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) \
	  --editable '.[$(1)]'; \
	touch $(2); \
	echo "setup: $(VENV) is ready ($$SECONDS s)"
endef

$(READY): setup.cfg pyproject.toml | check-venv
	$(call install,gym,$(READY))

$(READY_TEST): setup.cfg pyproject.toml | check-venv
	$(call install,gym$(COMMA)test,$(READY) $(READY_TEST))

COMMA := ,

# The TPU and GPU compilers, apart: their plug-ins would look for devices in
# every other process. Same jax as in .venv.
COMPILE_VENV ?= .venv-compile
COMPILE_PYTHON := $(COMPILE_VENV)/bin/python
READY_COMPILE := $(COMPILE_VENV)/.ready

$(READY_COMPILE): $(READY)
	@set -e; SECONDS=0; \
	version=$$($(VENV_PYTHON) -c 'import jax; print(jax.__version__)'); \
	echo "setup: installing the TPU and GPU compilers of jax $$version into" \
	  "$(COMPILE_VENV) (the first time: about 2 GB, one to three minutes)"; \
	$(VENV_PYTHON) -m venv $(COMPILE_VENV); \
	$(COMPILE_PYTHON) -m pip install --quiet --disable-pip-version-check \
	  $(PIP_ARGS) "jax[tpu]==$$version" "jax-cuda12-plugin==$$version" \
	  --editable .; \
	touch $@; \
	echo "setup: $(COMPILE_VENV) is ready ($$SECONDS s)"

.PHONY: setup-compile
setup-compile: $(READY_COMPILE) ## Install the TPU and GPU compilers (launch.compile)

.PHONY: setup
setup: $(READY) ## Make .venv and install the project into it (editable)

.PHONY: train
train: $(READY) ## The main job: train, evaluate and report into runs/tiny
	@$(VENV_PYTHON) -m launch.train --config=$(CONFIG) --workdir=$(WORKDIR) \
	  $(ARGS)

# Fixtures and compiled programs are made once a process: keep files together.
# A worker that crashes fails the run: replaced, --dist loadfile may wait for
# ever (pytest-xdist 3.8).
.PHONY: test
test: $(READY_TEST) $(READY_COMPILE) ## Check format and lint, run every test
	@$(VENV_PYTHON) -m ruff format --check .
	@$(VENV_PYTHON) -m ruff check .
	@JAX_PLATFORMS=cpu COMPILE_PYTHON=$(COMPILE_PYTHON) $(VENV_PYTHON) -m pytest -n $(TEST_WORKERS) \
	  --dist loadfile --no-loadscope-reorder --max-worker-restart=0 \
	  --durations=15 --durations-min=0.5 $(ARGS)

.PHONY: evidence
evidence: $(READY_TEST) ## Seeds 0, 1, 2 and the controls (hours; resumable)
	@$(VENV_PYTHON) -m tests.evidence.run $(ARGS)

.PHONY: format
format: $(READY_TEST) ## Format the code and apply the linter's safe fixes
	@$(VENV_PYTHON) -m ruff check --fix .
	@$(VENV_PYTHON) -m ruff format .

.PHONY: clean
clean: ## Remove caches and build outputs (keeps .venv and runs/)
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache
	find . -path ./.venv -prune -o -name __pycache__ -type d -print0 \
	  | xargs -0 rm -rf

.PHONY: distclean
distclean: clean ## Remove .venv and .venv-compile as well (keeps runs/)
	rm -rf $(VENV) $(COMPILE_VENV)
