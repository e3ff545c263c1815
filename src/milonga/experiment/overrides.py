"""Recipes and words: a recipe written back as TOML, its flat keys, `--set`, and its mistakes told in one line."""

import json
import re
import tomllib
from collections.abc import Iterable, Iterator, Sequence
from difflib import get_close_matches
from typing import Any, get_args

from pydantic import ValidationError

from milonga.core.errors import RecipeError
from milonga.core.records import Record

Location = Sequence[str | int]


def to_toml(recipe: Record) -> str:
    """A record as TOML that reads back as the same record; a key without a value (None) is left out."""
    return "\n".join(_table(recipe.model_dump(exclude_none=True), ())).strip() + "\n"


def flat(table: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested table as dotted keys and values; lists are values as they are."""
    found: dict[str, Any] = {}
    for key, value in table.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return found


def explain(error: ValidationError, kind: type[Record]) -> str:
    """The first mistake of a recipe in one line, and how many more there are; unknown keys come first."""
    found = sorted(error.errors(), key=lambda one: one["type"] != "extra_forbidden")
    rest = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
    return _told(found[0], kind) + rest


def apply_override(data: dict[str, Any], override: str) -> None:
    """Sets one `key=value` of `--set` in a recipe's nested table; RecipeError where it names nothing there."""
    key, equals, text = override.partition("=")
    if not equals or not re.fullmatch(r"[\w-]+(\.[\w-]+)*", key.strip()):
        raise RecipeError(f"--set {override}: write it as key=value, such as train.learning_rate=3e-4")
    *parents, last = key.strip().split(".")
    table: Any = data
    for place, name in enumerate(parents):
        table = _inner(table, name, ".".join(parents[: place + 1]), override)
    if isinstance(table, list):
        _inner(table, last, key, override)
        table[int(last)] = _value(text.strip())
    else:
        table[last] = _value(text.strip())


def _inner(table: Any, name: str, path: str, override: str) -> Any:
    if isinstance(table, list) and name.isdecimal() and int(name) < len(table):
        found = table[int(name)]
    elif isinstance(table, dict):
        found = table.setdefault(name, {})
    else:
        raise RecipeError(f"--set {override}: the recipe has no {path}")
    return found


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _told(one: Any, kind: type[Record]) -> str:
    place = ".".join(str(part) for part in one["loc"])
    if one["type"] == "extra_forbidden":
        return _unknown(one["loc"], kind)
    if one["type"] == "missing":
        return f"{place} is missing"
    message = one["msg"].removeprefix("Value error, ").replace("Input should", "must")
    if not place:
        return message
    if isinstance(one["input"], dict):  # a table whose keys do not fit together: too long to be repeated
        return f"{place}: {message}"
    return f"{place} = {json.dumps(one['input'], default=str)}: {message}"


def _unknown(loc: Location, kind: type[Record]) -> str:
    """`unknown key "pair.thresold": did you mean "pair.thresholds"?`; a key of another table is found there."""
    *tables, name = [str(part) for part in loc]
    beside = list(_fields(kind, loc[:-1]))
    near = [".".join([*tables, key]) for key in get_close_matches(name, beside, n=1, cutoff=0.6)]
    everywhere = {key.rpartition(".")[2]: key for key in reversed(list(_keys(kind)))}
    near = near or [everywhere[key] for key in get_close_matches(name, everywhere, n=1, cutoff=0.8)]
    advice = f'did you mean "{near[0]}"?' if near else f"this table knows {', '.join(beside)}"
    return f'unknown key "{".".join([*tables, name])}": {advice}'


def _fields(kind: type[Record], loc: Location) -> Iterable[str]:
    """The keys known in the table at `loc`; a number in `loc` picks an item of an array and changes nothing."""
    for part in loc:
        if not isinstance(part, int):
            kind = _record(kind.model_fields[part].annotation) or kind
    return kind.model_fields


def _keys(kind: type[Record], prefix: str = "") -> Iterator[str]:
    """All dotted keys below a kind of record, outermost first."""
    yield from (prefix + name for name in kind.model_fields)
    for name, field in kind.model_fields.items():
        inner = _record(field.annotation)
        if inner:
            yield from _keys(inner, f"{prefix}{name}.")


def _record(annotation: Any) -> type[Record] | None:
    """The record inside an annotation: itself, or an array's items."""
    for one in (annotation, *get_args(annotation)):
        if isinstance(one, type) and issubclass(one, Record):
            return one
    return None


def _table(table: dict[str, Any], path: tuple[str, ...]) -> Iterator[str]:
    inner = {key: value for key, value in table.items() if isinstance(value, dict)}
    arrays = {key: value for key, value in table.items() if _is_array(value)}
    yield from (f"{key} = {_scalar(value)}" for key, value in table.items() if key not in inner | arrays)
    for key, value in inner.items():
        yield from ("", f"[{'.'.join((*path, key))}]", *_table(value, (*path, key)))
    for key, items in arrays.items():
        for item in items:
            yield from ("", f"[[{'.'.join((*path, key))}]]", *_table(item, (*path, key)))


def _is_array(value: Any) -> bool:
    return isinstance(value, list | tuple) and bool(value) and all(isinstance(item, dict) for item in value)


def _scalar(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, list | tuple):
        return f"[{', '.join(_scalar(item) for item in value)}]"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
