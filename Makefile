# make demo      installs into .venv, upscales the clip in demo/, says where the result lies
# make cascade   writes cascade.html: what each part of `generate` adds
# make test      installs into the same .venv, runs everything that CI runs
# make docs      builds the documentation as a site in build/site
# make vapoursynth   installs VapourSynth for its tests, with Python 3.12

PYTHON ?= python3
PYTHON_OF_VAPOURSYNTH ?= python3.12
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ultraflash-installed

.DEFAULT_GOAL := help
.PHONY: help demo cascade docs vapoursynth test lint types unit

help:
	@sed -n '1,5s/^# //p' Makefile

demo: $(STAMP)
	@$(BIN)/python demo/run.py

cascade: $(STAMP)
	@$(BIN)/python -m benchmarks.cascade --page cascade.html

docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet -f packaging/mkdocs.yml
	@echo build/site/index.html

# VapourSynth's wheel needs Python 3.12; the tests that use it are skipped without this environment.
vapoursynth:
	$(PYTHON_OF_VAPOURSYNTH) -m venv .venv-vapoursynth
	.venv-vapoursynth/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt vapoursynth numpy av

test: lint types unit

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)
	$(BIN)/pyright --pythonpath $(BIN)/python

# A process a core, each with one thread; the tests of a file stay together, because they share what they have made.
# conftest.py puts the longest files first.
unit: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --dist loadfile --no-loadscope-reorder

# torch first and by its pin: a package that asks for plain `torch` would bring the CUDA build and gigabytes.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(None if v >= (3, 11) else f"ultraflash needs Python 3.11 or newer, $(PYTHON) is {v[0]}.{v[1]}: try `make PYTHON=python3.11 $(MAKECMDGOALS)`")'
	@echo 'installing into $(VENV), once: with torch and the test tools, 3 GB, in a few minutes'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch==$(shell sed -n 's/^torch==//p' constraints.txt)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps cvvdp
	@touch $@
