PYTHON ?= python3
VENV ?= .venv
RUN = $(VENV)/bin

PYTHON312 ?= python3.12
PYTHON313 ?= python3.13

.PHONY: demo test test-slow test-gpu test-jax-0.11 test-newest test-python-3.13 test-lowest \
	attack parity parity-faults bench zoo readme recipes docs lint format clean release-check

demo: $(VENV)/demo  ## train, score, time, rank and show a small network, in under 8 minutes
	$(RUN)/esrjax demo

test: $(VENV)/installed  ## all tests that a change must pass
	$(RUN)/pytest -n 2 --dist worksteal -m "not slow and not gpu"

test-slow: $(VENV)/installed  ## the tests that take minutes each, compiled as for users
	XLA_FLAGS=--xla_force_host_platform_device_count=2 $(RUN)/pytest -m slow

test-gpu: $(VENV)/installed  ## compile and run the kernels; needs a GPU and the extra `cuda`
	JAX_PLATFORMS=cuda,cpu $(RUN)/pytest -m gpu tests/kernels

# Other versions than those of constraints.txt. Only the first environment has PyTorch: elsewhere the
# tests that need it are skipped. $(1): Python, $(2): environment, $(3): pip's arguments, $(4): tests.
define test_in
$(1) -m venv .venv-$(2)
.venv-$(2)/bin/pip install --quiet --disable-pip-version-check $(3)
.venv-$(2)/bin/python -c "import jax, flax, sys; print(sys.version, jax.__version__, flax.__version__)"
.venv-$(2)/bin/pytest $(4)
endef
TESTS = -n 2 --dist worksteal -m "not slow and not gpu"
SMOKE = tests/nn tests/kernels tests/training tests/cli/test_cli.py tests/test_methods.py
PACKAGES = -e ".[demo,log]" build hypothesis pytest pytest-xdist "setuptools>=77"

test-jax-0.11:  ## all tests on Python 3.12 and JAX 0.11.2
	$(call test_in,$(PYTHON312),jax-0.11,$(PACKAGES) jax==0.11.2,$(TESTS))

test-newest:  ## all tests on Python 3.12 and the newest versions of everything
	$(call test_in,$(PYTHON312),newest,--upgrade $(PACKAGES),$(TESTS))

test-python-3.13:  ## all tests on Python 3.13 and the newest versions of everything
	$(call test_in,$(PYTHON313),python-3.13,--upgrade $(PACKAGES),$(TESTS))

# Old versions of flax use what newer versions of JAX call deprecated.
test-lowest:  ## a selection of tests with the lowest versions that pyproject.toml allows
	$(PYTHON) tools/lowest.py > .venv-lowest.txt
	$(call test_in,$(PYTHON),lowest,-c .venv-lowest.txt $(PACKAGES),-W ignore::DeprecationWarning $(TESTS) $(SMOKE))

attack: $(VENV)/installed  ## crashes, damage, hostile files and neighbours; prints a table
	PYTHONPATH=tools $(RUN)/python -m attack

parity: $(VENV)/installed  ## write docs/parity.md; needs the reference folder
	$(RUN)/python tools/parity.py

parity-faults: $(VENV)/installed  ## plant faults in the PyTorch twins, and write docs/parity-faults.md
	rm -f build/faults.jsonl; mkdir -p build
	PYTHONPATH=tools $(RUN)/python -m parity_faults -o build/faults.jsonl
	PYTHONPATH=tools $(RUN)/python -m parity_faults --records build/faults.jsonl

bench: $(VENV)/installed  ## write the tables of docs/benchmarks.md; needs an idle machine
	$(RUN)/python tools/bench.py
	$(RUN)/python tools/scaling.py

zoo: $(VENV)/installed  ## write docs/zoo.md; needs the reference folder
	$(RUN)/python tools/zoo.py

readme: $(VENV)/installed  ## write the generated blocks of README.md
	$(RUN)/python tools/readme.py

recipes: $(VENV)/installed  ## write docs/recipes.md, every setting of the recipes of the report
	$(RUN)/python tools/recipes.py

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

$(VENV)/demo: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(RUN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[demo]"
	touch $@

release-check: $(VENV)/installed  ## build wheel and source package without warnings; try the wheel
	rm -rf build/dist .venv-release && mkdir -p build
	env -u PYTHONDONTWRITEBYTECODE $(RUN)/python -m build --outdir build/dist > build/dist.log 2>&1 || (cat build/dist.log; exit 1)
	! grep -i "warning" build/dist.log
	$(PYTHON) -m venv .venv-release
	.venv-release/bin/pip install --quiet --disable-pip-version-check build/dist/*.whl
	cd build && ../.venv-release/bin/esrjax --version && ../.venv-release/bin/esrjax method check spanv2
	ls -l build/dist && du -sh .venv-release

clean:
	rm -rf $(VENV) .venv-* build dist *.egg-info
