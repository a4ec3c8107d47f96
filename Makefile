# `make demo` and `make test` set up their own environment in .venv; nothing else is needed but Python 3.11+ and pip.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: help install install-dev demo test lint types experiments hooks docs clean-demo
help:
	@echo "make install   create $(VENV) from requirements.txt, with the command asyncdiff (demo and test do it by themselves)"
	@echo "make demo      train on handwritten digits and draw pictures into runs/demo (minutes, CPU is enough)"
	@echo "make test      lint, types and tests"
	@echo "make docs      the documentation site, into site/"

install: $(VENV)/installed
install-dev: $(VENV)/installed-dev

# The stamps make a second call install nothing; a change of the requirements installs again.
$(VENV)/installed: requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and f"Python 3.11 or newer is needed, {sys.executable} is {sys.version.split()[0]}: try make PYTHON=python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --progress-bar on -r requirements.txt -e .
	@touch $@

$(VENV)/installed-dev: pyproject.toml $(VENV)/installed
	$(BIN)/python -m pip install --disable-pip-version-check -e '.[dev]'
	@touch $@

# A finished demo is not trained again, an interrupted one goes on where it was.
demo: install
	$(BIN)/python train.py fit --config experiments/demo.yaml --auto_resume true

clean-demo:
	rm -rf runs/demo

test: install-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pydoclint -q asyncdiff datamodules
	$(BIN)/mypy
	$(BIN)/python -m pytest -n 2

lint: install-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pydoclint -q asyncdiff datamodules

types: install-dev
	$(BIN)/mypy

# That every YAML file builds what it says.
experiments: install-dev
	$(BIN)/python -m pytest -q tests/test_experiments.py -k "builds or layered or complete"

# Warnings are errors, but not with --quiet. The variable silences what the theme says of its successor.
docs: install-dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build
	@echo "open site/index.html"

hooks: install-dev
	$(BIN)/pre-commit install
