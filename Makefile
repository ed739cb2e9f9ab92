# Everything runs in $(VENV), which is built on the first call and used as it is afterwards.
PYTHON ?= python3
VENV ?= .venv
WORKERS ?= 2
FUZZ_SECONDS ?= 600
GPU_CHECK ?= --device cuda
RUN := $(VENV)/bin/python

.PHONY: help demo demo-full test check-cuda gpu-check fuzz lint format clean environment docs package package-check matrix
.DEFAULT_GOAL := help

help:
	@echo 'make demo        pretrain on real handwritten digits, carry the encoder on, write work_dirs/demo/index.html'
	@echo 'make demo-full   the same from three seeds and for every encoder: the published table'
	@echo 'make test        lint and all tests (WORKERS=$(WORKERS) at a time)'
	@echo 'make check-cuda  training steps without numbers: waits for the device, tensors of two devices; more with a CUDA build of torch'
	@echo 'make gpu-check   tests, speed and memory on one GPU: results in work_dirs/gpu_check (GPU_CHECK="--device cpu --tiny" tries it)'
	@echo 'make fuzz        random checkpoint files against the reader, for FUZZ_SECONDS=$(FUZZ_SECONDS)'
	@echo 'make docs        write the documentation as a site into site/; links that lead nowhere are errors'
	@echo 'make package     write wheel and source package into dist/'
	@echo 'make package-check  install each into an empty environment and run its commands there (about 10 minutes)'
	@echo 'make matrix      install the wheel on every Python that is found, and run its commands'
	@echo 'make lint        ruff, without changing anything'
	@echo 'make format      let ruff format the code and fix what it can'
	@echo 'make clean       remove caches and build output; work_dirs/, data/ and $(VENV) stay'
	@echo 'PYTHON=python3.11 names the interpreter to build $(VENV) with, VENV=folder another place for it.'

environment:
	@$(PYTHON) tools/build_env.py --venv $(VENV)

demo: environment
	$(RUN) tools/demo.py

demo-full: environment
	$(RUN) tools/demo.py --seeds 3 --all-encoders

# One OpenMP thread for each worker: on the tests' tiny models the threads would only wait for each other. A test that fails is run once
# more, because processes of several tests are killed at random moments and wait for each other on a machine that may stall: what
# passes then is listed with its traceback and counted as a rerun.
test: environment lint
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n $(WORKERS) --dist loadfile --reruns 1 --rerun-show-tracebacks

check-cuda: environment
	$(RUN) -m pytest tests/test_apis/test_fake_training.py

gpu-check: environment
	$(RUN) tools/gpu_check.py $(GPU_CHECK)

fuzz: environment
	MMCAE_FUZZ_SECONDS=$(FUZZ_SECONDS) $(RUN) -m pytest tests/test_checkpoints/test_fuzz.py

docs: environment
	$(RUN) -m pip install -q -r requirements/docs.txt
	$(RUN) -m mkdocs build --strict

# Without what an earlier build has left: setuptools would pack it again.
package: environment
	rm -rf build dist mmcae.egg-info
	$(RUN) -c "import setuptools.build_meta as backend; backend.build_sdist('dist'), backend.build_wheel('dist')"

package-check: environment
	$(RUN) tests/test_package/check.py

matrix: environment
	$(RUN) tests/test_package/check.py --kinds wheel --pythons all

lint: environment
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

format: environment
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .

clean:
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
	rm -rf .pytest_cache .ruff_cache build dist site
