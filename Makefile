# make demo     from nothing to a scored, refined policy and a report, in minutes on two cores
# make test     the tests
# make lint     ruff, format check, mypy
# make bench    the benchmarks
#
# Each makes .venv first. Once that is there, and until a source changes, no network is needed.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
EXTRAS := envs,collect,download,video,tensorboard,test,lint
SOURCES := pyproject.toml README.md LICENSE CMakeLists.txt tools/build_backend.py \
	$(shell find csrc dtag_fast -type f ! -name '*.so' ! -name '*.pyc')

# Threads that wait for work sleep rather than spin: with a busy neighbour spinning costs tenfold.
export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: demo test lint bench clean

demo: $(VENV)/.installed
	$(BIN)/dtag demo --out report

test: $(VENV)/.installed
	$(BIN)/pytest -n 2 -p no:benchmark tests

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.installed
	$(BIN)/pytest benchmarks

# Dependencies first, the package second: a change of source then rebuilds without a download.
$(VENV)/.dependencies: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install --progress-bar off -c constraints.txt torch numpy
	$(BIN)/python tools/requirements.py $(EXTRAS) > $(VENV)/requirements.txt
	$(PIP) install --progress-bar off -c constraints.txt -r $(VENV)/requirements.txt
	touch $@

$(VENV)/.installed: $(VENV)/.dependencies $(SOURCES)
	$(PIP) install --no-build-isolation --no-deps --force-reinstall .
	touch $@

clean:
	rm -rf $(VENV) build
