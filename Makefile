# Python 3.10 or newer, make and a network are all that a fresh clone needs.
#
# Every target installs what it needs into $(VENV), through constraints.txt, and again when pyproject.toml or
# constraints.txt have changed. Another Python:  make test PYTHON=python3.12 VENV=.venv-3.12
# One has an environment of its own: test-xla, whose versions are in tests/xla/requirements.txt.

PYTHON ?= python3
VENV ?= .venv
XLA_VENV ?= .venv-xla
BIN = $(VENV)/bin
# DS_BUILD_OPS=0: DeepSpeed without its CUDA operations, which need a compiler.
PIP = DS_BUILD_OPS=0 $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
# One thread: the tests are of small tensors, and more threads only wait for each other. -rs: say what is skipped.
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -rs
# More arguments for pytest:  make test-slow ARGS="-k docs"
ARGS =

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow test-distributed test-architectures test-xla test-pages examples coverage lint format types docs bench dist clean
.DELETE_ON_ERROR:

help: ## List the targets
	@echo "Targets of make, each of which sets up its own environment:"
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-18s %s\n", $$1, $$2 }' Makefile

demo: $(VENV)/.with-examples ## Train with and without the callback, compare, and draw demo/quickstart.png
	$(BIN)/python examples/quickstart.py --out demo/quickstart.png

test: $(VENV)/.with-test ## Run the tests, all but the slow and the distributed ones and architectures, with coverage
	$(PYTEST) -m "not slow and not distributed and not pages and not architectures" --cov --cov-report=term-missing:skip-covered --cov-fail-under=95 $(ARGS)

test-slow: $(VENV)/.with-test ## Run the tests that take longer than some ten seconds each
	$(PYTEST) -m "slow and not distributed and not pages and not architectures" $(ARGS)

test-distributed: $(VENV)/.with-test-distributed ## Run the tests that start several processes
	$(PYTEST) -m distributed $(ARGS)

test-xla: $(XLA_VENV)/.with-xla ## Run the tests on XLA, on a CPU, in an environment of their own
	OMP_NUM_THREADS=1 $(XLA_VENV)/bin/python -m pytest -rs tests/xla $(ARGS)

test-architectures: $(VENV)/.with-test ## Train models of transformers, and hold what is known of all its architectures against the graph (an hour)
	$(PYTEST) -m architectures tests/architectures $(ARGS)

test-pages: $(VENV)/.with-pages ## Open every page of the documentation in the system's Chromium, wide and narrow, without a network
	$(PYTEST) -m pages tests/pages $(ARGS)

examples: $(VENV)/.with-test ## Run the tests of the examples, each of which runs one on little data
	$(PYTEST) tests/examples $(ARGS)

coverage: $(VENV)/.with-test ## Run the same as test, and write a browsable report to htmlcov/
	$(PYTEST) -m "not slow and not distributed and not pages and not architectures" --cov --cov-report=term --cov-report=html $(ARGS)

lint: $(VENV)/.with-lint ## Check style and format with ruff, and which way imports go
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

format: $(VENV)/.with-lint ## Let ruff correct style and format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(VENV)/.with-lint ## Check types with mypy, strictly
	$(BIN)/mypy

docs: $(VENV)/.with-docs ## Build the documentation, run its examples; warnings are errors
	$(BIN)/python -m sphinx -q -W --keep-going -b html docs docs/_build/html
	$(BIN)/python -m sphinx -q -W --keep-going -b doctest docs docs/_build/doctest
	@echo "The documentation is in docs/_build/html/index.html."

bench: $(VENV)/.with-bench ## Measure what the callback costs
	$(BIN)/python -m benchmarks

dist: $(VENV)/.with-dist ## Build the source distribution and the wheel, and check both
	rm -rf dist
	$(BIN)/python -m build
	$(BIN)/python -m twine check --strict dist/*

clean: ## Remove the environment and everything that was built
	rm -rf $(VENV) $(XLA_VENV) build dist htmlcov .coverage demo docs/_build .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# One stamp for each extra of pyproject.toml; the virtual environment comes first.
$(VENV)/.with-%: pyproject.toml constraints.txt | $(VENV)/.created
	@echo "Installing lightning-gc[$*] into $(VENV); the first time takes a minute or two."
	$(PIP) --editable '.[$*]'
	@touch $@

# torch_xla takes one version of torch, of which there is a CUDA build only: its CUDA packages, some gigabytes that a CPU
# has no use for, are replaced by a stub, which needs gcc.
$(XLA_VENV)/.with-xla: tests/xla/requirements.txt tests/xla/cuda_stubs.py | $(XLA_VENV)/.created
	@echo "Installing torch_xla and its torch into $(XLA_VENV): a gigabyte, once."
	$(XLA_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r $<
	$(XLA_VENV)/bin/python tests/xla/cuda_stubs.py $(XLA_VENV)/lib/python3*/site-packages/torch/lib
	@touch $@

$(VENV)/.created $(XLA_VENV)/.created: %/.created:
	$(PYTHON) -m venv $*
	@touch $@
