"""Records as Arrow columns: a table's schema from a record's types, and a table's rows as plain Python values."""

import types
from collections.abc import Iterable, Sequence
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin

from milonga.core.records import Record

if TYPE_CHECKING:
    import pyarrow

RECORD = b"milonga.record"


def schema_of(kind: type[Record]) -> "pyarrow.Schema":
    """The Arrow schema of a kind of record, with the kind's name in its metadata.

    str, int (64 bits), float (64 bits) and bool are themselves; a tuple is a list, a nested record a struct,
    `dict[str, float]` a map, a Literal a string, and `X | None` a nullable X. Raises TypeError for anything else.
    """
    import pyarrow as pa

    fields = [pa.field(name, _arrow_type(field.annotation)) for name, field in kind.model_fields.items()]
    return pa.schema(fields, metadata={RECORD: kind.__name__.encode()})


def rows_to_table(rows: Sequence[dict[str, Any]], kind: type[Record]) -> "pyarrow.Table":
    """A table of dumped records of one kind; no rows give an empty table with the same columns."""
    import pyarrow as pa

    schema = schema_of(kind)
    arrays = [_array([row[field.name] for row in rows], field.type) for field in schema]
    return pa.Table.from_arrays(arrays, schema=schema)


def plain(table: "pyarrow.Table") -> list[dict[str, Any]]:
    """A table's rows as dicts, with maps as dicts.

    Columns are taken apart by their own kind: several times faster than rows of nested scalars, which is what a run's
    hundreds of thousands of candidates need.
    """
    columns = [[value for chunk in column.chunks for value in _values(chunk)] for column in table.columns]
    return [dict(zip(table.column_names, row, strict=True)) for row in zip(*columns, strict=True)]


def _arrow_type(kind: Any) -> "pyarrow.DataType":
    import pyarrow as pa

    simple = {str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_()}
    if kind in simple:
        return simple[kind]
    if isinstance(kind, type) and issubclass(kind, Record):
        return pa.struct([pa.field(name, _arrow_type(f.annotation)) for name, f in kind.model_fields.items()])
    return _generic_type(kind)


def _generic_type(kind: Any) -> "pyarrow.DataType":
    import pyarrow as pa

    origin, inner = get_origin(kind), get_args(kind)
    if origin is tuple and (inner[1:] == (...,) or len(set(inner)) == 1):
        return pa.list_(_arrow_type(inner[0]))
    if origin is dict and inner[0] is str:
        return pa.map_(pa.string(), _arrow_type(inner[1]))
    if origin is Literal:
        return pa.string()
    if origin in (Union, types.UnionType) and type(None) in inner and len(inner) == 2:
        return _arrow_type(inner[0] if inner[1] is type(None) else inner[1])
    raise TypeError(f"{kind} has no column type")


def _array(values: list[Any], kind: "pyarrow.DataType") -> "pyarrow.Array":
    import pyarrow as pa

    if pa.types.is_map(kind) and None not in values:
        return _maps(values, kind)
    return pa.array([_pack(value, kind) for value in values] if pa.types.is_nested(kind) else values, kind)


def _maps(values: list[dict[str, Any]], kind: "pyarrow.MapType") -> "pyarrow.Array":
    """Dicts as a map array out of flat keys and items: several times faster than a list of pairs for each."""
    import pyarrow as pa

    offsets = pa.array([0, *accumulate(map(len, values))], pa.int32())
    keys = pa.array([key for value in values for key in value], kind.key_type)
    items = _array([item for value in values for item in value.values()], kind.item_type)
    return pa.MapArray.from_arrays(offsets, keys, items, type=kind)


def _pack(value: Any, kind: "pyarrow.DataType") -> Any:
    import pyarrow as pa

    if value is None:
        return None
    if pa.types.is_map(kind):
        return list(value.items())
    if pa.types.is_struct(kind):
        return {field.name: _pack(value[field.name], field.type) for field in kind}
    if pa.types.is_list(kind):
        return [_pack(item, kind.value_type) for item in value]
    return value


def _values(array: "pyarrow.Array") -> list[Any]:
    """An array's values as plain Python; null is None."""
    import pyarrow as pa

    if pa.types.is_struct(array.type):
        names = [field.name for field in array.type]
        inner = [_values(array.field(place)) for place in range(len(names))]
        values: list[Any] = [dict(zip(names, row, strict=True)) for row in zip(*inner, strict=True)]
    elif pa.types.is_map(array.type):
        pairs = list(zip(array.keys.to_pylist(), _values(array.items), strict=True))
        values = [dict(pairs[start:stop]) for start, stop in _spans(array)]
    elif pa.types.is_list(array.type):
        items = _values(array.values)
        values = [items[start:stop] for start, stop in _spans(array)]
    else:
        return array.to_pylist()
    return [value if there else None for value, there in zip(values, array.is_valid().to_pylist(), strict=True)]


def _spans(array: Any) -> Iterable[tuple[int, int]]:
    """Where each item of a list or map array begins and ends in its values."""
    return pairwise(array.offsets.to_pylist())
