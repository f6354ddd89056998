# The verbs of Photomesh. `make help` lists them.

PYTHON ?= python3
RUN := PYTHONPATH=.:gen .venv/bin/python
STACK := $(RUN) -m deploy.local
# How many processes run tests; each has a stack of its own.
WORKERS ?= 2

.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

.PHONY: help
help: ## Lists the verbs
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: venv
venv: ## Makes .venv from requirements.lock, if it is not so already
	@$(PYTHON) deploy/local/bootstrap.py

.PHONY: up
up: venv ## Starts the whole mesh and waits until it is healthy
	@$(STACK) up

.PHONY: down
down: venv ## Stops the mesh; data stay
	@$(STACK) down

.PHONY: status
status: venv ## Shows what runs where
	@$(STACK) status

.PHONY: logs
logs: venv ## Follows a log: make logs SERVICE=feed
	@test -n "$(SERVICE)" || { echo "Which one? make logs SERVICE=feed"; exit 2; }
	@$(STACK) logs --follow $(SERVICE)

.PHONY: env
env: venv ## Prints where everything is, for a shell: eval "$$(make -s env)"
	@$(STACK) env

.PHONY: clean
clean: venv ## Stops the mesh and removes var/ with all data (YES=1: does not ask)
	@$(STACK) clean $(if $(YES),--yes)

.PHONY: demo
demo: venv ## Shows the main job: make demo [PHOTOS=folder] [GRAPH=edges.txt]
	@$(RUN) -m deploy.demo $(if $(PHOTOS),--photos "$(PHOTOS)") $(if $(GRAPH),--graph "$(GRAPH)")

.PHONY: gen
gen: venv ## Generates gen/ from protos/
	@.venv/bin/python protos/generate.py

.PHONY: service
service: venv ## Writes the skeleton of a new service: make service NAME=bookmark
	@$(RUN) -m deploy.skeleton $(NAME)

.PHONY: lock
lock: venv ## Resolves pyproject.toml anew into requirements.lock
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
test: lint ## Checks everything, on a stack of its own for each worker (ARGS="-k feed" chooses tests)
	@# A file is one worker's, and files go out in their order, so that a folder's databases are shared.
	@$(RUN) -m pytest -q -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(ARGS)

.PHONY: bench
bench: venv ## Prints how fast things are, as ratios (BENCH=pipeline for one, BENCH="--help")
	@$(RUN) -m loadtest $(BENCH)

.PHONY: prove
prove: venv ## Runs the long proofs: each process and part is killed 20 times (PHOTOMESH_CRASHES=N), ARGS as for test
	@PHOTOMESH_CRASHES=$${PHOTOMESH_CRASHES:-20} PHOTOMESH_EXAMPLES=$${PHOTOMESH_EXAMPLES:-2000} \
		PHOTOMESH_PROVE=1 \
		$(RUN) -m pytest -q -m prove $(ARGS)
