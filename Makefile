# One environment in $(VENV), made when a target needs it and again when what it is made from changes.
PYTHON ?= python3
VENV ?= .venv
CONSTRAINTS ?= constraints.txt
ARGS ?=
# Number of parallel test processes; each gets one OpenMP thread so that they do not fight for cores.
TEST_JOBS ?= logical
export PIP_DISABLE_PIP_VERSION_CHECK = 1
# Containers often set it. The tests start some hundred processes, and each would compile the modules
# of torch and transformers again: 16 s where reading their bytecode takes 8 (2026-11-30).
unexport PYTHONDONTWRITEBYTECODE

BIN := $(VENV)/bin
# A stamp says: this set of extras is installed from the files as they are now.
DEMO_READY := $(VENV)/.ready-finetune
DEV_READY := $(VENV)/.ready-dev
CUDA_READY := $(VENV)/.ready-cuda
NATIVE_SOURCES := setup.py $(shell find csrc -type f)
INSTALL_INPUTS := pyproject.toml $(CONSTRAINTS) $(NATIVE_SOURCES)
CXX_FILES := $(shell find csrc -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')
# Modules are compiled to bytecode at first import; doing it for every file of torch takes longer.
INSTALL := $(BIN)/python -m pip install --no-compile -c $(CONSTRAINTS)

.DEFAULT_GOAL := help
.PHONY: help demo test test-sanitize lint format build bench gpu dist clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
	  || { echo "make: PYTHON must be Python 3.10 or newer; got $$($(PYTHON) --version 2>&1)." \
	       "Use make PYTHON=python3.11 (or another)."; exit 1; }
	@$(PYTHON) -m venv $(VENV) \
	  || { rm -rf $(VENV); echo "make: could not make a virtual environment." \
	       "On Debian and Ubuntu: apt-get install python3-venv."; exit 1; }

$(DEMO_READY): $(INSTALL_INPUTS) | $(BIN)/python
	$(INSTALL) -e ".[finetune]"
	@touch $@

# The tests also want the CUDA kernels for the emulator of a GPU, which needs no CUDA.
$(DEV_READY): $(INSTALL_INPUTS) | $(BIN)/python
	FASTATTN_EMULATOR=1 $(INSTALL) -e ".[finetune,data,bench,dev]"
	@touch $(DEMO_READY) $@

# With FASTATTN_CUDA=1 the CUDA compiler comes with pip, before what it is to compile.
$(CUDA_READY): requirements-cuda.txt | $(BIN)/python
	$(BIN)/python -m pip install --no-compile -r requirements-cuda.txt
	@touch $@
ifeq ($(FASTATTN_CUDA),1)
$(DEMO_READY) $(DEV_READY): $(CUDA_READY)
endif

demo: $(DEMO_READY) ## Set up, then fine-tune BERT on IMDB reviews; options: ARGS="--epochs 2"
	$(BIN)/fastattn finetune $(ARGS)

test: $(DEV_READY) ## Set up, then run the tests; options: ARGS="-k dropout"
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(TEST_JOBS) $(ARGS)

# A second copy of the package, built with the sanitizers, goes before .venv's own on the path. The
# sanitizer's runtime must be loaded before python's libraries, and libstdc++ with it, for it to see
# exceptions; CPython never frees some of its memory, so leaks are not looked for. Backends without
# C++ of ours are left out.
SANITIZED := build/sanitized
SANITIZED_TESTS := tests/ops -k "not compile and not opcheck and not reference and not triton"
test-sanitize: $(DEV_READY) ## Run the kernels' tests under the address and undefined sanitizers
	CMAKE_ARGS="-DFASTATTN_SANITIZE=address,undefined" FASTATTN_CUDA=0 $(BIN)/python -m pip install -q --no-deps \
	  --no-build-isolation --upgrade --target $(SANITIZED) .
	OMP_NUM_THREADS=1 PYTHONPATH=$(CURDIR)/$(SANITIZED) ASAN_OPTIONS=detect_leaks=0 \
	  LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libstdc++.so)" \
	  $(BIN)/pytest -q -n $(TEST_JOBS) $(or $(ARGS),$(SANITIZED_TESTS))

lint: $(DEV_READY) ## Check style and types, change nothing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(if $(CXX_FILES),$(BIN)/clang-format --dry-run -Werror $(CXX_FILES))

format: $(DEV_READY) ## Rewrite Python and C++ files in the house style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(if $(CXX_FILES),$(BIN)/clang-format -i $(CXX_FILES))

build: ## Recompile what changed in csrc, in place, warnings as errors
	@test -e $(DEV_READY) || $(MAKE) $(DEV_READY)
	CMAKE_ARGS="-DFASTATTN_WERROR=ON $$CMAKE_ARGS" FASTATTN_EMULATOR=1 \
	  $(BIN)/python setup.py -q build_ext --inplace
	@touch $(DEMO_READY) $(DEV_READY)

bench: $(DEV_READY) ## Run the quick benchmarks, store JSON; options: ARGS="-k dropout"
	$(BIN)/python -m pytest -q bench --benchmark-columns=median,min,max,rounds $(ARGS)

gpu: ## On a machine with a GPU: build for it, test, record, benchmark; options: ARGS=--quick
	FASTATTN_CUDA=1 $(MAKE) $(DEV_READY)
	$(BIN)/python bench/gpu.py $(ARGS)

dist: $(DEV_READY) ## Build the source archive and, from it, the wheel, into dist/
	rm -rf dist
	$(BIN)/python -m build --outdir dist .

clean: ## Remove the environment and everything built
	rm -rf $(VENV) build dist *.egg-info fastattn/_C*.so fastattn/_emulated*.so
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
	find fastattn tests bench examples -name __pycache__ -type d -prune -exec rm -rf {} +
