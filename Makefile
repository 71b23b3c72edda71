PYTHON ?= python

.PHONY: check lint test test-slow test-gpu demo

check: lint test

lint:
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy
	$(PYTHON) -c "from importlinter.cli import lint_imports_command; lint_imports_command()"

test:
	$(PYTHON) -m pytest

test-slow:
	$(PYTHON) -m pytest -m slow

test-gpu:
	$(PYTHON) -m pytest -m gpu

demo:
	$(PYTHON) -m riskaudit demo --out reports/demo
