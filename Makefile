# One word does a job, and each makes the environment that it needs.
# PYTHON=python3.12 on the command line chooses another interpreter (3.11 or newer).

PYTHON ?= python3
BIN := .venv/bin
ENV := .venv/.ready
PICTURE ?= docs/race.svg
RECORDS := benchmarks/records
STEP := OMP_NUM_THREADS=1 $(BIN)/python benchmarks/speed --first --rounds 15

# The environment is stale when the project has moved (it is installed in place) or another interpreter is asked for.
OWNER := $(PYTHON) in $(CURDIR)
ifneq ($(shell cat $(ENV) 2>/dev/null),$(OWNER))
.PHONY: $(ENV)
endif

.PHONY: help race test check docs picture gallery bench records claims beyond gpu figures release clean
.DEFAULT_GOAL := help

help: ## list these words
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' Makefile

race: $(ENV) ## race the optimizers on real images and write a report
	@$(BIN)/fallline race

test: $(ENV) ## run every test
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

check: $(ENV) ## lint, check the formatting, check the types
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/python -m mypy

docs: $(ENV) ## build the site from docs/ into site/, strictly and without a network: open site/index.html
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build

picture: $(ENV) ## draw the picture of the last race (needs Chromium)
	@mkdir -p $(dir $(PICTURE))
	@$(BIN)/fallline report --picture $(PICTURE)

gallery: $(ENV) ## draw the pictures of docs/gallery again (two minutes)
	@$(BIN)/fallline gallery --out docs/gallery

bench: $(ENV) ## measure a step of each optimizer; then its chart and tables (needs Chromium; half an hour)
	@$(BIN)/python benchmarks/harness.py
	@$(STEP) --set resnet18 --with benchmarks/unfused.py --memory --out $(RECORDS)/cpu.json
	@$(STEP) --set resnet18 --dtype bfloat16 --only fused --out $(RECORDS)/cpu-bfloat16.json
	@$(STEP) --set many --only fused --out $(RECORDS)/cpu-many.json
	@$(STEP) --set gpt2 --set one --dtype float32 --dtype bfloat16 --only fused --out $(RECORDS)/cpu-large.json
	@$(BIN)/python benchmarks/chart.py

records: $(ENV) ## run the papers' experiments small, on the real data, and write their results (an hour and a half; goes on)
	@OMP_NUM_THREADS=1 $(BIN)/python benchmarks/records.py
	@$(BIN)/python docs/results.py

claims: $(ENV) ## test what the papers claim, and write what came out (three minutes)
	@$(BIN)/fallline repro --claims --out $(RECORDS)
	@$(BIN)/python docs/claims.py

beyond: $(ENV) ## race ours against the baselines on six tasks of different kinds, and write the page (90 minutes; goes on)
	@OMP_NUM_THREADS=1 $(BIN)/python benchmarks/beyond.py
	@$(BIN)/python docs/beyond.py

gpu: ## check and measure on a GPU, with what PYTHON has there: torch, numpy, scipy, rich, typer
	@PYTHONPATH=src "$(PYTHON)" benchmarks/gpu.py

figures: $(ENV) ## make the figures and tables of docs/ and benchmarks/ again (needs Chromium)
	@OMP_NUM_THREADS=1 $(BIN)/python docs/arturo.py
	@$(BIN)/python benchmarks/chart.py

release: $(ENV) ## build wheel and sdist into dist/, check them, and use each where nothing else is installed (ten minutes)
	@$(BIN)/python -m pip install -qq --constraint constraints.txt build twine
	@$(BIN)/python dev/environment.py
	@rm -rf dist
	@$(BIN)/python -m build --no-isolation >/dev/null
	@$(BIN)/python -m twine check --strict dist/*
	@$(BIN)/python dev/smoke.py

clean: ## remove the environment and the caches; races under runs/ stay
	@rm -rf .venv .hypothesis .mypy_cache .pytest_cache .ruff_cache build dist site
	@find src tests -name __pycache__ -type d -prune -exec rm -rf {} +

# Hatchling comes before the project: so the project builds with the pinned one, not in an environment of its own.
$(ENV): pyproject.toml constraints.txt
	@command -v "$(PYTHON)" >/dev/null || { echo "fallline needs Python 3.11 or newer, and there is no $(PYTHON)." \
		"Name one that is there: make PYTHON=python3.12" >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11) and "fallline needs Python 3.11 or newer, and $(PYTHON) is " \
		+ sys.version.split()[0] + ". Name another: make PYTHON=python3.12")'
	@echo "Making the environment in .venv (torch is large: this takes minutes, once) ..."
	@"$(PYTHON)" -m venv --clear .venv
	@$(BIN)/python -m pip install -qq --constraint constraints.txt torch hatchling
	@$(BIN)/python -m pip install -qq --constraint constraints.txt --no-build-isolation --editable '.[bench,test,dev,docs]'
	@echo "$(OWNER)" > $(ENV)
