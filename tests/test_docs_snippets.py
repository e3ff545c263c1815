"""The Python of the tutorials and of README runs as written, one page after the other in a folder of its own."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MORE = ("docs/alignment.md", "docs/editing.md", "README.md")
PAGES = [*sorted((ROOT / "docs" / "tutorials").glob("*.md")), *(ROOT / page for page in MORE)]
QUICK = ("README",)


def blocks(text: str) -> list[str]:
    """The Python code blocks of a page."""
    return re.findall(r"^```python\n(.*?)^```", text, re.M | re.S)


@pytest.mark.parametrize(
    "page", [pytest.param(page, id=page.stem, marks=() if page.stem in QUICK else pytest.mark.slow) for page in PAGES]
)
def test_the_page_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MILONGA_CACHE", str(tmp_path / "cache"))
    scope: dict[str, object] = {"__name__": "__docs__"}
    code = blocks(page.read_text(encoding="utf-8"))
    assert code, f"{page.name} has no Python"
    for number, block in enumerate(code, 1):
        exec(compile(block, f"{page.name}, block {number}", "exec"), scope)
