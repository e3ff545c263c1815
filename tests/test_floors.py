"""The floors: a file imports from lower floors or its own room alone; rooms of one floor do not see each other."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "milonga"
ROOMS = (
    ("core",),
    ("maths",),
    ("nano", "perturbers"),
    ("models", "scorers", "engines"),
    ("data",),
    ("preference", "training", "evaluation"),
    ("reports", "listening_test"),
    ("studio", "experiment"),
    ("cli",),
)
FLOORS = {room: floor for floor, rooms in enumerate(ROOMS) for room in rooms}


def imported(tree: ast.AST, room: str) -> Iterator[str]:
    """Modules of milonga that a syntax tree imports, wherever in it; relative imports are of the same room."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level:
            yield f"milonga.{room}"
        elif isinstance(node, ast.ImportFrom) and node.module == "milonga":
            yield from (f"milonga.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""


def breaches(text: str, room: str) -> list[str]:
    """The rooms that code of `room` imports from and may not."""
    names = [name.split(".") for name in imported(ast.parse(text), room)]
    seen = {name[1] for name in names if name[0] == "milonga" and len(name) > 1}
    return sorted(other for other in seen if other != room and FLOORS.get(other, 9) >= FLOORS[room])


@pytest.mark.parametrize("path", sorted(SOURCE.glob("*/**/*.py")), ids=lambda path: str(path.relative_to(SOURCE)))
def test_a_file_sees_only_lower_floors_and_its_room(path):
    room = path.relative_to(SOURCE).parts[0]
    assert room in FLOORS, f"{room}/ has no floor: give it one in docs/architecture.md and here"
    assert breaches(path.read_text(encoding="utf-8"), room) == []


def test_the_rule_notices_what_it_should():
    assert breaches("from milonga.cli import main", "training") == ["cli"]
    assert breaches("def f():\n    import milonga.evaluation.evaluate", "training") == ["evaluation"]
    assert breaches("from milonga import models", "scorers") == ["models"]
    assert breaches("import torch\nfrom milonga.core import ids\nfrom . import x", "data") == []
    assert breaches("from milonga.maths import losses", "core") == ["maths"]
    assert breaches("from milonga.preference import pair", "experiment") == []
