"""Names in the source: no private words as identifiers, and a docstring for everything public."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src" / "milonga"
FILES = sorted(SOURCE.rglob("*.py"))
# Words that say how a value came about and not what it is.
BANNED = {"found", "told", "asked", "made", "heard", "kept", "listeners"}
SUFFIXES = ("_door", "_doors")
# Rooms and files whose names are still being changed; paths below src/milonga.
UNFINISHED: tuple[str, ...] = ()
UNDOCUMENTED: tuple[str, ...] = ()
ROOMS = sorted({path.relative_to(SOURCE).parts[0] for path in FILES})


def identifiers(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, name) of every variable, argument, keyword, attribute, function, class, module and alias in a module."""
    for node in ast.walk(tree):
        names: list[str | None] = []
        match node:
            case ast.Name(id=name) | ast.Attribute(attr=name) | ast.ExceptHandler(name=name):
                names = [name]
            case ast.arg(arg=name) | ast.keyword(arg=name) | ast.alias(asname=name):
                names = [name, *(node.name.split(".") if isinstance(node, ast.alias) else ())]
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                names = [name]
            case ast.ImportFrom(module=name):
                names = [*(name or "").split(".")]
            case ast.MatchAs(name=name) | ast.MatchStar(name=name):
                names = [name]
            case ast.Global(names=many) | ast.Nonlocal(names=many):
                names = [*many]
        for name in filter(None, names):
            yield getattr(node, "lineno", 0), name


def banned(name: str) -> bool:
    plain = name.lower().strip("_")
    return plain in BANNED or plain.endswith(SUFFIXES) or plain in ("door", "doors")


def public_without_docstring(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """(line, name) of public functions, classes and their public methods without a docstring."""
    definitions = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    for node in tree.body:
        if not isinstance(node, definitions) or node.name.startswith("_"):
            continue
        inner = [one for one in node.body if isinstance(one, definitions)] if isinstance(node, ast.ClassDef) else []
        for one in (node, *(each for each in inner if not each.name.startswith("_"))):
            overload = any("overload" in ast.dump(decorator) for decorator in one.decorator_list)
            if ast.get_docstring(one) is None and not overload:
                yield one.lineno, one.name if one is node else f"{node.name}.{one.name}"


def modules(room: str, except_: tuple[str, ...]) -> Iterator[tuple[str, ast.Module]]:
    """(path below src/milonga, tree) of a room's modules but for those in `except_`."""
    for path in FILES:
        name = path.relative_to(SOURCE).as_posix()
        if name.split("/")[0] == room and not name.startswith(except_):
            yield name, ast.parse(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("room", ROOMS)
def test_names_say_what_a_value_is(room):
    for path, tree in modules(room, UNFINISHED):
        assert not banned(Path(path).stem), path
        assert [f"{path}:{line} {name}" for line, name in identifiers(tree) if banned(name)] == []


@pytest.mark.parametrize("room", ROOMS)
def test_everything_public_has_a_docstring(room):
    for path, tree in modules(room, UNDOCUMENTED):
        assert ast.get_docstring(tree), f"{path} has no docstring"
        assert [f"{path}:{line} {name}" for line, name in public_without_docstring(tree)] == []


def test_the_test_sees_every_kind_of_name():
    text = """
import told
from a.heard import b as asked
def made(kept, *, found=1): ...
def f(): return x.heard(listeners=2)
class Door: ...
def evaluate_door(): ...
with open() as told: ...
for found in []: ...
"""
    names = [name for _, name in identifiers(ast.parse(text)) if banned(name)]
    assert sorted(names) == sorted(
        [
            "told",
            "heard",
            "asked",
            "made",
            "kept",
            "found",
            "heard",
            "listeners",
            "Door",
            "evaluate_door",
            "told",
            "found",
        ]
    )
