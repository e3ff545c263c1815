"""Recipes as text: written back as TOML, overridden by `--set`, read from the first edition's keys, their mistakes
reported in one line.
"""

import copy
import json
import re
import tomllib
import warnings
from collections.abc import Iterable, Iterator, Sequence
from difflib import get_close_matches
from typing import Any, get_args

from pydantic import ValidationError

from milonga.core.config import RENAMED_SETTINGS
from milonga.core.errors import MilongaWarning, RecipeError
from milonga.core.records import Record

Location = Sequence[str | int]

# Keys of the first edition, where `*` is any item of a list, and their names now. They go in the next version.
_STRATEGY = {"words": "negatives", "count": "num_negatives"}
_THRESHOLD = {
    "alpha": "min_winner_score",
    "beta": "min_loser_score",
    "delta_low": "min_margin",
    "delta_high": "max_margin",
}
RENAMED_KEYS: dict[str, dict[str, str]] = {
    "plan": {"shard": "shard_size"},
    "plan.strategies.*": _STRATEGY,
    "generate": {"batch": "batch_size"},
    "score": {"batch": "batch_size"},
    "pair.thresholds.*": _THRESHOLD,
    "reward": {"held_out": "val_fraction"},
    "online": {"least_gain": "min_gain", "count": "iterations"},  # of [rounds]
    "online.strategies.*": _STRATEGY,
    "online.pair.thresholds.*": _THRESHOLD,
    "train": {"heldout": "val_fraction", **RENAMED_SETTINGS},
    "train.systems.*.settings": dict(RENAMED_SETTINGS),
}
# Values of the first edition, by the new name of their key.
RENAMED_VALUES: dict[str, dict[str, str]] = {
    "negatives": {"caption": "none"},
    "safeguard": {"answers": "output", "weights": "parameters"},
}


def to_toml(recipe: Record) -> str:
    """A record as TOML that reads back as the same record; a key without a value (None) is left out."""
    import tomli_w

    return tomli_w.dumps(recipe.model_dump(mode="json", exclude_none=True))


