# `make demo` and `make test` create their own environment in .venv; they only need Python 3.11+ and pip.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

# Shapes and types are checked while these packages run. `make test` keeps to the mathematics, where that costs least.
MATHEMATICS := asyncdiff.noise,asyncdiff.denoising,asyncdiff.networks,asyncdiff.sampling
REPORTS := test-reports
CPU_LIMIT := 5

.PHONY: help install install-dev demo test test-all lint types experiments hooks docs clean-demo
help:
	@echo "make install   create $(VENV) with the command asyncdiff (demo and test do so themselves)"
	@echo "make demo      train on handwritten digits and save images in runs/demo (minutes on a CPU)"
	@echo "make test      run linter, type checker and the fast tests (minutes)"
	@echo "make test-all  run all tests"
	@echo "make docs      build the documentation site in site/"

install: $(VENV)/installed
install-dev: $(VENV)/installed-dev

# The stamp files skip a second installation; changed requirements trigger a new one.
$(VENV)/installed: requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and f"Python must be 3.11 or newer, got {sys.version.split()[0]} ({sys.executable}): try make PYTHON=python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --progress-bar on -r requirements.txt -e .
	@touch $@

$(VENV)/installed-dev: pyproject.toml $(VENV)/installed
	$(BIN)/python -m pip install --disable-pip-version-check -e '.[dev]'
	@touch $@

# Skips training if the demo is finished, and resumes it if it was interrupted.
demo: install
	$(BIN)/python train.py fit --config experiments/demo.yaml --auto_resume true

clean-demo:
	rm -rf runs/demo

test: lint types
	$(BIN)/python -m pytest -n 2 -m "not slow" --cpu-limit $(CPU_LIMIT) --junitxml $(REPORTS)/test.xml \
		--jaxtyping-packages $(MATHEMATICS),checked.check

test-all: install-dev
	$(BIN)/python -m pytest -n 2 --junitxml $(REPORTS)/test-all.xml --jaxtyping-packages asyncdiff,checked.check

lint: install-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install-dev
	$(BIN)/mypy

# Check that every experiment file builds.
experiments: install-dev
	$(BIN)/python -m pytest -q tests/test_experiments.py

# Warnings are errors, except with --quiet. The variable silences a notice of the theme about its successor.
docs: install-dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build
	@echo "open site/index.html"

hooks: install-dev
	$(BIN)/pre-commit install
