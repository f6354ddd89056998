# The commands of Photomesh. `make help` lists them.

PYTHON ?= python3
RUN := PYTHONPATH=.:gen .venv/bin/python
STACK := $(RUN) -m deploy.local
# The number of processes that run tests, each with its own stack.
WORKERS ?= 2

.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

.PHONY: help
help: ## Lists the commands
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: venv
venv: ## Creates or updates .venv from requirements.lock
	@$(PYTHON) deploy/local/bootstrap.py

.PHONY: up
up: venv ## Starts the whole mesh and waits until it is healthy
	@$(STACK) up

.PHONY: down
down: venv ## Stops the mesh and keeps its data
	@$(STACK) down

.PHONY: status
status: venv ## Shows the state, address and log of each process
	@$(STACK) status

.PHONY: logs
logs: venv ## Follows the log of a service: make logs SERVICE=feed
	@test -n "$(SERVICE)" || { echo "Name a service: make logs SERVICE=feed"; exit 2; }
	@$(STACK) logs --follow $(SERVICE)

.PHONY: env
env: venv ## Prints all addresses as shell variables, to be read with eval
	@$(STACK) env

.PHONY: clean
clean: venv ## Stops the mesh and removes var/ with all data (YES=1: without confirmation)
	@$(STACK) clean $(if $(YES),--yes)

.PHONY: demo
demo: venv ## Signs people up, uploads photos and shows a feed: make demo [PHOTOS=folder] [GRAPH=edges.txt]
	@$(RUN) -m deploy.demo $(if $(PHOTOS),--photos "$(PHOTOS)") $(if $(GRAPH),--graph "$(GRAPH)")

.PHONY: gen
gen: venv ## Generates gen/ from protos/
	@.venv/bin/python protos/generate.py

.PHONY: service
service: venv ## Creates a new service from a template: make service NAME=bookmark
	@$(RUN) -m deploy.skeleton $(NAME)

.PHONY: lock
lock: venv ## Resolves the dependencies in pyproject.toml into requirements.lock
	@.venv/bin/uv pip compile --quiet --universal --python-version 3.11 --all-extras \
		--generate-hashes --no-emit-index-url --no-header --no-annotate \
		pyproject.toml --output-file requirements.lock
	@$(PYTHON) deploy/local/bootstrap.py

.PHONY: lint
lint: venv ## Checks style, types and import rules
	@echo "ruff check"
	@.venv/bin/ruff check --quiet .
	@echo "ruff format --check"
	@.venv/bin/ruff format --check --quiet . || { echo "Run .venv/bin/ruff format"; exit 1; }
	@echo "mypy"
	@PYTHONPATH=.:gen .venv/bin/mypy --no-error-summary
	@echo "lint-imports"
	@kept=$$(PYTHONPATH=.:gen .venv/bin/lint-imports --no-logo) || { echo "$$kept"; exit 1; }

.PHONY: test
test: lint ## Runs lint and all tests (ARGS="-k feed" selects tests)
	@# Each file runs on one worker, and files run in order, so that a folder's tests share databases.
	@$(RUN) -m pytest -q -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(ARGS)

.PHONY: bench
bench: venv ## Runs the benchmarks (BENCH=feed runs one, BENCH=--help lists them)
	@$(RUN) -m loadtest $(BENCH)

.PHONY: prove
prove: venv ## Runs the long tests: kills each process 20 times (PHOTOMESH_CRASHES=N; ARGS as for test)
	@PHOTOMESH_CRASHES=$${PHOTOMESH_CRASHES:-20} PHOTOMESH_EXAMPLES=$${PHOTOMESH_EXAMPLES:-2000} \
		PHOTOMESH_PROVE=1 \
		$(RUN) -m pytest -q -m prove $(ARGS)
