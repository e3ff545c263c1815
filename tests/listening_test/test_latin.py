"""Williams squares: places and neighbours are balanced, whatever the number of conditions."""

from collections import Counter
from itertools import pairwise

import pytest

from milonga.core.errors import DataError
from milonga.listening_test.design import williams


@pytest.mark.parametrize("conditions", range(1, 11))
def test_every_condition_in_every_place_and_after_every_other_equally_often(conditions):
    square = williams(conditions)
    assert all(sorted(row) == list(range(conditions)) for row in square)
    places = Counter((place, one) for row in square for place, one in enumerate(row.tolist()))
    assert set(places.values()) == {len(square) // conditions}
    neighbours = Counter(pair for row in square.tolist() for pair in pairwise(row))
    assert len(neighbours) == conditions * (conditions - 1)
    assert len(set(neighbours.values())) <= 1


def test_an_odd_number_takes_twice_the_rows():
    assert [len(williams(n)) for n in (1, 2, 3, 4, 5)] == [1, 2, 6, 4, 10]


def test_no_condition_is_refused():
    with pytest.raises(DataError):
        williams(0)
