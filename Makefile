# Everything lives in .venv, built with plain pip; every target may be repeated.
# Another interpreter: make quickstart PYTHON=/path/to/python3.12

PYTHON ?= $(shell command -v python3.11 || command -v python3)
JOBS ?= 2
VENV := .venv
BIN := $(VENV)/bin

.PHONY: help quickstart test lint clean

help: ## Show the targets
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 20

quickstart: $(VENV)/.installed ## Install, train RL² on bandits, and measure it on 20,000 held-out tasks
	@run=runs/quickstart; n=1; \
	while [ -e $$run ]; do n=$$((n + 1)); run=runs/quickstart-$$n; done; \
	$(BIN)/metarl train rl2 --preset bandit-5x10 --out $$run && \
	$(BIN)/metarl evaluate $$run && \
	echo "Training: $(BIN)/tensorboard --logdir $$run/tensorboard"

test: $(VENV)/.installed-dev ## Install what the tests need, and run them
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS)

lint: $(VENV)/.installed-dev ## Check style, formatting and the direction of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

clean: ## Remove .venv and caches; runs are kept
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/bin/python:
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11))" || \
		{ echo "metarl needs Python 3.11 or newer: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

$(VENV)/.installed: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --editable .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --editable '.[dev]'
	@touch $@ $(VENV)/.installed
