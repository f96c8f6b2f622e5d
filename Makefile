# Everything starts here: `make help` lists what there is.
# Settings are environment variables, e.g. `BOXOFFICE_GATEWAY_PORT=9090 make up`.

PYTHON ?= python3
VENV := .venv/bin
# Processes that run tests beside each other.
WORKERS ?= 2
LAUNCHER := $(VENV)/python -m launcher

.DEFAULT_GOAL := help
.PHONY: help up down restart migrate logs backup restore demo protos check test browser settings env-example keys-rotate mails format manifests lock clean bootstrap bootstrap-dev

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

check: bootstrap-dev ## Lint, types, and the contract against the main branch
	@$(LAUNCHER) check

test: bootstrap-dev protos check ## Run everything that CI runs; WORKERS=4 uses more cores
	@$(VENV)/pytest --numprocesses $(WORKERS)

browser: bootstrap-dev protos ## Test the pages in Chromium, which they need
	@command -v $${CHROMIUM:-chromium} >/dev/null || { echo "There is no Chromium here: apt install chromium, or name one: CHROMIUM=/path make browser" >&2; exit 1; }
	@$(VENV)/pytest tests/payment_svc/test_checkout_page.py tests/e2e/test_checkout_page.py tests/e2e/test_docs_page.py

settings: bootstrap ## List every setting with type, default and meaning
	@$(LAUNCHER) settings

env-example: bootstrap ## Write .env.example from the settings
	@$(LAUNCHER) settings --write

mails: bootstrap ## Write build/mails.html: every mail to customers, to look at
	@$(LAUNCHER) mails

format: bootstrap-dev ## Format the Python code and the protos
	@$(VENV)/ruff check --quiet --fix-only .
	@$(VENV)/ruff format --quiet .
	@$(VENV)/buf format --write protos

keys-rotate: bootstrap ## Sign access tokens with a new key; the old one retires by itself
	@$(LAUNCHER) keys rotate

manifests: bootstrap-dev protos ## Write Kubernetes manifests and dashboards from the contract
	@$(VENV)/python -m deploy.kubernetes
	@$(VENV)/python -m deploy.dashboards

COMPILE := $(VENV)/uv pip compile --quiet --universal --python-version 3.11 \
	--generate-hashes --no-header --no-annotate --no-emit-index-url pyproject.toml

lock: bootstrap-dev ## Update requirements.lock from pyproject.toml
	@$(COMPILE) --extra local --extra dev --upgrade --output-file build/dev.lock
	@$(COMPILE) --extra local --constraint build/dev.lock --output-file build/local.lock
	@$(COMPILE) --constraint build/dev.lock --output-file build/image.lock
	@$(PYTHON) launcher/bootstrap.py join build/image.lock build/local.lock build/dev.lock

clean: ## Remove what was generated and installed; the state folder stays
	@rm -rf build .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

bootstrap:
	@command -v $(PYTHON) >/dev/null || { echo "There is no $(PYTHON) here. Install Python 3.11 or newer, or name one: make up PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) launcher/bootstrap.py

bootstrap-dev:
	@$(PYTHON) launcher/bootstrap.py --dev
