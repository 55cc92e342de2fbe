# `make demo` is the way in; `make help` lists the rest.

PYTHON ?= python3
BIN := .venv/bin
MANAGE := $(BIN)/python manage.py
STAMPS := .stamps
# Tests of one file stay in one process.
PARALLEL := -n auto --maxprocesses 4 --dist loadfile

.PHONY: help demo setup run test test-fast test-postgres lint format bench screenshots clean

help:
	@echo "make demo         set up, run the main job once, then serve (SERVE=0: stop after the prediction)"
	@echo "make setup        install and migrate; then $(MANAGE) ... works"
	@echo "make run          serve web and workers at http://127.0.0.1:8000"
	@echo "make test         all tests, on SQLite and on PostgreSQL where its programs are installed"
	@echo "make lint         formatting, style, types, import direction, templates, migrations"
	@echo "make bench        how fast scans, preparations and trainings are, beside what this machine could do at best"
	@echo "make screenshots  the pictures of the README, from a running demo's own journey"

demo: setup
	$(MANAGE) demo
ifneq ($(SERVE),0)
	@echo "Serving at http://$${BIND:-127.0.0.1:8000} (Ctrl-C stops)"
	$(BIN)/honcho start
endif

setup: $(STAMPS)/python $(STAMPS)/node .env $(STAMPS)/static
	$(MANAGE) migrate --noinput --verbosity 0
	$(MANAGE) init_platform

run: setup
	$(BIN)/honcho start

$(STAMPS)/python: requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || \
	    { echo "Python 3.11 is needed; set PYTHON=/path/to/python3.11"; exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || \
	    { echo "Python's venv is missing; it comes with: apt-get install python3-venv"; \
	      test "$$(id -u)" = 0 && apt-get install -q -y python3-venv; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.txt
	@mkdir -p $(STAMPS) && touch $@

$(STAMPS)/dev: requirements-dev.txt $(STAMPS)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-dev.txt
	@mkdir -p $(STAMPS) && touch $@

$(STAMPS)/node: package-lock.json $(STAMPS)/python
	PATH="$(CURDIR)/$(BIN):$$PATH" npm ci --silent
	@mkdir -p $(STAMPS) && touch $@

$(STAMPS)/static: $(STAMPS)/python $(STAMPS)/node .env $(wildcard static/*)
	$(MANAGE) collectstatic --noinput --verbosity 0
	@touch $@

.env:
	@umask 077 && $(PYTHON) -c 'import secrets; print("SECRET_KEY=" + secrets.token_urlsafe(50))' > .env
	@echo "Wrote .env with a random SECRET_KEY"

# Journeys have the machine to themselves: they start real workers and watch the clock.
test: $(STAMPS)/dev $(STAMPS)/node
	$(BIN)/python -m pytest -m "not slow" $(PARALLEL)
	$(BIN)/python -m pytest -m slow
	$(BIN)/python -m tests.postgres

test-fast: $(STAMPS)/dev $(STAMPS)/node
	$(BIN)/python -m pytest -m "not slow" $(PARALLEL)

test-postgres: $(STAMPS)/dev $(STAMPS)/node
	$(BIN)/python -m tests.postgres

lint: $(STAMPS)/dev $(STAMPS)/node
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/djade --check --target-version 5.2 $$(git ls-files 'templates/*.html')
	SECRET_KEY=lint $(MANAGE) makemigrations --check --dry-run
	SECRET_KEY=lint $(MANAGE) check --fail-level WARNING

format: $(STAMPS)/dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: setup
	$(MANAGE) benchmark scan
	$(MANAGE) benchmark prepare
	$(MANAGE) benchmark train
	$(MANAGE) benchmark evaluate

screenshots: $(STAMPS)/dev $(STAMPS)/node
	$(BIN)/python -m tests.journey.screenshots docs/screenshots

clean:
	rm -rf .venv node_modules staticfiles $(STAMPS)
