# Every target runs in the virtual environment .venv, which is created on first use.

VENV := .venv
BIN := $(VENV)/bin
FITS := import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3.10 python3 python; do \
	"$$p" -c '$(FITS)' 2>/dev/null && echo "$$p" && break; done)
PYTEST_ARGS ?= -n 2 --dist worksteal

.PHONY: help demo study faults bench corpus test coverage oldest matrix audit check docs format screenshots clean

help:
	@echo 'make demo         Train three networks on real digits and watch them in TensorBoard'
	@echo 'make study        Test the claims of docs/study.md: train 275 networks (some minutes)'
	@echo 'make bench        Measure what a measured step costs; write docs/overhead.md (25 minutes; BENCH_ARGS=--quick)'
	@echo 'make faults       Kill, fill disks, cut files, fuzz, load; write docs/faults.md (half an hour)'
	@echo 'make corpus       Train 83 programs plainly and measured; write docs/corpus.md (half an hour)'
	@echo 'make test         Run the tests in two processes (PYTEST_ARGS="-n 2 -k flags" for some of them)'
	@echo 'make coverage     Run the tests and print which lines they do not reach'
	@echo 'make oldest       Run the fast tests on the oldest versions that setup.cfg allows'
	@echo 'make matrix       Run the tests on each TensorFlow from 2.16 to 2.22; write docs/compatibility.md (half an hour)'
	@echo 'make audit        Check installed packages for known vulnerabilities (informational)'
	@echo 'make check        Run the linters (ruff, words, pyright) and build the documentation'
	@echo 'make docs         Build the documentation into site/'
	@echo 'make format       Format the code with ruff'
	@echo 'make screenshots  Draw docs/screenshots from the runs of make demo and a run of four replicas'
	@echo 'make clean        Delete the environment, the runs and everything that was built'

demo: $(VENV)/.demo
	rm -rf runs/demo
	$(BIN)/python -m tapescope_trainers.demo runs/demo

study: $(VENV)/.demo
	$(BIN)/python -m tapescope_trainers.study --logdir=runs/study --table=docs/study.md

bench: $(VENV)/.dev
	$(BIN)/python -m bench.cost $(BENCH_ARGS)

faults: $(VENV)/.dev
	$(BIN)/python -m bench.faults --table=docs/faults.md

corpus: $(VENV)/.dev
	$(BIN)/python -m tests.corpus --page=docs/corpus.md

test: $(VENV)/.dev
	$(BIN)/python -m pytest $(PYTEST_ARGS)

coverage: $(VENV)/.dev
	$(BIN)/python -m pytest $(PYTEST_ARGS) --cov --cov-report=term

# Python 3.10 or 3.11: the oldest pandas has no wheel for a later Python.
oldest:
	"$(PYTHON)" -m venv $(VENV)-oldest
	"$(PYTHON)" scripts/oldest.py >$(VENV)-oldest/oldest.txt
	$(VENV)-oldest/bin/python -m pip install --quiet --constraint=$(VENV)-oldest/oldest.txt --editable '.[trainers,test]'
	$(VENV)-oldest/bin/python -m pytest $(PYTEST_ARGS) -m 'not process and not browser and not nightly' tests/instrument tests/plugin

# An environment of about 2 GB for each version, in a temporary directory (MATRIX_ARGS="2.19 --keep" for one of them).
matrix:
	"$(PYTHON)" scripts/matrix.py $(MATRIX_ARGS)

audit: $(VENV)/.dev
	$(BIN)/python scripts/audit.py

check: $(VENV)/.dev docs
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python scripts/words.py
	$(BIN)/pyright

docs: $(VENV)/.dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

screenshots: $(VENV)/.dev
	test -d runs/demo/four_replicas || $(BIN)/python -m tapescope_trainers.train --logdir=runs/demo/four_replicas \
		--preset=mlp --strategy=mirrored --devices=cpu:4 --steps=4000 --measure_every=50
	$(BIN)/python scripts/screenshots.py runs/demo docs/screenshots

clean:
	rm -rf $(VENV) $(VENV)-oldest runs site build dist *.egg-info .pytest_cache .ruff_cache .coverage tests/artifacts
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamps record what is installed: pip runs again only when setup.cfg or pyproject.toml changed.
$(VENV)/.demo: setup.cfg pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable '.[trainers]'
	@touch $@

$(VENV)/.dev: setup.cfg pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable '.[trainers,test,docs,dev]'
	@touch $@ $(VENV)/.demo

$(BIN)/python:
	@test -n "$(PYTHON)" && "$(PYTHON)" -c '$(FITS)' || { echo "TensorFlow has wheels for Python 3.10 to 3.13 only; \
	found $(or $(PYTHON),no such Python). Install one of them, or run make PYTHON=/path/to/python3.11" >&2; exit 1; }
	"$(PYTHON)" -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
