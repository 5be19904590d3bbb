# `make help` lists the targets. Everything runs in one virtual environment, .venv.
PYTHON ?=
# Which build of torch: cuda (PyPI's), cpu, or a wheel's file.
TORCH ?= cuda
WHEELHOUSE ?= wheelhouse
# Where torch-cpu.lock finds its wheels: a page of links or a folder.
CPU_WHEELS ?= https://download.pytorch.org/whl/cpu/torch/
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PACKAGES := core server client simulations hnfed benchmarks tests

.DEFAULT_GOAL := help
.PHONY: help install install-hashed lock wheelhouse demo test check fix bench docs chaos deploy-test real-data clean

help:
	@echo "make install            .venv with the versions of constraints.txt, for development"
	@echo "make install-hashed     .venv of what the lock files name by SHA-256 (TORCH=cpu, TORCH=FILE.whl: another build of torch)"
	@echo "make wheelhouse         every wheel in one folder, for a machine without a network (TORCH= as above)"
	@echo "make lock               write the lock files anew, from constraints.txt"
	@echo "make demo               install, run the demo federation, print the path of its report"
	@echo "make test               install, run the fast test suite"
	@echo "make check              format, lint, types: what CI runs before the tests"
	@echo "make fix                format and repair what ruff can repair"
	@echo "make docs               the documentation as a site with search, in site/; ends on any warning"
	@echo "make bench              the benchmarks; writes runs/benchmarks.json"
	@echo "make real-data DATA=DIR the tests that need real data in DIR"
	@echo "make clean              remove .venv and caches (never runs/)"
	@echo "make deploy-test        a federation over TLS on the loopback address (needs nginx)"
	@echo "make chaos              faults, deaths, damage, 200 rounds, swapped labels: counted suites"
	@echo "PYTHON=... names the Python (3.11 to 3.13) to make .venv from; else one on the PATH is taken."

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(make-venv)
	@echo "installing hnfed and what it needs into $(VENV), which takes some minutes"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

define make-venv
@test -x $(BIN)/python || { python=$$(sh .ci/find-python '$(PYTHON)') && "$$python" -m venv --clear $(VENV); }
@sh .ci/find-python $(BIN)/python > /dev/null
endef

# For a hospital: every file that is installed has the SHA-256 that a lock file names. The hash of a torch that is given by
# TORCH=FILE.whl is compared by whoever fetched it.
LOCKS = -r requirements.lock $(if $(filter %.whl,$(TORCH)),,-r torch-$(TORCH).lock)

install-hashed:
	$(make-venv)
	$(if $(filter %.whl,$(TORCH)),$(BIN)/python -m pip install --quiet --no-deps '$(TORCH)')
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps $(LOCKS) -r dev.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $(STAMP)

# For a machine without a network, of the same system and Python: hnfed and what it needs to run.
wheelhouse:
	$(make-venv)
	mkdir -p $(WHEELHOUSE)
	$(if $(filter %.whl,$(TORCH)),cp '$(TORCH)' $(WHEELHOUSE))
	$(BIN)/python -m pip download --quiet --disable-pip-version-check --require-hashes --no-deps --only-binary :all: \
	  -d $(WHEELHOUSE) $(LOCKS)
	$(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-deps -w $(WHEELHOUSE) .
	cd $(WHEELHOUSE) && sha256sum *.whl > SHA256SUMS

# One resolution for Python 3.11 to 3.13, cut in four: what hnfed needs, what tests and building need beside, and torch
# with what comes with its CUDA and its CPU build.
COMPILE = $(BIN)/uv pip compile pyproject.toml -c constraints.txt --universal --python-version 3.11 \
  --only-binary :all: --generate-hashes --no-header --no-annotate --no-config --quiet
PICK = awk '{ name = $$0; sub(/=.*/, "", name) } NR == FNR { if (/^[a-z]/) needed[name]; next } \
  /^[a-z]/ { build = /^(torch|triton|nvidia-[a-z0-9-]+|cuda-[a-z0-9-]+)==/; keep = $(1) } keep' $(VENV)/needed.lock

lock: $(STAMP)
	sed -n 's/^torch==.*/&+cpu/p' constraints.txt > $(VENV)/cpu.txt
	$(COMPILE) -o $(VENV)/needed.lock
	$(COMPILE) --extra dev -o $(VENV)/cuda.lock
	$(COMPILE) -c $(VENV)/cpu.txt --find-links '$(CPU_WHEELS)' -o $(VENV)/cpu.lock
	$(call PICK,!build && name in needed) $(VENV)/cuda.lock > requirements.lock
	$(call PICK,!build && !(name in needed)) $(VENV)/cuda.lock > dev.lock
	$(call PICK,build) $(VENV)/cuda.lock > torch-cuda.lock
	$(call PICK,build) $(VENV)/cpu.lock > torch-cpu.lock

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

docs: $(STAMP)
	@test -x $(BIN)/zensical || \
	  $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	$(BIN)/zensical build --clean --strict

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
