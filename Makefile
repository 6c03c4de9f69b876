# Two commands: `make demo` and `make test`. Both set up .venv first, once.
SHELL := /bin/sh
.DEFAULT_GOAL := help
.PHONY: help demo control studio test lint check-profile foundations clean environment

# The first Python here that is new enough; `make demo PYTHON=/path/to/python3` takes another.
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3 python; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && echo $$p && break; done)
export PATH := $(or $(PERCEPTIO_VENV),$(CURDIR)/.venv)/bin:$(PATH)
# uv brings no bytecode, and every stage is a process of its own: unwritten, each compiles all that it imports again.
unexport PYTHONDONTWRITEBYTECODE

help: ## Show the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*##/\t/' | expand -t 14

environment:
	@test -n "$(PYTHON)" || { echo "perceptio: Python 3.11 or newer is needed; none found" >&2; exit 1; }
	@$(PYTHON) pipeline/environment.py

demo: environment ## The main job: raw images to a benchmark report (20 to 25 minutes on 2 cores, the first time)
	@perceptio repro --profile mini --variants full

control: environment ## The same, with two trainings beside it: the same base without depth tokens, and without any
	@perceptio repro --profile mini --variants full,no_depth,control

studio: environment ## The ablation study of docs/results.md: some 45 trainings one after the other (hours; resumable)
	@perceptio repro --profile studio --variants all
	@perceptio repro --profile studio-k32 --variants full
	@perceptio repro --profile studio-k512 --variants full
	@perceptio repro --profile studio-n25 --variants full
	@perceptio repro --profile studio-n100 --variants full
	@python -m benchmarks.study

# Workers with a thread each, and one more than the cores: a third of the time tests wait for what they have started.
test: environment lint ## Lint, types, unit tests, and the smoke profile end to end
	@OMP_NUM_THREADS=1 python -m pytest -n 3 --dist loadfile --no-loadscope-reorder

lint: environment
	@ruff check .
	@ruff format --check .
	@mypy

check-profile: environment ## Validate a profile without its data: make check-profile PROFILE=perceptio-8b
	@python -m benchmarks.check_profile $(PROFILE)

foundations: environment ## Pretrain mini's small foundation models again (minutes on a GPU, many hours without; foundations/mini/README.md says how they were made)
	@python -m perceptio_core.foundations

clean: ## Remove what runs made (artifacts, DVC's cache, unfinished work); keeps .venv
	rm -rf artifacts .work .prefect .dvc/cache .dvc/tmp