def flat(table: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested table as dotted keys and values; lists are values as they are."""
    keys: dict[str, Any] = {}
    for key, value in table.items():
        keys |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return keys


def modernised(data: dict[str, Any], source: str) -> dict[str, Any]:
    """A recipe's table with the keys and values of the first edition under their names now, and one warning for each.

    A recipe for training on own data alone (`model`, `[data]`, `[train] phases`) becomes one system of `[train]`.
    Raises RecipeError where a table has a key under both names.
    """
    data = copy.deepcopy(data)
    if isinstance(data.get("data"), dict):
        _deprecated(source, "[data]", "[train] pairs, clips, mix_ratio and legacy, with a table [[train.systems]]")
        _own_data(data)
    if isinstance(data.get("rounds"), dict):
        if "online" in data:
            raise RecipeError(f"{source}: [rounds] is the old name of [online]: leave one of them out")
        _deprecated(source, "[rounds]", "[online]")
        data["online"] = data.pop("rounds")
    for table in _tables(data, ["train", "systems", "*"]):
        if table.get("data") == "rounds":
            _deprecated(source, 'data = "rounds"', '"online"')
            table["data"] = "online"
    for place, names in RENAMED_KEYS.items():
        for table in _tables(data, place.split(".")):
            for old, new in names.items():
                if old not in table or old == new:
                    continue
                if new in table:
                    raise RecipeError(f"{source}: {place}.{old} is the old name of {new}: leave one of them out")
                _deprecated(source, f"{place}.{old}", f"{place}.{new}")
                table[new] = table.pop(old)
    for table in _tables(data, ["label"]):
        if isinstance(table.get("sources"), list) and "truth" in table["sources"]:
            _deprecated(source, 'label.sources = ["truth"]', '["tagger"]')
            table["sources"] = ["tagger" if name == "truth" else name for name in table["sources"]]
    for place in ("plan.strategies.*", "online.strategies.*", "train", "train.systems.*.settings"):
        for table in _tables(data, place.split(".")):
            for key, values in RENAMED_VALUES.items():
                if isinstance(table.get(key), str) and table[key] in values:
                    _deprecated(source, f'{place}.{key} = "{table[key]}"', f'"{values[table[key]]}"')
                    table[key] = values[table[key]]
    return data


def modern_override(override: str) -> str:
    """`key=value` of `--set` with the key under its name now; a warning where it is the first edition's."""
    key, equals, value = override.partition("=")
    if equals and key.strip().startswith("rounds."):
        _deprecated("--set", "rounds", "online")
        key = key.strip().replace("rounds.", "online.", 1)
        override = f"{key}={value}"
    *parents, last = key.strip().split(".")
    place = ".".join("*" if name.isdecimal() else name for name in parents)
    new = RENAMED_KEYS.get(place, {}).get(last)
    if not equals or new is None or new == last:
        return override
    _deprecated("--set", key.strip(), ".".join([*parents, new]))
    return ".".join([*parents, new]) + f"={value}"


def _deprecated(source: str, old: str, new: str) -> None:
    warnings.warn(f"{source}: {old} is now {new}; the old name goes in the next version", MilongaWarning, stacklevel=4)


def _tables(data: Any, place: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The tables at a place, `*` being every item of a list."""
    if not place:
        if isinstance(data, dict):
            yield data
    elif place[0] == "*" and isinstance(data, list):
        for item in data:
            yield from _tables(item, place[1:])
    elif isinstance(data, dict) and place[0] in data:
        yield from _tables(data[place[0]], place[1:])


def _own_data(data: dict[str, Any]) -> None:
    """Turns the first edition's recipe for own data into a recipe with one system, named like the recipe."""
    given, train = data.pop("data"), data.setdefault("train", {})
    if "model" in data:
        data["models"] = {"model": data.pop("model")}
    names = {"split": "split", "clips": "clips", "mixed": "mix_ratio", "compat": "legacy"}
    train |= {names.get(key, key): value for key, value in given.items() if key != "pairs"}
    if "pairs" in given:
        train["pairs"] = [given["pairs"]]
    name = re.sub(r"[^a-z0-9_-]+", "-", str(data.get("name", "")).lower()).strip("-_") or "model"
    system = {"name": name, "data": "pairs" if "pairs" in given else "clips"}
    train["systems"] = [system | ({"phases": train.pop("phases")} if "phases" in train else {})]


def explain(error: ValidationError, kind: type[Record]) -> str:
    """The first mistake of a recipe in one line, and how many more there are; unknown keys come first."""
    mistakes = sorted(error.errors(), key=lambda mistake: mistake["type"] != "extra_forbidden")
    first, rest = mistakes[0], f" (and {len(mistakes) - 1} more)" if len(mistakes) > 1 else ""
    place = ".".join(str(part) for part in first["loc"])
    message = first["msg"].removeprefix("Value error, ").replace("Input should", "must")
    if first["type"] == "extra_forbidden":
        message = _unknown(first["loc"], kind)
    elif first["type"] == "missing":
        message = f"{place} is missing"
    elif place and isinstance(first["input"], dict):  # a table whose keys do not fit together: too long to be repeated
        message = f"{place}: {message}"
    elif place:
        message = f"{place} = {json.dumps(first['input'], default=str)}: {message}"
    return message + rest


def apply_override(data: dict[str, Any], override: str) -> None:
    """Sets one `key=value` of `--set` in a recipe's nested table; RecipeError where it names nothing there."""
    key, equals, text = override.partition("=")
    if not equals or not re.fullmatch(r"[\w-]+(\.[\w-]+)*", key.strip()):
        raise RecipeError(f"--set {override}: write it as key=value, such as train.learning_rate=3e-4")
    try:
        value = tomllib.loads(f"value = {text.strip()}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()
    table: Any = data
    names = key.strip().split(".")
    for place, name in enumerate(names):
        last = place == len(names) - 1
        if isinstance(table, list) and name.isdecimal() and int(name) < len(table):
            step: Any = int(name)
        elif isinstance(table, dict):
            step = name
        else:
            raise RecipeError(f"--set {override}: the recipe has no {'.'.join(names[: place + 1])}")
        if last:
            table[step] = value
        else:
            table = table.setdefault(step, {}) if isinstance(table, dict) else table[step]


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
