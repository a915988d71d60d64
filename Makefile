# Every target sets up what it needs by itself: Python >= 3.11 with pip is all a fresh clone wants.
#
#   make PYTHON=python3.12 test          another interpreter
#   make test PYTEST_ARGS="-k stores"    a part of the tests
#   make demo DEMO_ARGS=--fast           arguments for the demo
#   make soak SEED=1234                  one stream of the random-fault soak alone (SOAK_ARGS=--sockets: over sockets)
#   make mutants MUTANTS="M01 ledger"    some of the deliberate breaks

PYTHON ?= python3
PYTEST_ARGS ?=
# Two for each core, up to 16: many tests wait for a clock, and every process has to collect them all.
PYTEST_JOBS ?= $(shell $(PYTHON) -c 'import os; print(min(2 * (os.cpu_count() or 1), 16))')
DEMO_ARGS ?=
BENCH_ARGS ?=
COMPARE_ARGS ?=
SEED ?=
SOAK_ARGS ?=
MUTANTS ?=

VENV := .venv
BENCH_VENV := .venv-bench
INTEGRATION_VENV := .venv-integration
LITELLM_VENV := .venv-litellm
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
BENCH_STAMP := $(BENCH_VENV)/.installed
INTEGRATION_STAMP := $(INTEGRATION_VENV)/.installed
NODE_DIR := tests/integration/node
NODE_STAMP := $(NODE_DIR)/node_modules/.installed
LITELLM_STAMP := $(LITELLM_VENV)/.installed

# -qq keeps the addresses of the package index out of the output; errors are still shown.
PIP_INSTALL := -m pip install -qq --disable-pip-version-check
PYTEST := $(BIN)/python -m pytest --no-header -q

.DEFAULT_GOAL := help
.PHONY: help dev demo demo-server test test-rules check coverage docs bench capacity compare soak mutants integration integration-litellm chromium redis-server wheel-test clean

help: ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

dev: $(STAMP) ## Set up .venv with the package (editable) and every tool

demo: $(STAMP) ## Watch a stream being cut and continued, without network or keys
	@$(BIN)/resumable-stream demo $(DEMO_ARGS)

demo-server: $(STAMP) ## Watch one generation and three readers, one of them killed, without network or keys
	@$(BIN)/resumable-stream demo --server $(DEMO_ARGS)

test: $(STAMP) ## Run the tests
	@$(PYTEST) -n $(PYTEST_JOBS) --dist worksteal $(PYTEST_ARGS)

test-rules: $(STAMP) ## Run the rules of the core alone, in a few seconds: for every save
	@$(PYTEST) $(PYTEST_ARGS) tests/core/test_rule_*.py

check: $(STAMP) ## Lint, formatting, types, coverage, docs
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --check --quiet . || { echo "not formatted:"; $(BIN)/ruff format --check .; exit 1; }
	@$(BIN)/mypy --no-error-summary
	@out=$$($(BIN)/python scripts/mutants.py --check) || { echo "$$out"; exit 1; }
	@out=$$($(MAKE) --no-print-directory coverage) || { echo "$$out"; exit 1; }
	@$(MAKE) --no-print-directory docs

# Each by its own tests: what only a driver's test reaches is not held by the core. Without the sweeps, which reach a line
# and do not say what it is for. Two processes, since coverage knows nothing of pytest-xdist.
COVERED := $(BIN)/python -m coverage run --parallel-mode -m pytest --no-header -q \
	--ignore-glob='*/test_every_*.py' --ignore-glob='*/test_properties.py' -k "not sockets"

coverage: $(STAMP) ## Measure the core, the framings and the protocols by their own tests
	@rm -f .coverage .coverage.*
	@{ out=$$($(COVERED) tests/protocols) || { echo "$$out"; exit 1; }; } & other=$$!; \
	{ out=$$($(COVERED) tests/core tests/framing) || { echo "$$out"; false; }; }; core=$$?; wait $$other && exit $$core
	@$(BIN)/python -m coverage combine --quiet
	@$(BIN)/python -m coverage report

# Not --quiet: it hides the warnings from --strict too.
docs: $(STAMP) ## Build the documentation into site/
	@out=$$(NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict 2>&1) || { echo "$$out"; exit 1; }

bench: $(BENCH_STAMP) ## Measure against other clients and servers (own environment)
	@$(BENCH_VENV)/bin/python benchmarks/run.py $(BENCH_ARGS)

capacity: $(BENCH_STAMP) ## Measure what one server carries, and write docs/server/capacity.md
	@$(BENCH_VENV)/bin/python benchmarks/capacity.py --measure --write

# Every byte instead of every event, every row, 20,000 streams with random faults, and the properties with 500 examples each.
soak: $(STAMP) ## Run the tests that take minutes; SEED=N repeats one random stream
ifeq ($(SEED),)
	@$(PYTEST) -n $(PYTEST_JOBS) --dist worksteal -m "soak or hypothesis" --hypothesis-profile soak --timeout 1800 $(PYTEST_ARGS) || [ $$? -eq 5 ]
