# The four words of every day: make install, make demo, make test, make lint. Needs python3 >= 3.11 and make.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/installed

.PHONY: install demo test lint docs clean

install: $(STAMP)

# Done again only when pyproject.toml changed.
$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Milonga needs Python 3.11 or newer: make PYTHON=python3.11")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@

# Interrupted? The same command goes on from where it stopped.
demo: install
	$(BIN)/milonga run recipes/demo.toml --out runs/demo
	@echo "Open the report in a browser: file://$(CURDIR)/runs/demo/report.html"

# Two tests at a time: the suite is meant for two cores.
test: install
	$(BIN)/python -m pytest -n 2

lint: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright

docs: install
	$(BIN)/python tests/support/cli_page.py > docs/cli.md.part
	mv docs/cli.md.part docs/cli.md

clean:
	rm -rf .venv .pytest_cache .ruff_cache .hypothesis build dist
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
