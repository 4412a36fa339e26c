# Two commands: `make demo` runs the main job on the embedded data, `make test` the tests. Each makes .venv if need be.
# `make faults` disturbs every verb on purpose and writes docs/faults.md.

PYTHON ?= python3
VENV ?= .venv
CORES ?= all
BIN := $(VENV)/bin
INSTALLED := --constraint constraints.txt --editable '.[dev]'
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: demo test faults lint env clean

demo: env
	snakemake --cores $(CORES)
	@echo "Read reports/summary.md"

test: env
	pytest -n 2 --dist loadfile --no-loadscope-reorder

faults: env
	PYTHONPATH=tests python -m faults

lint: env
	ruff check .
	ruff format --check .
	mypy

env: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Noisebox needs Python 3.11 or newer; name one with: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt uv
	@# uv unpacks on all cores, minutes sooner than pip. It does not read pip's configuration, such as a mirror's address.
	$(BIN)/uv pip install --quiet --python $(BIN)/python $(INSTALLED) || \
	  $(BIN)/python -m pip install --quiet --no-compile $(INSTALLED)
	@# Neither has compiled on all cores; some packages hold files that are for newer Pythons. What is left out is half of
	@# all, and hardly imported: Python compiles what is when it is.
	@$(BIN)/python -m compileall -qq -j 0 -x '/(tests?|transformers|diffusers|moto)/' $(VENV)/lib src || true
	@touch $@

clean:
	rm -rf $(VENV) .snakemake logs .pytest_cache .mypy_cache .ruff_cache
