# `make help` lists the targets. Each does its own set-up; variables go on the command line: make demo BROKER=amqp://
.DEFAULT_GOAL := help
.PHONY: help demo demo-plain test test-long lint chaos bench bench-fleet bench-storm bench-letters coverage mutants build clean

VENV ?= .venv
PYTHON ?=
BROKER ?=
PLAIN ?=
PYTEST_ARGS ?=
MUTANTS ?=
MINUTES ?= 60
SEED ?= 1
STORE ?= redis
SOAK_ARGS ?=
# Three test processes a core: a test with a real worker mostly waits.
JOBS ?= 6

# Hundreds of workers are started: where the environment forbids to keep compiled modules, each would compile ours anew.
unexport PYTHONDONTWRITEBYTECODE

BIN := $(VENV)/bin
BOOTSTRAP := PYTHON='$(PYTHON)' tools/bootstrap '$(VENV)'
DEMO := $(BIN)/python -m example_project.demo $(if $(BROKER),--broker '$(BROKER)')
# Under make a missing broker fails a test instead of skipping it.
PYTEST := GUARDRAILS_TEST_REQUIRE_BROKERS=1 $(BIN)/python -m pytest

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: ## See it work: a small shop on a private Redis, its workers killed (BROKER=amqp://… or redis://…)
	@$(BOOTSTRAP) demo
	@$(DEMO)$(if $(PLAIN), --plain)

demo-plain: ## The same shop on plain Celery, to see what is lost
	@$(BOOTSTRAP) demo
	@$(DEMO) --plain

test: ## Lint, types, architecture and the tests, all but the long ones (PYTEST_ARGS=…, JOBS=1)
	@$(MAKE) --no-print-directory lint
	@$(BIN)/python -m tests.support.provision
	$(PYTEST) -n $(JOBS) -m 'not chaos' $(PYTEST_ARGS)

lint: ## ruff, mypy and import-linter
	@$(BOOTSTRAP) test lint
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test-long: ## Only the long tests (marker chaos), which kill, stop and cut off real processes
	@$(BOOTSTRAP) test lint
	@$(BIN)/python -m tests.support.provision
	$(PYTEST) -m chaos $(PYTEST_ARGS)

chaos: ## The soak: an hour of random deaths under load, audited (MINUTES=5 SEED=1 BROKER=redis|amqp|both STORE=redis|sqlite|postgres)
	@$(BOOTSTRAP) test lint
	@$(BIN)/python -m tests.support.provision
	$(BIN)/python -m tests.chaos.soak --minutes '$(MINUTES)' --seed '$(SEED)' --broker '$(or $(BROKER),both)' --store '$(STORE)' $(SOAK_ARGS)

bench: ## The measurements behind the numbers in the documentation
	@$(BOOTSTRAP) test lint
	@$(BIN)/python -m tests.support.provision
	$(BIN)/python -m benchmarks

bench-fleet: ## Ten thousand simulated workers and an outage: figures and picture for docs/fleet.md (two minutes)
	@$(BOOTSTRAP) bench
	$(BIN)/python -m benchmarks.fleet

bench-storm: ## A dependency slows, fails for a minute, heals: figures and picture for docs/storm.md (ten minutes)
	@$(BOOTSTRAP) test bench
	$(BIN)/python -m benchmarks.storm --json docs/images/storm.json --plot docs/images/storm

bench-letters: ## Dead letters grouped and replayed by the hundred thousand, against a bare publisher (three minutes)
	@$(BOOTSTRAP) test lint
	@$(BIN)/python -m tests.support.provision
	$(BIN)/python -m benchmarks.letters

coverage: ## Every test under coverage, workers included
	@$(BOOTSTRAP) test lint
	@$(BIN)/python -m tests.support.provision
	$(BIN)/coverage erase
	GUARDRAILS_TEST_REQUIRE_BROKERS=1 $(BIN)/coverage run -m pytest $(PYTEST_ARGS)
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

mutants: JOBS = 2
mutants: ## Mutation testing of the policy and the Lua scripts (MUTANTS=policy/lease.py, JOBS=2; docs/mutants.md)
	@$(BOOTSTRAP) test lint
	$(BIN)/python -m tests.mutation --jobs $(JOBS) $(MUTANTS)

build: ## Wheel and sdist in dist/
	@$(BOOTSTRAP) test lint
	$(BIN)/python -m pip install --quiet --disable-pip-version-check 'build>=1.2'
	$(BIN)/python -m build

clean: ## Remove everything that was made here
	rm -rf '$(VENV)' build dist .coverage .coverage.* .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache .tox
	find celery_guardrails tests benchmarks example_project -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true
