# `make help` lists the targets.
# Settings are environment variables, e.g. `BOXOFFICE_GATEWAY_PORT=9090 make up`.

PYTHON ?= python3
VENV := .venv/bin
# Number of processes that run tests in parallel.
WORKERS ?= 2
LAUNCHER := $(VENV)/python -m launcher
# Without bytecode on disk every process of the mesh compiles all packages when it starts.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help up down restart migrate logs backup restore sample-data demo chaos protos check test test-long browser settings env-example keys-rotate mails client format manifests lock bench bench-compare clean bootstrap bootstrap-dev

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

up: bootstrap ## Start the mesh and show its status until Ctrl-C
	@exec $(LAUNCHER) up

down: bootstrap ## Stop the mesh, including processes of a killed `make up`
	@exec $(LAUNCHER) down

restart: bootstrap ## Restart services and gateways one by one; NAMES="stock_svc gateway" selects some
	@exec $(LAUNCHER) restart $(NAMES)

migrate: bootstrap ## Migrate the databases to this version's schema, also while the mesh runs
	@exec $(LAUNCHER) migrate

logs: bootstrap ## Show the logs of all processes, merged by time; TEXT=<request id> selects lines
	@exec $(LAUNCHER) logs $(TEXT)

backup: bootstrap ## Back up the embedded databases, keys and secrets of the running mesh
	@exec $(LAUNCHER) backup $(FILE)

restore: bootstrap ## Restore a backup while the mesh is stopped; FILE=<file>
	@exec $(LAUNCHER) restore $(FILE)

sample-data: bootstrap ## Create accounts, events on sale and a paid booking in the running mesh
	@exec $(VENV)/python -m tools.boxoffice sample-data

# The picture of the on-sale report needs a package of the benchmarks.
demo: bootstrap protos ## Sell to 300 concurrent customers, then audit; DEMO=--on-sale: a waiting room, 5,000 visitors and bots
	$(if $(findstring --on-sale,$(DEMO)),@$(PYTHON) launcher/bootstrap.py --bench || true)
	@exec $(VENV)/python -m demo $(DEMO)

chaos: bootstrap protos ## Sell while everything fails, then audit; MINUTES=20 SEED=1, CHAOS="--only kill" adds options
	@exec $(VENV)/python -m chaos $(if $(MINUTES),--minutes $(MINUTES)) $(if $(SEED),--seed $(SEED)) $(CHAOS)

protos: bootstrap ## Compile the contract to stubs and a descriptor set in build/
	@$(LAUNCHER) protos

check: bootstrap-dev ## Run linters, type checks, import contracts and contract checks
	@$(LAUNCHER) check

# With CHANGED=1, or the name of a branch: only the tests of the packages that differ from main, or
# from that branch, and of the packages that import them.
SELECTED = $(if $(CHANGED),--changed $(if $(filter 1,$(CHANGED)),main,$(CHANGED)))

test: bootstrap-dev protos check ## Run all checks and tests of CI; WORKERS=4 uses more cores, CHANGED=1 runs what differs from main
	@$(VENV)/pytest --numprocesses $(WORKERS) $(SELECTED)

test-long: bootstrap-dev protos ## Run the tests at full length (hours); shows what ran and for how long
	@$(VENV)/pytest --numprocesses $(WORKERS) --long $(SELECTED)

browser: bootstrap-dev protos ## Test the web pages in Chromium
	@command -v $${CHROMIUM:-chromium} >/dev/null || { echo "Chromium is not installed. Install it (apt install chromium) or select one: CHROMIUM=/path make browser" >&2; exit 1; }
	@$(VENV)/pytest tests/payment_svc/test_checkout_page.py tests/e2e/test_checkout_page.py tests/e2e/test_docs_page.py

settings: bootstrap ## List all settings with type, default and description
	@$(LAUNCHER) settings

env-example: bootstrap ## Write .env.example from the settings
	@$(LAUNCHER) settings --write

mails: bootstrap ## Write build/mails.html with samples of all mails to customers
	@$(LAUNCHER) mails

client: bootstrap ## Write build/client/: protos for other languages and a Python wheel; GO_MODULE=example.com/shop/boxoffice
	@$(LAUNCHER) client $(if $(GO_MODULE),--go-module $(GO_MODULE))

format: bootstrap-dev ## Format the Python code and the protos
	@$(VENV)/ruff check --quiet --fix-only .
	@$(VENV)/ruff format --quiet .
	@$(VENV)/buf format --write protos

keys-rotate: bootstrap ## Add a key for signing access tokens; the old one is removed automatically
	@$(LAUNCHER) keys rotate

manifests: bootstrap-dev protos ## Generate the Kubernetes manifests and Grafana dashboards
	@$(VENV)/python -m deploy.kubernetes
	@$(VENV)/python -m deploy.dashboards

bench: bootstrap protos ## Measure speed beside an echo and a monolith; ONLY=place_hot,get_event SECONDS=10 ROUNDS=3
	@$(PYTHON) launcher/bootstrap.py --bench
	@$(VENV)/python -m bench $(if $(ONLY),--only $(ONLY)) $(if $(SECONDS),--seconds $(SECONDS)) $(if $(ROUNDS),--rounds $(ROUNDS)) \
		$(if $(BOOKINGS),--bookings $(BOOKINGS)) $(if $(SEATS),--seats $(SEATS)) $(if $(CHECKOUT),--checkout $(CHECKOUT))

bench-compare: bootstrap protos ## Compare two reports of make bench; A=before.json B=after.json
	@$(VENV)/python -m bench compare $(A) $(B)

COMPILE := $(VENV)/uv pip compile --quiet --universal --python-version 3.11 \
	--generate-hashes --no-header --no-annotate --no-emit-index-url pyproject.toml

lock: bootstrap-dev ## Update requirements.lock from pyproject.toml
	@$(COMPILE) --extra local --extra dev --upgrade --output-file build/dev.lock
	@$(COMPILE) --extra local --constraint build/dev.lock --output-file build/local.lock
	@$(COMPILE) --constraint build/dev.lock --output-file build/image.lock
	@$(COMPILE) --extra local --extra bench --constraint build/dev.lock --output-file build/bench.lock
	@$(PYTHON) launcher/bootstrap.py join build/image.lock build/local.lock build/dev.lock build/bench.lock
	@$(PYTHON) launcher/bootstrap.py --dev
	@$(LAUNCHER) third-party

clean: ## Remove generated and installed files; keeps the state folder
	@rm -rf build .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

bootstrap:
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) is not installed. Install Python 3.11 or newer, or select one: make up PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) launcher/bootstrap.py

bootstrap-dev:
	@$(PYTHON) launcher/bootstrap.py --dev
