# Each target prepares .venv by itself, from the hashed lists, and again only when they change.
# Needs Python 3.11 to 3.13 and make, nothing else.

VENV := .venv
BIN := $(VENV)/bin
STAMPS := $(VENV)/.stamps
SUPPORTED := import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))

# The first Python here that Backlot supports; say `make PYTHON=/path/to/python3.12 …` for another.
ifndef PYTHON
PYTHON := $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c '$(SUPPORTED)' 2>/dev/null && echo $$p && break; done)
endif

# Compiled modules are kept, wherever else they are not: many short programs run here.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help up demo test chaos check format examples pictures bench lock clients sbom audit clean

help: ## Show this list
	@sed -n 's/^\([a-z]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 14

up: $(STAMPS)/run ## Start Backlot: http://127.0.0.1:8000, data in ./.backlot (see .env.example)
	@exec $(BIN)/backlot up

demo: $(STAMPS)/run ## Play the demo, on a server of its own when none answers
	@exec $(BIN)/backlot demo --start $(ARGS)

# In another order each time; the first lines tell its seed, for ARGS="--randomly-seed=…". In four
# processes, also on fewer cores: many tests wait for servers. The slowest tier comes first, which
# reordering by the number of tests would put last.
SHARED := --numprocesses=4 --dist=loadfile --no-loadscope-reorder

test: $(STAMPS)/dev ## Run the tests; ARGS="-k likes" for some
	@exec $(BIN)/pytest $(SHARED) -m "not chaos" $(ARGS)

chaos: $(STAMPS)/dev ## Run the long tests, which kill at random and send whatever comes to mind
	@exec $(BIN)/pytest $(SHARED) -m chaos $(ARGS)

check: $(STAMPS)/dev ## Lint, formatting, types, import rules: what CI runs before the tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMPS)/dev ## Format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

examples: ## Build the example pages of tus and Uppy; needs Node and npm
	@for page in tus uppy; do \
		npm --prefix examples/$$page ci --silent && npm --prefix examples/$$page run --silent build \
		|| exit 1; done

pictures: $(STAMPS)/dev ## Take the README's pictures again, of a demo of its own; needs Chromium
	@$(BIN)/python -m tools.pictures

bench: $(STAMPS)/dev ## Measure; prints a table and keeps it as JSON
	@exec $(BIN)/backlot bench $(ARGS)

lock: $(STAMPS)/dev ## Resolve the dependencies into requirements*.txt; ARGS=--upgrade for newer ones
	@test -x $(BIN)/uv || $(BIN)/pip install --quiet uv
	$(BIN)/uv pip compile $(RESOLVE) $(ARGS) pyproject.toml --group build -o requirements.txt
	$(BIN)/uv pip compile $(RESOLVE) $(ARGS) pyproject.toml -c requirements.txt --group dev \
		-o requirements-dev.txt
	$(BIN)/uv pip compile $(RESOLVE) $(ARGS) clients/python/requirements.in \
		-o clients/python/requirements.txt

RESOLVE := --quiet --universal --python-version 3.11 --generate-hashes \
	--no-emit-index-url --no-header

PYTHON_CLIENT := clients/python
TYPESCRIPT_CLIENT := clients/typescript

INSTALLED := $(PYTHON_CLIENT)/.venv/.installed $(TYPESCRIPT_CLIENT)/node_modules/.installed

clients: $(STAMPS)/run $(INSTALLED) ## Generate and check the clients of the API, in clients/ (needs Node 20 and npm)
	@$(BIN)/backlot openapi > clients/openapi.json
	@cd $(PYTHON_CLIENT) && .venv/bin/openapi-python-client generate --path ../openapi.json \
		--config generator.yaml --meta none --output-path backlot_client/generated \
		--overwrite --fail-on-warning
	@cd $(TYPESCRIPT_CLIENT) && npm run --silent generate -- --silent
	@cd $(PYTHON_CLIENT) && .venv/bin/mypy --strict backlot_client examples tests
	@cd $(TYPESCRIPT_CLIENT) && npm run --silent build

$(PYTHON_CLIENT)/.venv/.installed: $(PYTHON_CLIENT)/requirements.txt $(STAMPS)/python
	@echo "Installing what the Python client needs ($<) …"
	@$(BIN)/python -m venv --clear $(@D)
	@$(@D)/bin/pip install --quiet --disable-pip-version-check --require-hashes -r $<
	@touch $@

$(TYPESCRIPT_CLIENT)/node_modules/.installed: $(TYPESCRIPT_CLIENT)/package-lock.json
	@command -v npm >/dev/null || { \
		echo "npm is not installed: apt install nodejs npm" >&2; exit 1; }
	@echo "Installing what the TypeScript client needs ($<) …"
	@cd $(TYPESCRIPT_CLIENT) && npm ci --silent
	@touch $@

sbom: $(STAMPS)/dev ## List what Backlot is made of: build/sbom.json, CycloneDX
	@mkdir -p build
	@PYTHONWARNINGS=ignore $(BIN)/cyclonedx-py requirements requirements.txt \
		--pyproject pyproject.toml --output-reproducible --sv 1.6 --of JSON -o build/sbom.json

audit: $(STAMPS)/dev ## Ask for known faults of it; fails too where nobody could be asked
	@$(BIN)/python -m tools.audit requirements.txt

clean: ## Remove the environment and caches; data stays
	rm -rf $(VENV) .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache

# An environment that still works is kept; one whose Python is gone or unsupported is made anew.
$(STAMPS)/python:
	@$(if $(PYTHON),:,echo "No Python 3.11 to 3.13 found: install one, or say make PYTHON=…" >&2; exit 1)
	@$(PYTHON) -c '$(SUPPORTED)' 2>/dev/null || { \
		echo "$(PYTHON) is not Python 3.11 to 3.13: say make PYTHON=/path/to/another" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
		echo "$(PYTHON) lacks its venv module: apt install python3-venv" >&2; exit 1; }
	@$(BIN)/python -c '$(SUPPORTED)' 2>/dev/null || { \
		echo "Making $(VENV) with $$($(PYTHON) --version) …" && $(PYTHON) -m venv --clear $(VENV); }
	@mkdir -p $(STAMPS) && touch $@

$(STAMPS)/run: $(STAMPS)/python requirements.txt pyproject.toml
	@echo "Installing what Backlot needs (requirements.txt) …"
	@$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements.txt
	@$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

$(STAMPS)/dev: $(STAMPS)/run requirements-dev.txt
	@echo "Installing what its development needs (requirements-dev.txt) …"
	@$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements-dev.txt
	@touch $@
