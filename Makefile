# Everything a user calls. `make` alone lists the targets.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
SEEDS ?= 1
STUDENTS ?= internvl,videollama2,videochat2
SCALE ?= micro
RUNS ?= runs
DATA ?= twin
PROMPTS ?= paper
NPROC ?= 1
comma := ,
# SCALE=paper takes WEIGHTS= and DATA= (with several students STUDENT=PATH,STUDENT=PATH), GPUS=, ENGINE=fsdp2|zero3
PAPER = $(if $(WEIGHTS),--weights $(WEIGHTS)) $(if $(filter-out twin,$(DATA)),--data $(DATA)) $(if $(MEDIA_ROOT),--media-root $(MEDIA_ROOT)) \
	$(if $(GPUS),--gpus $(GPUS)) $(if $(ENGINE),--engine $(ENGINE)) $(if $(REHEARSE),--rehearse $(REHEARSE))

ifeq ($(DATA),hub)
export HF_HUB_OFFLINE ?= 0
endif
export HF_HUB_OFFLINE ?= 1
export TOKENIZERS_PARALLELISM ?= false

.PHONY: help setup test check types repro-table1 repro-table2 repro-table3 repro-table4 plan world-check students example keep tables figures bench bench-scaling

help:
	@grep -E '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

# The stamp names the pins it was made from: a change of either file installs again.
$(VENV)/.installed: pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet -c constraints.txt -e '.[peft,repro,eval,bench,dev]'
	@touch $@

setup: $(VENV)/.installed ## create .venv with the pinned versions

test: setup ## all tests; two workers, one thread each
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -q

check: setup types ## ruff, types, and whether committed tables and figures are stale
	$(BIN)/ruff check .
	$(BIN)/python -m repro.tables --check
	$(BIN)/python -m repro.figures --check
	$(BIN)/python -m repro.bench.plots --check

types: setup
	$(BIN)/mypy

repro-table4: setup ## Table 4: train, follow, score; SEEDS=5 STUDENTS=internvl RUNS=runs widen, narrow or move it
	$(BIN)/python -m repro table4 --students $(subst $(comma), ,$(STUDENTS)) --seeds $(SEEDS) --scale $(SCALE) --runs $(RUNS) $(PAPER)

repro-table1 repro-table2 repro-table3: setup ## image, long video, short video: Table 4's checkpoints on the benchmarks; COUNT=20
	$(BIN)/python -m repro benchmarks $(subst repro-table,,$@) --students $(subst $(comma), ,$(STUDENTS)) --seeds $(SEEDS) \
		--runs $(RUNS) $(if $(COUNT),--count $(COUNT))

plan: setup ## memory, tokens, FLOPs and saving of the paper-scale runs; GPUS=4 MEMORY=80
	$(BIN)/python -m repro plan $(RECIPE) --gpus $(or $(GPUS),4) --memory $(or $(MEMORY),80)

# CHECKPOINT=PATH [BASE=PATH] [DATA=twin|hub|PATH] [PROMPTS=paper|stock] [NPROC=2] [ANSWER=generate|rank] [LIMIT=n]
# [COUNT=questions per task of a twin] [FRAMES=8] [BATCH=16]
eval-all: setup ## all 13 benchmarks through lmms-eval: CHECKPOINT=PATH, the other variables as for eval-mvbench
eval-mvbench: setup ## CHECKPOINT=PATH [DATA=twin|hub|PATH] [PROMPTS=paper|stock] [ANSWER=generate|rank] [NPROC=2] [LIMIT=n]
eval-videomme: setup ## the same; so are eval-scienceqa, eval-mme, ... (docs/evaluation.md)
eval-%: setup
	@test -n "$(CHECKPOINT)" || { echo "say which checkpoint: make $@ CHECKPOINT=PATH" >&2; exit 2; }
	$(BIN)/python -m eval.run $* --checkpoint $(CHECKPOINT) --data $(DATA) --prompts $(PROMPTS) --processes $(NPROC) \
		--runs $(RUNS) $(if $(BASE),--base $(BASE)) $(if $(ANSWER),--answer $(ANSWER)) $(if $(LIMIT),--limit $(LIMIT)) \
		$(if $(COUNT),--count $(COUNT)) $(if $(FRAMES),--num-frames $(FRAMES)) $(if $(BATCH),--batch-size $(BATCH))

world-check: setup ## can gates differ in the embedded world? exits 1 if not
	for student in $(subst $(comma), ,$(STUDENTS)); do \
		$(BIN)/python -m repro world-check --student $$student --runs $(RUNS) || exit 1; done

students: setup ## the prepared students; REBUILD=1 makes them anew
	$(BIN)/python -m repro.students --student $(subst $(comma), ,$(STUDENTS)) $(if $(REBUILD),--rebuild)

bench: setup ## our steps against the stock Trainer's, TRL's and rivals, in turn: about half an hour alone on two cores; DEVICE=cuda
	$(BIN)/python -m repro bench --device $(or $(DEVICE),cpu) --runs $(RUNS) $(if $(ROUNDS),--rounds $(ROUNDS)) $(if $(ONLY),--only $(ONLY))

bench-scaling: setup ## how time and memory grow with length, ratio, batch, vocabulary, samples
	$(BIN)/python -m repro bench --scaling --device $(or $(DEVICE),cpu) --runs $(RUNS) $(if $(ONLY),--only $(ONLY))
	$(BIN)/python -m repro.bench.plots --runs $(RUNS)

example: setup ## a small data set in LLaVA's format under runs/example, for the README's example
	$(BIN)/python -m repro.example_data

keep: setup ## records and traces of clean runs go to results/, to be committed
	$(BIN)/python -m repro.keep --runs $(RUNS)

tables: setup ## tables from records
	$(BIN)/python -m repro.tables --runs $(RUNS)

figures: setup ## figures from records
	$(BIN)/python -m repro.figures --runs $(RUNS)
	$(BIN)/python -m repro.bench.plots --runs $(RUNS)
