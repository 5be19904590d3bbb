# `make help` lists the targets. Everything runs in one virtual environment, .venv.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PACKAGES := core server client simulations hnfed benchmarks tests

.DEFAULT_GOAL := help
.PHONY: help install install-hashed lock demo test check fix bench chaos deploy-test real-data clean

help:
	@echo "make install-hashed     install what requirements.lock names by SHA-256 (TORCH=FILE.whl: another build of torch)"
	@echo "make lock               write requirements.lock anew, from constraints.txt"
	@echo "make demo               install, run the demo federation, print the path of its report"
	@echo "make test               install, run the fast test suite"
	@echo "make check              format, lint, types: what CI runs before the tests"
	@echo "make fix                format and repair what ruff can repair"
	@echo "make bench              the benchmarks; writes runs/benchmarks.json"
	@echo "make real-data DATA=DIR the tests that need real data in DIR"
	@echo "make clean              remove .venv and caches (never runs/)"
	@echo "make deploy-test        a federation over TLS on the loopback address (needs nginx)"
	@echo "make chaos              faults, deaths, damage, 200 rounds, swapped labels: counted suites"
	@echo "PYTHON=... names another Python 3.11 to build .venv from."

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' \
	  || { echo "$(PYTHON) is not Python 3.11; name one by: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

# For a hospital: every file that is installed has the SHA-256 that requirements.lock names. Torch of another build than
# PyPI's (CPU, a vendor's) is given by TORCH=FILE.whl, and its hash compared by whoever fetched it.
install-hashed: requirements.lock
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(if $(TORCH),$(BIN)/python -m pip install --quiet --no-deps '$(TORCH)')
	awk '/^[a-z]/ { keep = !("$(TORCH)" != "" && /^(torch|triton|nvidia-|cuda-)/) } keep' requirements.lock > $(VENV)/requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r $(VENV)/requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $(STAMP)

lock: $(STAMP)
	$(BIN)/uv pip compile pyproject.toml --extra dev -c constraints.txt --generate-hashes --no-header --no-annotate \
	  --no-config --python-version 3.11 --python-platform x86_64-manylinux_2_28 -o requirements.lock

demo: $(STAMP)
	$(BIN)/hnfed simulate demo

test: $(STAMP)
	$(BIN)/python -m pytest -m 'not slow and not deployment and not chaos' -n 2 --dist loadfile

check: $(STAMP)
	$(BIN)/ruff format --check $(PACKAGES)
	$(BIN)/ruff check $(PACKAGES)
	$(BIN)/mypy

fix: $(STAMP)
	$(BIN)/ruff format $(PACKAGES)
	$(BIN)/ruff check --fix $(PACKAGES)

bench: $(STAMP)
	$(BIN)/python -m benchmarks --json runs/benchmarks.json

chaos: $(STAMP)
	$(BIN)/python -m pytest -m chaos -s tests  # one suite: pytest -m chaos -s FILE

deploy-test: $(STAMP)
	$(BIN)/python -m pytest -m deployment tests/deployment

real-data: $(STAMP)
	@test -n '$(DATA)' || { echo "name the folder: make real-data DATA=DIR" >&2; exit 2; }
	$(BIN)/python -m pytest -m real_data --real-data '$(DATA)'

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find $(PACKAGES) -name __pycache__ -type d -prune -exec rm -rf {} +
