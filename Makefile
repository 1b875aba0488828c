# The commands of a clone. Each makes .venv and installs the project at tested versions first, once.
PYTHON ?= python3
VENV ?= .venv
ARGS ?=

.PHONY: quickstart test lint
.DELETE_ON_ERROR:

quickstart: $(VENV)/.examples
	$(VENV)/bin/python examples/quickstart.py $(ARGS)

test: $(VENV)/.test
	$(VENV)/bin/python -m pytest $(ARGS)

lint: $(VENV)/.dev
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/mypy

# One stamp an extra: a second call installs nothing unless the project's requirements changed.
$(VENV)/.examples $(VENV)/.test $(VENV)/.dev: $(VENV)/.%: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(VENV)/bin/python -m pip install -c constraints.txt -e ".[$*]"
	@touch $@

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)
