PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# two more than there are cores: many tests wait for processes that they started or killed
WORKERS ?= $(shell $(PYTHON) -c 'import os; print(min(8, 2 + (os.cpu_count() or 1)))')
TRAINING := tests/callbacks tests/composing tests/selection tests/runs/test_run.py \
  tests/sweeps/test_sweep.py::test_a_real_sweep_and_its_ranking

.PHONY: help install demo test test-cpu docs-check wheel-check lowest-check lint format bench study site release clean

help:  ## Show this help
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

$(STAMP): pyproject.toml setup.py
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $(STAMP)

install: $(STAMP)  ## Create .venv and install the package with its development tools

demo: install  ## Train a small real sweep on the bundled digits and rank the policies
	$(BIN)/python run.py --multirun experiment=demo hydra.sweep.dir=multirun/demo
	$(BIN)/lrbench rank multirun/demo

test: install  ## Run every test, the doctests included
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

test-cpu: install  ## Run the tests that train again, computing as a CPU without vector instructions does
	ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal $(TRAINING)

docs-check: install  ## Do what README.md and the guides say, each in a clean copy
	$(BIN)/python -m tests.docs.check

wheel-check: install  ## Use the wheel outside of the checkout, as a stranger would
	$(BIN)/python .ci/wheel_check.py

lowest-check: install  ## Run the analysis tests with the oldest packages that are allowed
	$(BIN)/python .ci/lowest_check.py

lint: install  ## Check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: install  ## Rewrite the code in the project's style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: install  ## Measure speed against named peers
	for f in experiments/benchmarks/[a-z]*.py; do $(BIN)/python $$f || exit 1; done

study: install  ## Run a study of experiments/ again: make study NAME=policies_mnist_lenet ARGS="dataset.root=PATH"
	@test -d "experiments/$(NAME)" -a -n "$(NAME)" || { echo "expected NAME=one of: $$(cd experiments && ls -d [a-z]*/ | tr -d /)"; exit 2; }
	if test -f experiments/$(NAME)/study.yaml; then $(BIN)/python experiments/study.py $(NAME) $(ARGS); \
	else $(BIN)/python experiments/$(NAME)/table.py $(ARGS); fi

$(VENV)-site/.installed: docs/site/requirements.txt
	test -x $(VENV)-site/bin/python || $(PYTHON) -m venv $(VENV)-site
	$(VENV)-site/bin/python -m pip install --quiet --requirement docs/site/requirements.txt
	@touch $@

site: $(VENV)-site/.installed  ## Build the documentation into site/, strictly
	NO_MKDOCS_2_WARNING=1 $(VENV)-site/bin/mkdocs build --strict

$(VENV)-release/.installed: .ci/release.txt
	test -x $(VENV)-release/bin/python || $(PYTHON) -m venv $(VENV)-release
	$(VENV)-release/bin/python -m pip install --quiet --requirement .ci/release.txt
	@touch $@

release: $(VENV)-release/.installed  ## Build sdist and wheel into dist/ and check them; uploads nothing
	$(VENV)-release/bin/python .ci/release.py $(ARGS)

clean:  ## Remove what runs and tools wrote (never .venv or data)
	rm -rf multirun outputs wandb lightning_logs build dist site *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
