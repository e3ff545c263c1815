"""docs/paper.md names functions that exist, and has a row for every equation, section, table and figure."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "paper.md").read_text(encoding="utf-8")
ROWS = [line for line in PAGE.splitlines() if line.startswith("|") and not line.startswith(("|---", "| Paper"))]
NAMED = re.findall(r"`([\w/]+\.py)(?:::([\w.]+))?`", "\n".join(ROWS))


@cache
def names_of(path: str) -> frozenset[str]:
    """What a module of the package defines: functions, classes with their methods, and assigned names."""
    tree = ast.parse((ROOT / "src" / "milonga" / path).read_text(encoding="utf-8"))
    return frozenset(defined(tree.body))


def defined(body: list[ast.stmt], prefix: str = "") -> list[str]:
    found: list[str] = []
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            found.append(prefix + node.name)
        elif isinstance(node, ast.ClassDef):
            found += [prefix + node.name, *defined(node.body, f"{prefix}{node.name}.")]
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            found.append(prefix + node.target.id)
        elif isinstance(node, ast.Assign):
            found += [prefix + target.id for target in node.targets if isinstance(target, ast.Name)]
    return found


def firsts() -> list[str]:
    """The first cell of every row: which part of the paper it is about."""
    return [row.split("|")[1].strip() for row in ROWS]


@pytest.mark.parametrize(("path", "name"), sorted(set(NAMED)))
def test_every_function_named_exists(path: str, name: str) -> None:
    assert (ROOT / "src" / "milonga" / path).is_file(), f"docs/paper.md names {path}, which does not exist"
    assert not name or name in names_of(path), f"docs/paper.md names {path}::{name}, which does not exist"


def test_every_equation_has_one_row() -> None:
    numbers = [int(found[1]) for cell in firsts() if (found := re.match(r"Eq\. \((\d+)\)", cell))]
    assert numbers == list(range(1, 18))


@pytest.mark.parametrize(
    "part",
    ["§4.1.1", "§4.1.2", "§4.2", "§5.1", "§5.2", "§5.3", "§5.4", "§5.5"]
    + [f"Table {number}" for number in range(1, 6)]
    + ["Figure 2"],
)
def test_every_section_table_and_figure_has_a_row(part: str) -> None:
    assert any(cell.startswith(f"{part} ") for cell in firsts())


def test_every_row_names_a_function_or_says_why_there_is_none() -> None:
    for row in ROWS:
        _, _, functions, departure, _ = (cell.strip() for cell in row.split("|"))
        assert departure, row
        assert re.search(r"`[\w/]+\.py::[\w.]+`", functions) or (functions == "–" and departure.startswith("No")), row
