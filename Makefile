# Needs: Python 3.11 or later, make. Everything else is installed into .venv.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PLUGINS := $(patsubst plugins/%/pyproject.toml,plugins/%,$(wildcard plugins/*/pyproject.toml))
INSTALL := $(BIN)/uv pip install --quiet --python $(BIN)/python --constraint constraints.txt
export HF_HUB_OFFLINE ?= 1
export TOKENIZERS_PARALLELISM ?= false

.PHONY: demo test lint results install clean

## demo: install, train the detection demo, write its report (about ten minutes on two cores)
demo: $(VENV)/installed
	$(BIN)/mmrl train visual_rft/demo_detection --output runs/demo_detection-$$(date +%Y%m%d-%H%M%S)

## test: install, check style and types, run the whole suite
test: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest

install: $(VENV)/installed

$(BIN)/uv:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "mmrl needs Python 3.11 or later; set PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv

$(VENV)/installed: $(BIN)/uv pyproject.toml constraints.txt $(PLUGINS:%=%/pyproject.toml)
	$(INSTALL) -e . $(PLUGINS:%=-e %)
	touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(INSTALL) --group dev
	touch $@

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache
