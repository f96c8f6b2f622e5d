# Everything starts here: `make help` lists what there is.
# Settings are environment variables, e.g. `BOXOFFICE_GATEWAY_PORT=9090 make up`.

PYTHON ?= python3
VENV := .venv/bin
LAUNCHER := $(VENV)/python -m launcher

.DEFAULT_GOAL := help
.PHONY: help up down demo protos check test settings env-example format lock clean bootstrap

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

up: bootstrap ## Start the mesh and show its state until Ctrl-C
	@exec $(LAUNCHER) up

down: bootstrap ## Stop the mesh and what a lost `make up` left behind
	@exec $(LAUNCHER) down

demo: bootstrap protos ## Sell a stadium and a cinema to 300 customers at once, and audit it
	@exec $(VENV)/python -m demo $(DEMO)

protos: bootstrap ## Compile the contract: stubs and descriptor set in build/
	@$(LAUNCHER) protos

check: bootstrap ## Lint, types, and the contract against the main branch
	@$(LAUNCHER) check

test: bootstrap protos check ## Run everything that CI runs
	@$(VENV)/pytest

settings: bootstrap ## List every setting with type, default and meaning
	@$(LAUNCHER) settings

env-example: bootstrap ## Write .env.example from the settings
	@$(LAUNCHER) settings --write

format: bootstrap ## Format the Python code and the protos
	@$(VENV)/ruff check --quiet --fix-only .
	@$(VENV)/ruff format --quiet .
	@$(VENV)/buf format --write protos

lock: bootstrap ## Update requirements.lock from pyproject.toml
	@$(VENV)/uv pip compile --quiet --universal --python-version 3.11 --all-extras --upgrade \
		--generate-hashes --no-header --no-annotate --no-emit-index-url \
		pyproject.toml --output-file requirements.lock

clean: ## Remove what was generated and installed; the state folder stays
	@rm -rf build .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

bootstrap:
	@command -v $(PYTHON) >/dev/null || { echo "There is no $(PYTHON) here. Install Python 3.11 or newer, or name one: make up PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) launcher/bootstrap.py
