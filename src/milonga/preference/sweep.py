"""What other thresholds would keep, and how often two scorers disagree near them: how the bounds are chosen (§4.1.2).

One bound is moved at a time and all others stay. The pairs are those that `pair` gives under the present thresholds, so
no clip is generated and none is scored: the work is a few comparisons of columns.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import Literal

import numpy as np

from milonga.core.config import Threshold
from milonga.core.records import Pair, Record
from milonga.preference.pair import TOLERANCE

Bound = Literal["min_winner_score", "min_loser_score", "min_margin", "max_margin"]
# Every bound with the value at which no pair fails it.
OFF: dict[Bound, float] = {"min_winner_score": -1.0, "min_loser_score": -1.0, "min_margin": -2.0, "max_margin": 2.0}
NEAR = 0.1  # the share of all pairs that counts as near a threshold
VALUES = 8  # about as many round values of each bound are tried


class Trial(Record):
    """The `count` of pairs kept, in all and by strategy, when a bound of one scorer has another value (None: off)."""

    scorer: str
    bound: Bound
    value: float | None
    present: bool
    count: int
    strategies: dict[str, int]


class Flip(Record):
    """How often another scorer disagrees about the n pairs nearest to a bound, which lie `within` so much of it.

    `order`: the share for which one scorer prefers the winner and the other does not; `verdict`: for which the
    conditions of one scorer keep the pair and those of the other do not. Without a bound: of all pairs.
    """

    scorer: str
    other: str
    bound: Bound | None
    value: float | None
    within: float | None
    n: int
    order: float | None
    verdict: float | None


@dataclass(frozen=True)
class Pool:
    """N pairs as columns, each of shape (N,): scores by scorer, strategies, and whether the winner beats the loser."""

    winners: dict[str, np.ndarray]
    losers: dict[str, np.ndarray]
    strategies: np.ndarray
    beaten: np.ndarray

    @classmethod
    def of(cls, pairs: Sequence[Pair]) -> "Pool":
        """The pool of pairs that are kept or refused by the present thresholds."""
        scorers = sorted(pairs[0].chosen_scores) if pairs else []
        unbeaten = ("order", "not a number", "worst")  # these reasons do not depend on a bound's value
        return cls(
            winners={name: np.array([pair.chosen_scores[name] for pair in pairs]) for name in scorers},
            losers={name: np.array([pair.rejected_scores[name] for pair in pairs]) for name in scorers},
            strategies=np.array([pair.strategy for pair in pairs], dtype=object),
            beaten=np.array([not pair.refused.startswith(unbeaten) for pair in pairs], dtype=bool),
        )

    def delta(self, scorer: str) -> np.ndarray:
        """Δ by one scorer, shape (N,)."""
        return self.winners[scorer] - self.losers[scorer]

    def values(self, scorer: str, bound: Bound) -> np.ndarray:
        """What a bound limits, shape (N,): the winner's score, the loser's, or their difference."""
        scores = {"min_winner_score": self.winners, "min_loser_score": self.losers}.get(bound)
        return self.delta(scorer) if scores is None else scores[scorer]

    def meets(self, scorer: str, bound: Bound, value: float) -> np.ndarray:
        """Which pairs meet a bound, shape (N,), by the very comparison that `pair` makes."""
        values = self.values(scorer, bound)
        return values <= value + TOLERANCE if bound == "max_margin" else values >= value - TOLERANCE


def trials(pairs: Sequence[Pair], thresholds: Sequence[Threshold]) -> list[Trial]:
    """For each bound of each scorer: how many pairs it would keep switched off, at round values, and at its present."""
    if not pairs:
        return []
    pool = Pool.of(pairs)
    met = {(t.scorer, bound): pool.meets(t.scorer, bound, getattr(t, bound)) for t in thresholds for bound in OFF}
    rows = []
    for threshold in thresholds:
        for bound in OFF:
            others = [mask for key, mask in met.items() if key != (threshold.scorer, bound)]
            rows += _trials_of(pool, threshold, bound, np.logical_and.reduce([pool.beaten, *others]))
    return rows


def _trials_of(pool: Pool, threshold: Threshold, bound: Bound, rest: np.ndarray) -> Iterator[Trial]:
    """One bound at its values; `rest`, shape (N,), are the pairs that meet everything else.

    The values are round ones over the middle nine tenths of what the bound limits, and the present one.
    """
    scorer, present, off = threshold.scorer, getattr(threshold, bound), OFF[bound]
    values = pool.values(scorer, bound)[pool.beaten]
    values = values[np.isfinite(values)]
    low, high = np.quantile(values, (0.05, 0.95)) if len(values) else (present, present)
    tried = ticks(float(low), float(high), VALUES) if high - low > 1e-6 else []
    for value in [None, *sorted({*tried, present} - {off})]:
        good = rest & pool.meets(scorer, bound, off if value is None else value)
        names, counts = np.unique(pool.strategies[good].astype(str), return_counts=True)
        strategies = dict.fromkeys(sorted(set(pool.strategies.tolist())), 0)
        strategies |= dict(zip(names.tolist(), counts.tolist(), strict=True))
        now = present == (off if value is None else value)
        yield Trial(scorer=scorer, bound=bound, value=value, present=now, count=int(good.sum()), strategies=strategies)


def flips(pairs: Sequence[Pair], thresholds: Sequence[Threshold]) -> list[Flip]:
    """For every two scorers with thresholds: how often they disagree, over all pairs and near each bound in force."""
    if not pairs:
        return []
    pool, rows = Pool.of(pairs), []
    for limit, other in permutations(thresholds, 2):
        order = (pool.delta(limit.scorer) > 0) != (pool.delta(other.scorer) > 0)
        verdict = _keeps(pool, limit) != _keeps(pool, other)
        comparable = np.flatnonzero(np.isfinite(pool.delta(limit.scorer)) & np.isfinite(pool.delta(other.scorer)))
        in_force: list[Bound] = [bound for bound in OFF if getattr(limit, bound) != OFF[bound]]
        for bound in (None, *in_force):
            near, within, value = comparable, None, None if bound is None else getattr(limit, bound)
            if bound is not None and len(comparable):  # the tenth of the pairs that is nearest to the bound
                distances = np.abs(pool.values(limit.scorer, bound)[comparable] - value)
                nearest = np.argsort(distances, kind="stable")[: max(1, round(NEAR * len(comparable)))]
                near, within = comparable[nearest], float(distances[nearest].max())
            shares = [float(flipped[near].mean()) if len(near) else None for flipped in (order, verdict)]
            rows.append(
                Flip(
                    scorer=limit.scorer, other=other.scorer, bound=bound, value=value, within=within, n=len(near),
                    order=shares[0], verdict=shares[1],
                )
            )  # fmt: skip
    return rows


def _keeps(pool: Pool, threshold: Threshold) -> np.ndarray:
    """Which pairs one scorer alone would keep, shape (N,)."""
    met = [pool.meets(threshold.scorer, bound, getattr(threshold, bound)) for bound in OFF]
    return np.logical_and.reduce([pool.delta(threshold.scorer) > 0, *met])


def ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Round values within [low, high], about `count` of them."""
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next((power * factor for factor in (1, 2, 2.5, 5) if power * factor >= rough), power * 10)
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 12) for i in range(first, math.floor(high / step + 1e-9) + 1)]
