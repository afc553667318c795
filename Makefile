# What can be done with this repository; `make` alone lists it. Needs Debian (or the like), make and Python 3.11 to 3.13.
PYTHON ?= python3
VENV ?= .venv
JOBS ?= 2
ARGS ?=

RUN := $(VENV)/bin/python
PIP := $(RUN) -m pip --disable-pip-version-check
SOURCES := amesh_django cli relay_project tests manage.py .ci/installed.py
# Prints all extras, with commas.
EXTRAS := import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"], sep=",")

# The tests start hundreds of Python programs: compiling our modules anew in each of them would cost a quarter of all time.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help
help: ## list the targets
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/make \1\t\2/p' Makefile | expand -t 20

.PHONY: venv
venv: $(VENV)/.ready ## make the virtual environment $(VENV) with $(PYTHON)

$(VENV)/.ready: pyproject.toml constraints.txt
	@.ci/system venv $(PYTHON)
	@$(RUN) -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	$(PIP) install --quiet --constraint constraints.txt --upgrade pip
	$(PIP) install --quiet --constraint constraints.txt --group dev --editable ".[$$($(RUN) -c '$(EXTRAS)')]"
	@touch $@

.PHONY: system
system: ## install the Debian packages that the tests need
	@.ci/system tests

.PHONY: test
test: system venv ## run every test; ARGS="-k name" picks some
	$(RUN) -m pytest -n $(JOBS) --dist worksteal $(ARGS)

.PHONY: quick
quick: venv ## run in under a minute the tests that start no process; what one runs while working
	$(RUN) -m pytest -q -n $(JOBS) --dist worksteal -m "not process and not slow" $(ARGS)

.PHONY: demo
demo: venv ## show the main job for real; KEEP=1 leaves the server up, BACKEND=tpm2 keeps all keys in the TPM
	$(RUN) manage.py amesh_demo $(if $(KEEP),--keep) $(if $(BACKEND),--backend $(BACKEND))

.PHONY: bench
bench: system venv ## measure, beside the peers
	$(RUN) -m tests.bench $(ARGS)

.PHONY: soak
soak: system venv ## revoke at a hub of 20 servers for five minutes, while calls fail and workers are killed
	$(RUN) -m tests.soak $(ARGS)

.PHONY: pictures
pictures: system venv ## take the pictures of the documents again, of the fleet of make demo KEEP=1
	$(RUN) -m tests.pictures

.PHONY: lint
lint: venv ## style, types, import contract, migrations
	$(RUN) -m ruff check $(SOURCES)
	$(RUN) -m ruff format --check $(SOURCES)
	$(RUN) -m mypy
	$(VENV)/bin/lint-imports
	DJANGO_SETTINGS_MODULE=tests.settings $(RUN) -m django makemigrations --check --dry-run

.PHONY: format
format: venv ## put the sources into the one style
	$(RUN) -m ruff check --fix --exit-zero --quiet $(SOURCES)
	$(RUN) -m ruff format $(SOURCES)

.PHONY: migrations
migrations: venv ## write the migrations that the models ask for
	DJANGO_SETTINGS_MODULE=tests.settings $(RUN) -m django makemigrations amesh

# The newest versions of everything, for the oldest and the newest pair. Only Django may differ between them for long.
OLDEST ?= python3.11
NEWEST ?= python3.13
.PHONY: constraints
constraints: ## write constraints.txt with the newest versions for $(OLDEST) and $(NEWEST)
	rm -rf .venv-constraints
	for python in $(OLDEST) $(NEWEST); do \
	    $$python -m venv .venv-constraints/$${python##*/} || exit 1; \
	    pip="$$PWD/.venv-constraints/$${python##*/}/bin/python -m pip"; \
	    $$pip install --quiet --upgrade pip || exit 1; \
	    $$pip install --quiet --group dev --editable ".[$$($$python -c '$(EXTRAS)')]" || exit 1; \
	    $$pip freeze --all --exclude setuptools --exclude-editable | LC_ALL=C sort >.venv-constraints/$${python##*/}.txt; \
	done
	cd .venv-constraints && { \
	    echo '# The versions that the tests ran with. Made by `make constraints`.'; \
	    { LC_ALL=C comm -12 $(notdir $(OLDEST)).txt $(notdir $(NEWEST)).txt; \
	      LC_ALL=C comm -23 $(notdir $(OLDEST)).txt $(notdir $(NEWEST)).txt | sed 's/$$/ ; python_version < "3.12"/'; \
	      LC_ALL=C comm -13 $(notdir $(OLDEST)).txt $(notdir $(NEWEST)).txt | sed 's/$$/ ; python_version >= "3.12"/'; } \
	    | sort -f; } >../constraints.txt
	rm -rf .venv-constraints

.PHONY: clean
clean: ## remove all that these targets made
	rm -rf .venv .venv-* build dist .demo .bench .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find amesh_django cli relay_project tests -name __pycache__ -prune -exec rm -rf {} + 2>/dev/null || true
