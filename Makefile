# Everything runs in an environment of its own, .venv, made on first use.

VENV := .venv
BIN := $(VENV)/bin
FITS := import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3.10 python3 python; do \
	"$$p" -c '$(FITS)' 2>/dev/null && echo "$$p" && break; done)
PYTEST_ARGS ?= -n 2

.PHONY: help demo study faults bench test oldest audit check docs format screenshots clean

help:
	@echo 'make demo         train three networks on real digits and see them in TensorBoard'
	@echo 'make study        test the claims of the text: train 275 networks, write docs/study.md (some minutes)'
	@echo 'make bench        measure what measuring costs, write docs/overhead.md (a quarter of an hour; BENCH_ARGS=--quick)'
	@echo 'make faults       kill, fill, cut, fuzz, load: what becomes of training and records, in docs/faults.md (half an hour)'
	@echo 'make test         run the tests (PYTEST_ARGS="-n 2")'
	@echo 'make oldest       the same, but for browser and processes, with the oldest versions that setup.cfg allows'
	@echo 'make audit        ask for known weaknesses of what is installed; never fails'
	@echo 'make check        run the linters (ruff, pyright) and build the documentation'
	@echo 'make docs         build the documentation into site/'
	@echo 'make format       let ruff format the code'
	@echo 'make screenshots  draw docs/screenshots from the runs of make demo and one of four replicas'
	@echo 'make clean        delete the environment, the runs and all that was built'

demo: $(VENV)/.demo
	rm -rf runs/demo
	$(BIN)/python -m tapescope_trainers.demo runs/demo

study: $(VENV)/.demo
	$(BIN)/python -m tapescope_trainers.study --logdir=runs/study --table=docs/study.md

bench: $(VENV)/.dev
	$(BIN)/python -m bench.cost $(BENCH_ARGS)

faults: $(VENV)/.dev
	$(BIN)/python -m bench.faults --table=docs/faults.md

test: $(VENV)/.dev
	$(BIN)/python -m pytest $(PYTEST_ARGS)

# Python 3.10 or 3.11: of later ones the oldest pandas has no wheel.
oldest:
	"$(PYTHON)" -m venv $(VENV)-oldest
	"$(PYTHON)" scripts/oldest.py >$(VENV)-oldest/oldest.txt
	$(VENV)-oldest/bin/python -m pip install --quiet --constraint=$(VENV)-oldest/oldest.txt --editable '.[trainers,test]'
	$(VENV)-oldest/bin/python -m pytest $(PYTEST_ARGS) -m 'not slow and not browser' tests/instrument tests/plugin

audit: $(VENV)/.dev
	$(BIN)/python scripts/audit.py

check: $(VENV)/.dev docs
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

docs: $(VENV)/.dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

screenshots: $(VENV)/.dev
	test -d runs/demo/four_replicas || $(BIN)/python -m tapescope_trainers.train --logdir=runs/demo/four_replicas \
		--preset=mlp --strategy=mirrored --devices=cpu:4 --steps=600 --measure_every=5
	$(BIN)/python scripts/screenshots.py runs/demo docs/screenshots

clean:
	rm -rf $(VENV) $(VENV)-oldest runs site build dist *.egg-info .pytest_cache .ruff_cache tests/artifacts
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamps say what is installed: only a change of what is needed installs again.
$(VENV)/.demo: setup.cfg pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable '.[trainers]'
	@touch $@

$(VENV)/.dev: setup.cfg pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable '.[trainers,test,docs,dev]'
	@touch $@ $(VENV)/.demo

$(BIN)/python:
	@test -n "$(PYTHON)" && "$(PYTHON)" -c '$(FITS)' || { echo "TensorFlow has wheels for Python 3.10 to 3.13 only, \
	and $(or $(PYTHON),none of these) is what was found: install one of them, or make PYTHON=/path/to/python3.11" >&2; exit 1; }
	"$(PYTHON)" -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
