PYTHON ?= python3
VENV ?= .venv
RUN = $(VENV)/bin

.PHONY: test test-slow lint format clean

test: $(VENV)/installed  ## everything a change must pass
	$(RUN)/pytest -n 2 -m "not slow and not gpu"

test-slow: $(VENV)/installed  ## the checks that take minutes each
	$(RUN)/pytest -m slow

lint: $(VENV)/installed  ## style and types
	$(RUN)/ruff format --check . && $(RUN)/ruff check . && $(RUN)/pyright

format: $(VENV)/installed
	$(RUN)/ruff format . && $(RUN)/ruff check --fix .

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(RUN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info
