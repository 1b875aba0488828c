# The commands of a clone. Each makes .venv and installs the project at tested versions first, once.
PYTHON ?= python3
VENV ?= .venv
ARGS ?=

.PHONY: quickstart gallery test lint docs
.DELETE_ON_ERROR:

quickstart: $(VENV)/.examples
	$(VENV)/bin/python examples/quickstart.py $(ARGS)

# Draws the pictures of the gallery again, in docs/gallery: up to five minutes a script. ARGS="--fast" only tries them out.
gallery: $(VENV)/.examples
	for script in examples/gallery/*.py; do $(VENV)/bin/python $$script --out docs/gallery $(ARGS) || exit 1; done

test: $(VENV)/.test
	$(VENV)/bin/python -m pytest -n 2 $(ARGS)

lint: $(VENV)/.dev
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports --no-cache

# Any warning is an error: a link to nowhere, a page that nothing leads to. `make docs ARGS="-b linkcheck"` also tries
# the links to other sites.
docs: $(VENV)/.docs
	$(VENV)/bin/python -m sphinx -W --keep-going -q -b html $(ARGS) docs docs/_build

# One stamp an extra: a second call installs nothing unless the project's requirements changed.
$(VENV)/.examples $(VENV)/.test $(VENV)/.dev $(VENV)/.docs: $(VENV)/.%: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(VENV)/bin/python -m pip install -c constraints.txt -e ".[$*]"
	@touch $@

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)
