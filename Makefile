# make quickstart   trains a small model on the CPU, then compares the samplers
# make test         runs the tests
# Both create .venv from constraints.txt first, if it is missing or out of date.

VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
PIP    := $(BIN)/python -m pip install --disable-pip-version-check --progress-bar off -c constraints.txt
SUPPORTED := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))
# The first interpreter that is 3.11 to 3.13; `make PYTHON=/path/to/python3.12 …` overrides.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python; do \
	"$$p" -c '$(SUPPORTED)' >/dev/null 2>&1 && echo "$$p" && break; done)
# Further words for the commands: make test ARGS="-k wavefront", make quickstart ARGS="logger=none"
ARGS   ?=

.DEFAULT_GOAL := help
.PHONY: help venv quickstart test lint format types bench clean

help:
	@echo "make quickstart   train a small model on the CPU (minutes), then compare the samplers"
	@echo "make test         run the tests"
	@echo "make lint types   check style and types        make format   mend the style"
	@echo "make bench        time the AR baseline against bare core passes"
	@echo "make clean        remove caches (not .venv, not outputs/)"

venv: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@if [ ! -x $(BIN)/python ]; then \
	  if [ -z "$(PYTHON)" ] || ! "$(PYTHON)" -c '$(SUPPORTED)' 2>/dev/null; then \
	    echo "Python 3.11, 3.12 or 3.13 is needed; python3 is $$(python3 -V 2>&1). Install one, or name it: make PYTHON=/path/to/python3.12 quickstart" >&2; \
	    exit 2; \
	  fi; \
	  echo "Creating $(VENV) with $$("$(PYTHON)" -V) …"; "$(PYTHON)" -m venv $(VENV); \
	fi
	@echo "Installing from constraints.txt (a few minutes the first time) …"
	@$(PIP) -e ".[dev,finetune,reports,sweeps]" || { \
	  echo "The installation failed. If an earlier one was cut off, it may have left $(VENV) broken: rm -rf $(VENV), then again" >&2; \
	  exit 1; \
	}
	@if command -v cc >/dev/null 2>&1 && $(PIP) -e ".[tasks]"; then :; else \
	  echo "reasoning-gym is left out, one of its packages needs a C compiler: data=reasoning_gym will not work, all else does"; \
	fi
	@touch $@

quickstart: $(STAMP)
	$(BIN)/python train.py experiment=quickstart $(ARGS)

test: $(STAMP)
	$(BIN)/python -m pytest -n 2 --durations=10 $(ARGS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(STAMP)
	$(BIN)/mypy

bench: $(STAMP)
	$(BIN)/python benchmarks/ar_baseline.py $(ARGS)

clean:
	rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis .benchmarks build dist *.egg-info
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +
