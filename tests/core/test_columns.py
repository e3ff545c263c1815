"""A record type decides its columns; what has no column type says so."""

from typing import Any, Literal

import pyarrow as pa
import pytest

from milonga.core.columns import schema_of
from milonga.core.records import Record


class Sample(Record):
    kind: Literal["a", "b"]
    maybe: float | None
    names: tuple[str, ...]
    scores: dict[str, float]


class Opaque(Record):
    anything: dict[int, Any]


def test_types_become_columns():
    schema = schema_of(Sample)
    assert schema.field("kind").type == pa.string()
    assert schema.field("maybe").type == pa.float64()
    assert schema.field("names").type == pa.list_(pa.string())
    assert schema.field("scores").type == pa.map_(pa.string(), pa.float64())
    assert schema.metadata == {b"milonga.record": b"Sample"}


def test_a_type_without_a_column_is_an_error():
    with pytest.raises(TypeError, match="has no column type"):
        schema_of(Opaque)
