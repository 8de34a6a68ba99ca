# make demo     from nothing to a scored, refined policy and a report, in minutes on two cores
# make test     the tests
# make lint     ruff, format check, mypy
# make study-smoke  every study of docs/studies.md at its smallest, in minutes
# make bench    the benchmarks
# make sanitize the native tests under AddressSanitizer, UndefinedBehaviorSanitizer, ThreadSanitizer, and CUDA's
#               threads under the last
# make nvcc     build the CUDA extension, where there is nvcc, and look at what its compiler says
# make gpu-check on a machine with a GPU: build for it, run the tests that need it, measure
# make fuzz     a minute (FUZZ_SECONDS) of clang's libFuzzer on the kernels
#
# Each makes .venv first. Once that is there, and until a source changes, no network is needed.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
# Python compiles what it imports, a small part of all that is installed.
PIP_DEPENDENCIES := $(PIP) install --progress-bar off --no-compile -c constraints.txt
EXTRAS := envs,collect,download,video,export,ray,tensorboard,test,lint
comma := ,
PACKAGE := build/package
SOURCES := pyproject.toml README.md LICENSE CMakeLists.txt tools/build_backend.py \
	$(shell find csrc dtag_fast -type f ! -name '*.so' ! -name '*.pyc')

# Threads that wait for work sleep rather than spin: with a busy neighbour spinning costs tenfold.
export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: demo test lint study-smoke bench sanitize sanitize-addresses sanitize-threads nvcc gpu-check fuzz clean

demo: $(VENV)/.installed
	$(BIN)/dtag demo --out report

test: $(VENV)/.installed
	$(BIN)/pytest -n 2 -p no:benchmark -m "not nvcc" tests

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

study-smoke: $(VENV)/.installed
	rm -rf build/study-smoke
	MINARI_DATASETS_PATH=$(abspath build/study-smoke/datasets) \
		$(BIN)/dtag study all --budget smoke --out build/study-smoke

bench: $(VENV)/.installed
	$(BIN)/pytest benchmarks

# The native tests, built with the flags $(2) into build/$(1). Without optimisation they compile
# three times as fast, and run fast enough.
NATIVE_TESTS = $(BIN)/cmake -S tests/native -B build/$(1) -G Ninja \
	-DCMAKE_MAKE_PROGRAM=$(abspath $(BIN)/ninja) -DCMAKE_BUILD_TYPE=Debug \
	-DCMAKE_CXX_FLAGS="-O0 -g1 -fno-sanitize-recover=all -fsanitize=$(2)"

NO_WARNINGS := -DCMAKE_COMPILE_WARNING_AS_ERROR=ON

# Without forks: the sanitizer's allocator may be locked for ever in the child of a process that has
# threads. The tests have them, without a sanitizer.
# Where a process may not be traced, leaks cannot be looked for: ASAN_OPTIONS=detect_leaks=0.
sanitize: sanitize-addresses sanitize-threads

sanitize-addresses: $(VENV)/.build-tools
	$(call NATIVE_TESTS,asan,address$(comma)undefined) $(NO_WARNINGS)
	$(BIN)/cmake --build build/asan
	build/asan/test_kernels 40
	build/asan/test_acting 20
	build/asan/test_layers
	build/asan/test_iql
	build/asan/test_threads --no-fork
	build/asan/fuzz_refine 150

sanitize-threads: $(VENV)/.build-tools
	$(call NATIVE_TESTS,tsan,thread) $(NO_WARNINGS)
	$(BIN)/cmake --build build/tsan --target test_threads test_iql test_layers test_cuda_waits
	build/tsan/test_threads --no-fork
	build/tsan/test_layers
	build/tsan/test_iql
	build/tsan/test_cuda_waits

nvcc: $(VENV)/.installed
	$(BIN)/pytest -p no:benchmark -m nvcc tests/native

# By $(PYTHON) as it is, so that it needs no network: torch, triton, numpy, pytest, pybind11, cmake and
# nvcc have to be there.
gpu-check:
	$(PYTHON) -m benchmarks.gpu_check

FUZZ_SECONDS ?= 60
fuzz: $(VENV)/.build-tools
	$(call NATIVE_TESTS,fuzz,fuzzer-no-link$(comma)address$(comma)undefined) \
		-DCMAKE_CXX_COMPILER=clang++ -DDTAG_LIBFUZZER=ON
	$(BIN)/cmake --build build/fuzz --target fuzz_refine
	mkdir -p build/fuzz/corpus
	build/fuzz/fuzz_refine -max_total_time=$(FUZZ_SECONDS) -max_len=96 -print_final_stats=1 \
		-artifact_prefix=build/fuzz/ build/fuzz/corpus

# Dependencies first, the package second: a change of source then rebuilds without a download, and what
# it changes alone. What is native needs little of them.
$(VENV)/.build-tools: pyproject.toml constraints.txt
	test -x $(BIN)/python || { rm -rf $(PACKAGE) && $(PYTHON) -m venv $(VENV); }
	$(BIN)/python tools/requirements.py > $(VENV)/build-requirements.txt
	$(PIP_DEPENDENCIES) -r $(VENV)/build-requirements.txt
	touch $@

$(VENV)/.dependencies: $(VENV)/.build-tools
	$(PIP_DEPENDENCIES) torch numpy
	$(BIN)/python tools/requirements.py $(EXTRAS) > $(VENV)/requirements.txt
	$(PIP_DEPENDENCIES) -r $(VENV)/requirements.txt
	touch $@

$(VENV)/.installed: $(VENV)/.dependencies $(SOURCES)
	$(PIP) install --no-build-isolation --no-deps --force-reinstall -Cbuild-dir=$(PACKAGE) \
		-Ccmake.define.DTAG_NATIVE_TESTS=ON .
	touch $@

clean:
	rm -rf $(VENV) build
