# `make demo` and `make test` set up everything they need in .venv and run; nothing else is required beforehand but
# Python >= 3.10 with its headers and venv (Debian: python3-dev python3-venv) and a C++ compiler.
PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch==2.13.0
BIN := $(VENV)/bin
export PATH := $(abspath $(BIN)):$(PATH)
# Python compiles a module when it is first imported: pip need not compile all of them.
unexport PYTHONDONTWRITEBYTECODE
INSTALL := $(BIN)/python -m pip --disable-pip-version-check -q install --no-compile

.PHONY: demo test lint bench clean

demo: $(VENV)/.installed
	$(BIN)/fastpose demo

# A process a core: threads of several processes would wait for each other.
test: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 8 --dist loadfile

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.installed
	$(BIN)/python -m benchmarks

# torch comes first, and the build uses it: with build isolation pip would fetch a second, possibly much larger torch.
$(VENV)/.installed: setup.py pyproject.toml CMakeLists.txt $(wildcard csrc/*)
	@$(PYTHON) -c "import ensurepip, venv, sysconfig, pathlib, sys; \
	h = pathlib.Path(sysconfig.get_path('include'), 'Python.h'); \
	sys.exit(None if h.exists() else f'{h} is missing: install the Python headers (Debian: apt-get install python3-dev)')" \
	|| { echo "fastpose needs Python >= 3.10 with venv and headers (Debian: apt-get install python3-dev python3-venv)"; exit 1; }
	@command -v $${CXX:-c++} > /dev/null || { echo "fastpose needs a C++ compiler (Debian: apt-get install g++)"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(INSTALL) "$(TORCH)"
	$(INSTALL) "setuptools>=77" wheel "pybind11>=3.0" "cmake>=3.24" ninja
	$(INSTALL) --no-build-isolation -e ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info fastpose/_C*.so
