# make install, make demo, make test, make lint, make docs. Needs python3 >= 3.11 and make.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/installed

.PHONY: install demo test lint docs clean

install: $(STAMP)

# Runs again only when pyproject.toml changed.
$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Milonga needs Python 3.11 or newer: make PYTHON=python3.11")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@

# After an interruption the same command resumes.
demo: install
	$(BIN)/milonga run recipes/demo.toml --out runs/demo
	@echo "Open the report in a browser: file://$(CURDIR)/runs/demo/report.html"

# Two tests at a time: the suite is meant for two cores.
test: install
	$(BIN)/python -m pytest -n 2 --dist loadfile

lint: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright

# The generated pages of docs/reference/, then the site in site/; any dead link fails.
docs: install
	$(BIN)/python tests/support/reference_pages.py
	$(BIN)/mkdocs build --strict --quiet

clean:
	rm -rf .venv .pytest_cache .ruff_cache .hypothesis build dist site
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
