PYTHON ?= python3
VENV ?= .venv
RUN = $(VENV)/bin

.PHONY: demo test test-slow test-gpu test-export parity bench readme docs lint format clean

demo: $(VENV)/demo  ## train, score, time, rank and show a small network, in under 8 minutes
	$(RUN)/esrjax demo

test: $(VENV)/installed  ## all tests that a change must pass
	$(RUN)/pytest -n 2 --dist worksteal -m "not slow and not gpu"

test-slow: $(VENV)/installed  ## the tests that take minutes each, compiled as for users
	XLA_FLAGS=--xla_force_host_platform_device_count=2 $(RUN)/pytest -m slow

test-gpu: $(VENV)/installed  ## compile and run the kernels; needs a GPU and the extra `cuda`
	JAX_PLATFORMS=cuda,cpu $(RUN)/pytest -m gpu tests/kernels

test-export: .venv-export/installed  ## run exported files in ONNX Runtime
	.venv-export/bin/pytest -m export tests/interop/test_onnx.py tests/interop/test_export.py \
		tests/interop/test_engines.py

parity: $(VENV)/installed  ## write docs/parity.md; needs the reference folder
	$(RUN)/python tools/parity.py

bench: $(VENV)/installed  ## write the tables of docs/benchmarks.md; needs an idle machine
	$(RUN)/python tools/bench.py

readme: $(VENV)/installed  ## write the generated blocks of README.md
	$(RUN)/python tools/readme.py

docs: $(VENV)/installed  ## build the documentation site in build/site, without warnings
	NO_MKDOCS_2_WARNING=1 $(RUN)/mkdocs build --strict --quiet

lint: $(VENV)/installed  ## check style and types
	$(RUN)/ruff format --check . && $(RUN)/ruff check . && $(RUN)/pyright --pythonpath $(RUN)/python

format: $(VENV)/installed  ## format, and fix what can be fixed automatically
	$(RUN)/ruff format . && $(RUN)/ruff check --fix .

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(RUN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $@

.venv-export/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-export
	.venv-export/bin/pip install --quiet --disable-pip-version-check -c constraints.txt \
		-e ".[export,torch]" pytest hypothesis "setuptools>=77"
	touch $@

$(VENV)/demo: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(RUN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[demo]"
	touch $@

clean:
	rm -rf $(VENV) .venv-export build dist *.egg-info
