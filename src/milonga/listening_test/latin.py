"""Latin squares for experiments with people: every condition in every place, and after every other, equally often."""

import numpy as np

from milonga.core.errors import DataError


def williams(conditions: int) -> np.ndarray:
    """Williams's (1949) square, shape (rows, conditions): each row an order in which to present the conditions.

    Over the rows every condition stands in every place equally often and follows every other one equally often, so
    that neither fatigue nor the clip before favours a system. An even number takes as many rows, an odd one (but for
    1) twice as many. Raises DataError below one condition.
    """
    if conditions < 1:
        raise DataError("a square needs at least one condition")
    zigzag = [(place + 1) // 2 if place % 2 else -(place // 2) for place in range(conditions)]
    square = (np.array(zigzag) + np.arange(conditions)[:, None]) % conditions
    return square if conditions % 2 == 0 or conditions == 1 else np.concatenate([square, square[:, ::-1]])
