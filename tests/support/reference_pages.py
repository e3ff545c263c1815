"""Writes the generated pages of docs/reference/: `make docs`. tests/test_reference_pages.py compares them with this."""

from pathlib import Path

import api_page
import cli_page
import recipe_page

FOLDER = Path(__file__).parents[2] / "docs" / "reference"
PAGES = {"cli.md": cli_page.page, "recipe.md": recipe_page.page, "api.md": api_page.page}

if __name__ == "__main__":
    for name, page in PAGES.items():
        (FOLDER / name).write_text(page(), encoding="utf-8")
