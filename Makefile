# `make` lists the targets. PYTHON=/path/to/python3 overrides the interpreter that tools/find-python picks.
PYTHON ?=
export PYTHON
# Where this is set, every process that a test starts would compile all of its imports, five seconds' worth.
unexport PYTHONDONTWRITEBYTECODE

# Arguments handed to pytest, e.g. make test ARGS="-k packing -x"
ARGS ?=
# Two workers share the compilations of the suite; each stays small in memory.
PYTEST := -m pytest -n 2 --dist worksteal

.PHONY: help demo test test-exhaustive fuzz test-second-python test-gpu test-tpu test-parity check bench bench-gpu bench-tpu kernels scaling hardware results docs package clean
.DEFAULT_GOAL := help

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | awk -F '\t' '{ printf "  make %-20s %s\n", $$1, $$2 }'

demo: ## train a small model on this machine's Python sources, evaluate, write a report (two and a half minutes of training at most)
	@tools/make-venv .venv all
	@.venv/bin/mom-jax demo

test: ## the suite
	@tools/make-venv .venv test
	.venv/bin/python $(PYTEST) $(ARGS)

test-exhaustive: ## further cases of what the suite tests with some: rules, sizes of heads, meshes, processes, compiled programs
	@tools/make-venv .venv test
	@.venv/bin/python tools/install_compilers.py
	.venv/bin/python $(PYTEST) -m exhaustive $(ARGS)

fuzz: ## bad command lines and files by the hundred (seven minutes)
	@tools/make-venv .venv test
	.venv/bin/python -m pytest -m fuzz $(ARGS) tests/fuzz

# Left out: suites that hold one implementation against another in many cases. What is measured against stored numbers stays.
LONGEST := ops/test_recurrences.py layers/test_rules.py layers/test_mom.py models/test_lm.py \
    models/test_sharding.py models/test_hybrid.py models/test_cache.py models/test_accounting.py \
    models/test_documents.py models/test_memory.py layers/test_own_rule.py \
    pallas_kernels/test_sizes.py pallas_kernels/test_inside_models.py

test-second-python: ## kernels, operators, layers and models on another supported Python (without the longest suites)
	@tools/test-second-python .venv $(PYTEST) tests/pallas_kernels tests/ops tests/layers tests/models \
	    $(LONGEST:%=--ignore tests/%) $(ARGS)

test-gpu: ## the tests that need an NVIDIA GPU
	@nvidia-smi -L >/dev/null 2>&1 || { echo "make test-gpu: no NVIDIA GPU here, nvidia-smi does not answer" >&2; exit 1; }
	@tools/make-venv .venv-gpu gpu
	@tools/make-venv .venv-gpu test
	TRITON_INTERPRET=0 .venv-gpu/bin/python -m pytest -m gpu $(ARGS)

test-tpu: ## the tests that need a TPU
	@tools/make-venv .venv-tpu tpu
	@tools/make-venv .venv-tpu test
	.venv-tpu/bin/python -m pytest -m tpu $(ARGS)

test-parity: ## the tests that run the PyTorch reference beside ours, on a CPU
	@tools/make-venv .venv-parity parity
	@tools/make-venv .venv-parity test
	.venv-parity/bin/python -m pytest -m parity $(ARGS)

check: ## style (ruff) and types (pyright)
	@tools/make-venv .venv dev
	.venv/bin/ruff check .
	.venv/bin/pyright --pythonpath .venv/bin/python

bench: ## the CPU tables of docs/benchmarks.md
	@tools/make-venv .venv test
	.venv/bin/mom-jax bench

bench-gpu: ## kernels on this machine's GPU, beside the PyTorch reference
	@tools/make-venv .venv-gpu gpu
	@tools/make-venv .venv-gpu parity
	.venv-gpu/bin/mom-jax bench

bench-tpu: ## kernels on this machine's TPU
	@tools/make-venv .venv-tpu tpu
	.venv-tpu/bin/mom-jax bench

kernels: ## compile every kernel for GPUs and TPUs that are not here, into the tables of docs/kernels.md (half an hour)
	@tools/make-venv .venv test
	@.venv/bin/python tools/install_compilers.py
	.venv/bin/python -m tools.kernels

scaling: ## compile the published sizes' training steps for TPUs and GPUs that are not here, into docs/scaling.md (an hour)
	@tools/make-venv .venv test
	@.venv/bin/python tools/install_compilers.py
	.venv/bin/python -m tools.scaling

hardware: ## programs for an H100 or H200 where only JAX is installed, into build/hardware (see docs/kernels.md)
	@tools/make-venv .venv test
	@.venv/bin/python tools/install_compilers.py
	.venv/bin/python -m tools.hardware make build/hardware

results: ## run what is missing of every experiment's tiny scale, and write the pages of results
	@tools/make-venv .venv experiments
	.venv/bin/python -m tools.make_results

docs: ## the guides as a site with the API reference, in build/site; a broken link is an error
	@tools/make-venv .venv docs
	.venv/bin/python -m sphinx -E -a -b html -j auto -q -W --keep-going docs build/site
	@echo "build/site/index.html"

package: ## wheel and source archive into dist, each tried in an empty environment
	@tools/make-venv .venv dev
	.venv/bin/python -m tools.package dist

clean: ## remove environments, caches and runs of the demo
	rm -rf .venv .venv-* build dist runs .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
