# Everything by one command: `make demo`, `make test`. Each sets up what is missing first (scripts/setup.sh);
# the second time that costs a few milliseconds. With an environment of your own (conda-forge, a build from
# source) name its folder of programs and no set-up is done: make test LSR_BIN="$CONDA_PREFIX/bin"
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.PHONY: help env demo docs lint test test-slow torture cluster chain results results-full accuracy clean

LSR_BIN ?= .venv/bin
PYTHON := $(LSR_BIN)/python
MPIEXEC ?= mpiexec

# One thread per rank, unless you say otherwise.
export OMP_NUM_THREADS ?= 1
# More ranks than cores, as tests need: Open MPI 4, Open MPI 5.
export OMPI_MCA_rmaps_base_oversubscribe ?= 1
export PRTE_MCA_rmaps_default_mapping_policy ?= :oversubscribe
# Containers may forbid one process to read another's memory; do not try, and do not warn about it.
export OMPI_MCA_btl_vader_single_copy_mechanism ?= none
# All ranks are on this machine; probing its networks only brings warnings (Open MPI 5 in containers).
export OMPI_MCA_btl ?= ^tcp
# Open MPI refuses to start as root unless told twice; in containers root is the usual user.
ifeq ($(shell id -u),0)
export OMPI_ALLOW_RUN_AS_ROOT := 1
export OMPI_ALLOW_RUN_AS_ROOT_CONFIRM := 1
endif

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

env:  ## set up .venv, MPI, PETSc and SLEPc (Debian, Ubuntu); nothing when all is there
ifeq ($(LSR_BIN),.venv/bin)
	@scripts/setup.sh
endif

demo: env  ## refine a trained DeepONet for 30 unseen functions on two MPI ranks, use and show the predictor
	rm -rf runs/demo runs/demo.previous
	$(MPIEXEC) -n 2 $(LSR_BIN)/lsr-hpc refine jobs/antiderivative.toml --out runs/demo
	$(PYTHON) -c "import numpy; numpy.save('runs/demo/points.npy', numpy.linspace(0, 1, 101)[:, None])"
	$(LSR_BIN)/lsr-hpc predict runs/demo --input runs/demo/points.npy --output runs/demo/prediction.npy
	$(LSR_BIN)/lsr-hpc report runs/demo

docs: env  ## build the documentation as pages, warnings being errors: build/docs/html/index.html
	$(PYTHON) -c "import furo, latex2mathml, myst_parser" 2>/dev/null || $(PYTHON) -m pip install --no-input \
	  --disable-pip-version-check --no-build-isolation --constraint build/setup/constraints.txt --editable '.[docs]'
	$(PYTHON) -m sphinx -b html -W --keep-going -q -j 2 -d build/docs/doctrees docs build/docs/html

lint: env  ## check style, formatting and types
	$(PYTHON) -m ruff check --output-format concise .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy

test: lint  ## lint, then all tests but the slow ones (starts MPI ranks by itself)
	$(PYTHON) -m pytest -m "not slow"

test-slow: env  ## the full-size runs, several minutes each
	$(PYTHON) -m pytest -m slow

torture: env  ## kill runs at random moments, 100 times, and damage their files, 1,000 times; about an hour
	$(PYTHON) -m tests.torture
	$(PYTHON) -m tests.torture.damage

chain: env  ## a job of SLURM through twenty disturbances in a row; about ten minutes
	@$(PYTHON) -m tests.slurm.chain

cluster: env  ## a shell on a private SLURM of four nodes (as root), gone when you leave it
	@$(PYTHON) -m tests.slurm.cluster

results: env  ## refine every shipped job, small sizes, and write docs/results.md; some ten minutes
	rm -rf runs/results/small
	$(PYTHON) -m benchmarks results --preset small --markdown docs/results.md --png docs/results.png

results-full: env  ## the same at full size, as far as the starts are trained; hours, goes on where it was stopped
	$(PYTHON) -m benchmarks results --preset full --markdown runs/results/full.md --png runs/results/full.png

ACCURACY_PROBLEMS := poisson,function_fit,antiderivative,burgers2d,convection,burgers_operator
accuracy: env  ## compare with other refiners from one start, and write docs/accuracy.md; hours, goes on where it was stopped
	$(PYTHON) -m benchmarks accuracy --problem $(ACCURACY_PROBLEMS) --preset small --budget 60 \
	    --markdown docs/accuracy.md --png docs/accuracy.png

clean:  ## remove caches, logs and the demo's run; keeps .venv (rm -rf .venv to set up anew)
	rm -rf build runs/demo .pytest_cache .mypy_cache .ruff_cache *.egg-info
	find lsr_hpc tests -name __pycache__ -type d -prune -exec rm -rf {} +
