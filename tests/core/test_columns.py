"""A record type decides its columns; what has no column type says so."""

from typing import Any, Literal

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from milonga.core.arrow import plain, rows_to_table, schema_of
from milonga.core.records import Record


class Sample(Record):
    kind: Literal["a", "b"]
    maybe: float | None
    names: tuple[str, ...]
    scores: dict[str, float]


class Nest(Record):
    inner: Sample
    maybe: Sample | None
    many: tuple[Sample, ...]


class Opaque(Record):
    anything: dict[int, Any]


def test_types_become_columns():
    schema = schema_of(Sample)
    assert schema.field("kind").type == pa.string()
    assert schema.field("maybe").type == pa.float64()
    assert schema.field("names").type == pa.list_(pa.string())
    assert schema.field("scores").type == pa.map_(pa.string(), pa.float64())
    assert schema.metadata == {b"milonga.record": b"Sample"}


samples = st.builds(
    Sample,
    kind=st.sampled_from(["a", "b"]),
    maybe=st.none() | st.floats(allow_nan=False),
    names=st.lists(st.text(max_size=3), max_size=3).map(tuple),
    scores=st.dictionaries(st.text(max_size=2), st.floats(allow_nan=False), max_size=2),
)
nests = st.builds(Nest, inner=samples, maybe=st.none() | samples, many=st.lists(samples, max_size=2).map(tuple))


@settings(deadline=None)  # the first call imports pyarrow
@given(st.lists(nests, max_size=5), st.integers(0, 5), st.integers(1, 3))
def test_records_come_back_from_their_columns_whole_sliced_and_in_chunks(records, start, size):
    table = rows_to_table([record.model_dump() for record in records], Nest)
    assert [Nest.model_validate(row) for row in plain(table)] == records
    assert [Nest.model_validate(row) for row in plain(table.slice(start))] == records[start:]
    parts = [table.slice(first, size) for first in range(0, len(records), size)]
    chunked = pa.concat_tables(parts) if parts else table
    assert [Nest.model_validate(row) for row in plain(chunked)] == records


def test_a_type_without_a_column_is_an_error():
    with pytest.raises(TypeError, match="has no column type"):
        schema_of(Opaque)
