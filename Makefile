# make train   sets up, trains a recipe, shows translations       make test    sets up, runs every test
# make check   linter, types, fast tests                          make clean   removes .venv and caches
# make bench   measures speed beside other packages            make gpu     tests and measures a GPU
# make site    builds the documentation into .site/          make reliability   kills, faults, fuzz: one table
PYTHON ?= python3
RECIPE ?= recipes/quickstart/ko_en.yaml
ARGS ?=
BIN = .venv/bin
# Several test processes share the machine: one thread for each. Dozens of processes import what is
# tested: the first one leaves its bytecode to the others.
PYTEST = OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n 2

# What `make gpu` needs beside torch, lightning, tokenizers and torchmetrics, which it takes from
# $(PYTHON): CUDA builds are large, and often come with the machine.
GPU_NEEDS = datasets huggingface_hub pyarrow wandb 'jsonargparse[signatures]' docstring-parser pyyaml sacrebleu sacremoses \
  matplotlib koreanize-matplotlib safetensors numpy tqdm pytest pytest-timeout
WHEELS ?=
LINKS = $(if $(WHEELS),--find-links '$(WHEELS)')
UNUSED = /(tests?|testing/_internal|transformers/models|mypyc?)/
PUREPYTHON = -c 'import sysconfig; print(sysconfig.get_path("purelib"))'

.PHONY: help setup train test tests check lint bench reliability site wheels gpu clean

help:
	@echo "make train [RECIPE=$(RECIPE)] [ARGS=...]   set up, train, translate"
	@echo "make test      set up, linter, types, every test (9 to 13 minutes on two cores)"
	@echo "make check     set up, linter, types, fast tests (under 4 minutes after set-up)"
	@echo "make bench [ARGS=...] [DEVICE=cuda]   set up, measure speed beside other packages (ARGS=--help)"
	@echo "make reliability [ARGS=...]   set up, try kills, faults, hosts and bad files for 30 minutes (ARGS=--help)"
	@echo "make gpu [WHEELS=folder] [ARGS=...]   test and measure a GPU, offline, with torch of PYTHON"
	@echo "make wheels WHEELS=folder   fill the folder, on a machine with a network and the same Python"
	@echo "make site      build the documentation, with the reference of the code, into .site/"
	@echo "make setup     the virtual environment .venv alone (PYTHON=$(PYTHON))"
	@echo "make clean     remove .venv and caches; runs/ and .bench/ stay"

setup: .venv/.stamp

# Written last, so that a set-up that failed half-way is begun again. pip would compile all packages
# on one core; not at all would be slow where PYTHONDONTWRITEBYTECODE is set, as it often is. A third
# of them are tests and models of theirs that nothing here imports.
.venv/.stamp: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(None if (3, 10) <= v < (3, 14) else \
	  "$(PYTHON) is Python %d.%d, needed is 3.10 to 3.13: make ... PYTHON=python3.12" % v[:2])'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --upgrade pip
	$(BIN)/python -m pip install --no-compile --disable-pip-version-check -c constraints.txt -e '.[dev]'
	-@$(BIN)/python -m compileall -qq -j 0 -x '$(UNUSED)' .venv/lib
	@touch $@

train: setup
	$(BIN)/transformer fit --config $(RECIPE) --existing number $(ARGS)

lint: setup
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

# Types take a minute of one core: the tests need not wait for them.
check: setup
	@$(MAKE) --no-print-directory --jobs 2 lint tests CHOSEN='-m "not slow"'

test: setup
	@$(MAKE) --no-print-directory --jobs 2 lint tests

tests: setup
	$(PYTEST) $(CHOSEN)

bench: setup
	$(BIN)/python -m tests.benchmarks $(ARGS)

reliability: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.reliability $(ARGS)

site: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

wheels:
	$(PYTHON) -m pip download --disable-pip-version-check -c constraints.txt \
	  -d '$(or $(WHEELS),wheels)' $(GPU_NEEDS)

# An environment beside that of $(PYTHON), whose packages it sees, itself perhaps an environment.
gpu:
	$(PYTHON) -m venv --system-site-packages .gpu
	$(PYTHON) $(PUREPYTHON) > "$$(.gpu/bin/python $(PUREPYTHON))/given.pth"
	.gpu/bin/python -m pip install --quiet --disable-pip-version-check --no-index $(LINKS) \
	  $(GPU_NEEDS) || { echo "Fill a folder with 'make wheels WHEELS=folder' where there is a" \
	  "network, and give it to 'make gpu WHEELS=folder' here"; exit 1; }
	PIP_NO_INDEX=1 .gpu/bin/python -m tests.benchmarks.gpu $(ARGS)

clean:
	rm -rf .venv .gpu .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist
