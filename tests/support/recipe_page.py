"""docs/reference/recipe.md as text: keys, types and defaults from the models, meanings from recipe_keys.toml."""

import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin

from milonga.core.records import Record
from milonga.experiment.recipe import Recipe

KEYS = Path(__file__).parents[2] / "docs" / "reference" / "recipe_keys.toml"
BOUNDS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
TYPES = {int: "whole number", float: "number", str: "text", bool: "`true` or `false`"}


def page() -> str:
    """The whole page."""
    texts = tomllib.loads(KEYS.read_text(encoding="utf-8"))
    parts = [texts["before"].strip(), *(section(path, kind, texts) for path, kind in tables()), texts["after"].strip()]
    return "\n\n".join(parts) + "\n"


def tables() -> Iterator[tuple[str, type[Record]]]:
    """(dotted path, record) of every table of a recipe, each record at its first place, in the order of the fields."""
    seen: list[type[Record]] = []

    def walk(path: str, kind: type[Record]) -> Iterator[tuple[str, type[Record]]]:
        if any(issubclass(other, kind) for other in seen):  # the same keys again, as a system's own settings are
            return
        seen.append(kind)
        yield path, kind
        for name, field in kind.model_fields.items():
            inner = record_of(field.annotation)
            if inner is not None:
                yield from walk(f"{path}.{name}".lstrip("."), inner)

    return walk("", Recipe)


def record_of(annotation: Any) -> type[Record] | None:
    """The record in an annotation, also within a tuple or beside None."""
    if isinstance(annotation, type) and issubclass(annotation, Record):
        return annotation
    return next((inner for inner in map(record_of, get_args(annotation)) if inner), None)


def section(path: str, kind: type[Record], texts: dict[str, Any]) -> str:
    """One table's heading, what it is for, and its keys."""
    own = texts.get(path or "recipe", {})
    heading = f"`[{path}]`" if path else "Top level"
    rows = [
        f"| `{name}` | {written_type(field.annotation, field.metadata)} | {default(field)} | {own.get(name, '')} |"
        for name, field in kind.model_fields.items()
    ]
    table = "\n".join(["| key | type | default | meaning |", "|---|---|---|---|", *rows])
    return "\n\n".join(filter(None, [f"## {heading}", own.get("about", "").strip(), table]))


def written_type(annotation: Any, metadata: Any = ()) -> str:
    """A field's type in words, with its bounds."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        extra = [part for one in inner[1:] for part in getattr(one, "metadata", [one])]
        return written_type(inner[0], [*extra, *metadata])
    if origin is Literal:
        return "one of " + ", ".join(f"`{value}`" for value in inner)
    if origin is tuple:
        return "list of tables" if record_of(inner[0]) else f"list of {plural(written_type(inner[0]))}"
    if NoneType in inner:
        return written_type(next(one for one in inner if one is not NoneType), metadata)
    if record_of(annotation):
        return "table"
    signs = [(sign, getattr(part, name)) for part in metadata for name, sign in BOUNDS.items() if hasattr(part, name)]
    bounds = ", ".join(f"{sign} {bound:g}" for sign, bound in signs if bound is not None and abs(bound) < 2**62)
    return f"{TYPES.get(annotation, annotation.__name__)} {bounds}".strip()


def plural(words: str) -> str:
    return words.replace("number", "numbers", 1)


def default(field: Any) -> str:
    """The default as TOML writes it; `required`, `none`, or `below` for a table of its own."""
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if value is None:
        return "none"
    return "below" if isinstance(value, Record) else f"`{toml(value)}`"


def toml(value: Any) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(map(toml, value))}]"
    if isinstance(value, bool):
        return str(value).lower()
    return f'"{value}"' if isinstance(value, str) else repr(value)