else
	@$(BIN)/python -m tests.soak --seed $(SEED) $(SOAK_ARGS)
endif

mutants: $(STAMP) ## Break the package on purpose, and see that the tests notice
	@$(BIN)/python scripts/mutants.py $(MUTANTS)

compare: $(BENCH_STAMP) ## Cut an answer at token 150 under each SDK, alone and with us (own environment)
	@$(BENCH_VENV)/bin/python benchmarks/compare.py $(COMPARE_ARGS)

integration: $(INTEGRATION_STAMP) $(NODE_STAMP) integration-litellm chromium redis-server ## Run the tests against foreign servers and SDKs and in a browser (own environments)
	@$(INTEGRATION_VENV)/bin/python -m pytest --no-header -q -m integration --timeout 600 $(PYTEST_ARGS) tests/integration tests/browser

# Programs from Debian: a browser for tests/browser, and a Redis that can be a Cluster. Where one cannot be installed, its tests
# are skipped and say why. RUNLEVEL=1: the server is not started, only installed.
INSTALL = if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		echo "installing $@ from Debian (once)"; \
		{ timeout 120 apt-get update && RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive \
			timeout 600 apt-get install -y --no-install-recommends $@; } </dev/null >/dev/null 2>&1 \
			|| echo "$@ could not be installed: the tests that need it will be skipped"; \
	fi

chromium:
	@for name in chromium chromium-browser google-chrome; do command -v $$name >/dev/null && exit; done; \
	[ -n "$$CHROMIUM" ] || $(INSTALL)

redis-server:
	@command -v redis-server >/dev/null || [ -n "$$REDIS_SERVER" ] || $(INSTALL)

# It cannot be installed beside the others. PYTEST_ARGS may choose none of its tests, which pytest calls a failure (5).
integration-litellm: $(LITELLM_STAMP)
	@$(LITELLM_VENV)/bin/python -m pytest --no-header -q -m integration --timeout 600 $(PYTEST_ARGS) \
		tests/integration/test_sdk_litellm.py tests/integration/test_sdk_pages.py tests/integration/test_sdk_relayed.py \
		$(if $(PYTEST_ARGS),|| [ $$? -eq 5 ])

wheel-test: $(STAMP) ## Build the wheel, install it without and with extras, use it away from the sources
	@$(BIN)/python scripts/wheel_test.py

clean: ## Remove everything that was built, the environments included
	rm -rf $(VENV) $(BENCH_VENV) $(INTEGRATION_VENV) $(LITELLM_VENV) $(NODE_DIR)/node_modules
	rm -rf build dist site .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamp is written last, so that a broken set-up is tried again.
$(STAMP): pyproject.toml
	$(call make-venv,$(VENV))
	@echo "installing the package and its tools into $(VENV) (once)"
	@$(BIN)/python $(PIP_INSTALL) --editable '.[dev]'
	@touch $@

$(BENCH_STAMP): pyproject.toml benchmarks/requirements.txt
	$(call make-venv,$(BENCH_VENV))
	@echo "installing the package and its peers into $(BENCH_VENV) (once)"
	@$(BENCH_VENV)/bin/python $(PIP_INSTALL) --editable '.[cli,httpx2,redis,relay]' --requirement benchmarks/requirements.txt
	@touch $@

$(INTEGRATION_STAMP): pyproject.toml tests/integration/requirements.txt
	$(call make-venv,$(INTEGRATION_VENV))
	@echo "installing the package and what it is tested against into $(INTEGRATION_VENV) (once)"
	@$(INTEGRATION_VENV)/bin/python $(PIP_INSTALL) --editable '.[dev]' --requirement tests/integration/requirements.txt
	@touch $@

# npm's own programs look for `node` on the path. No package needs to run a script to be installed, so none may.
$(NODE_STAMP): $(NODE_DIR)/package.json | $(INTEGRATION_STAMP)
	@echo "installing the Node servers into $(NODE_DIR)/node_modules (once)"
	@cd $(NODE_DIR) && PATH="$(abspath $(INTEGRATION_VENV))/bin:$$PATH" npm install \
		--no-package-lock --no-audit --no-fund --no-update-notifier --ignore-scripts --loglevel=error >/dev/null
	@touch $@

$(LITELLM_STAMP): pyproject.toml tests/integration/requirements-litellm.txt
	$(call make-venv,$(LITELLM_VENV))
	@echo "installing the package and litellm into $(LITELLM_VENV) (once)"
	@$(LITELLM_VENV)/bin/python $(PIP_INSTALL) --editable '.[cli,relay]' --requirement tests/integration/requirements-litellm.txt
	@touch $@

# Debian ships venv without ensurepip; there the pip of $(PYTHON) fills the environment.
define make-venv
@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	echo "Python >= 3.11 is needed, $(PYTHON) is $$($(PYTHON) -V 2>&1); try: make PYTHON=python3.11 …"; exit 1; }
@test -x $(1)/bin/python && $(1)/bin/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(1) 2>/dev/null || { \
	$(PYTHON) -m venv --clear --without-pip $(1) && $(PYTHON) -m pip --python $(1)/bin/python install -qq pip; }
endef
