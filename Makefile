# `make demo` trains the example with a live page; `make test` runs the tests. Both set up what they need.
PYTHON ?= python3
BIN := .venv/bin
NAME ?= overhead
unexport PYTHONDONTWRITEBYTECODE  # or each of many processes would compile Trimtab again, for half a second
QUIETLY := --quiet --disable-pip-version-check -c constraints.txt

.PHONY: setup demo test reliability lint bench docs web dist clean

setup: .venv/ready

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or later is needed: make PYTHON=python3.11 …" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install $(QUIETLY) torch
	$(BIN)/python -m pip install $(QUIETLY) -e '.[dev,examples,export]'
	touch $@

demo: setup
	$(BIN)/trimtab run examples/bytes_lm.py --workers 2 --policy noise_scale --policy warmup --policy plateau --open

test: setup
	$(BIN)/python -m pytest -n 2

LONG := api/test_crowd.py api/test_fuzz.py controller/journal/test_crash.py controller/journal/test_power_cut.py \
	controller/test_adversary.py controller/test_takeover.py controller/policies/test_third_party.py \
	deploy/test_cluster.py deploy/test_operations.py workers/test_chaos.py

reliability: setup  # the long sizes of the suites in docs/reliability.md: three quarters of an hour
	TRIMTAB_LONG=1 $(BIN)/python -m pytest -rP $(addprefix tests/,$(LONG))
	$(BIN)/python tests/api/kills.py 2000

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: setup
	$(BIN)/python tests/bench/$(NAME).py

docs: setup
	$(BIN)/python -m trimtab.controller.policies.table > docs/policies.md

web:
	cd dashboards/web && npm ci && npm run check && npm test && npm run build

dist: setup  # the page in it is what `make web` last built
	rm -rf dist
	$(BIN)/python -m build --no-isolation --outdir dist .
	cp constraints.txt dist

clean:
	rm -rf .venv dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
