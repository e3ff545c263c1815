"""Winners and losers (§4.1.2 of the paper): one rule for all strategies, and the ensemble filter over the scorers.

Within a prompt and a strategy the winner is the best-ranked candidate made from the prompt's own words; every other
candidate is a possible loser. Strategy 1: all are faithful, so the best stands against the rest. Strategies 2 and 3:
only x_τ is faithful, so it wins where it scores higher. A pair that fails a condition of any scorer is refused and
keeps the first condition that it fails. Equal scores: among the faithful the smallest id wins; a loser that scores the
same as the winner is not beaten, so that pair is refused as "order". Where only the worst may lose (CRPO, arXiv
2412.21037), the others are refused as "worst".
"""

import math
from collections.abc import Sequence

from milonga.core.config import Threshold
from milonga.core.errors import DataError
from milonga.core.records import Candidate, Pair, Record

TOLERANCE = 1e-9  # 0.45 - 0.40 is a little less than 0.05 in binary; bounds are meant in decimals


class Distribution(Record):
    """A strategy's unfiltered pool (Figure 2): each pair's winner score and its difference, by one scorer."""

    strategy: str
    winners: tuple[float, ...]
    deltas: tuple[float, ...]


def pair(
    candidates: Sequence[Candidate], thresholds: Sequence[Threshold], rank_by: str, losers: str = "all"
) -> list[Pair]:
    """Every winner with every other candidate of its prompt and strategy, kept or refused; sorted, whatever the order.

    `rank_by` names the scorer that ranks, or is "mean" (over the thresholds' scorers; over all where there are no
    thresholds). With `losers` "worst", of all others only the lowest-ranked may lose. A prompt without a faithful
    candidate under a strategy gives no pair. Raises DataError when a scorer was not run or a candidate comes twice.
    """
    scorers = sorted({limit.scorer for limit in thresholds})
    _check(candidates, {*scorers, rank_by} - {"mean"})
    rank_scorers = scorers if rank_by == "mean" else [rank_by]
    groups: dict[tuple[str, str], list[Candidate]] = {}
    for candidate in candidates:
        for strategy in candidate.request.strategies:
            groups.setdefault((strategy, candidate.request.prompt_id), []).append(candidate)

    pairs = []
    for (strategy, _), members in groups.items():
        faithful = [member for member in members if member.request.faithful]
        if not faithful:
            continue
        winner = min(faithful, key=lambda member: (-_rank(member, rank_scorers, worst=-math.inf), member.request.id))
        others = [member for member in members if member is not winner]
        worst = min(
            others, key=lambda member: (_rank(member, rank_scorers, worst=math.inf), member.request.id), default=None
        )
        for loser in others:
            ranks = (rank_by, _rank(winner, rank_scorers), _rank(loser, rank_scorers))
            compared = [
                ranks,
                *((name.scorer, winner.scores[name.scorer], loser.scores[name.scorer]) for name in thresholds),
            ]
            refused = _not_beaten(compared)
            if not refused and losers == "worst" and loser is not worst:
                refused = "worst: another loser ranks lower"
            refused = refused or _outside(winner, loser, thresholds)
            pairs.append(Pair.of(winner, loser, strategy, refused))
    return sorted(pairs, key=lambda row: (row.strategy, row.prompt_id, row.rejected_id))


def unfiltered(pairs: Sequence[Pair], scorer: str) -> list[Distribution]:
    """Figure 2: per strategy, winner scores and differences of the pool before the thresholds.

    The pool is every pair whose winner scores higher than its loser by `scorer` (§4.1.2), whatever else refused it.
    """
    distributions = []
    for name in sorted({row.strategy for row in pairs}):
        scores = [(row.chosen_scores[scorer], row.rejected_scores[scorer]) for row in pairs if row.strategy == name]
        winners = tuple(high for high, low in scores if high - low > 0)
        deltas = tuple(high - low for high, low in scores if high - low > 0)
        distributions.append(Distribution(strategy=name, winners=winners, deltas=deltas))
    return distributions


def _check(candidates: Sequence[Candidate], scorers: set[str]) -> None:
    seen: set[str] = set()
    for candidate in candidates:
        name = candidate.request.id
        missing = sorted(scorers - candidate.scores.keys())
        if missing:
            known = ", ".join(sorted(candidate.scores)) or "none"
            raise DataError(f"candidate {name} has no score by {missing[0]!r} (it has: {known}); run `score` with it")
        if name in seen:
            raise DataError(f"candidate {name} comes twice; delete the score shard that repeats it and run again")
        seen.add(name)


def _rank(candidate: Candidate, scorers: Sequence[str], worst: float = math.nan) -> float:
    """The score that ranks: the mean over `scorers` (all, where none is named); `worst` where one is not a number."""
    values = [candidate.scores[name] for name in scorers or sorted(candidate.scores)]
    mean = sum(values) / len(values) if values else math.nan
    return mean if math.isfinite(mean) else worst


def _not_beaten(compared: Sequence[tuple[str, float, float]]) -> str:
    """Condition 3 for every (scorer, winner's score, loser's score): the winner scores higher."""
    for scorer, high, low in compared:
        if not (math.isfinite(high) and math.isfinite(low)):
            return f"not a number: {scorer}"
    for scorer, high, low in compared:
        if not high > low:
            return f"order: {scorer} {high:.4g} <= {low:.4g}"
    return ""


def _outside(winner: Candidate, loser: Candidate, thresholds: Sequence[Threshold]) -> str:
    """Conditions 1, 2 and 4 for every scorer: the first that fails, as "min_winner_score: clap 0.41 < 0.45"."""
    for limit in thresholds:
        high, low = winner.scores[limit.scorer], loser.scores[limit.scorer]
        for bound, value in (("min_winner_score", high), ("min_loser_score", low), ("min_margin", high - low)):
            if value < getattr(limit, bound) - TOLERANCE:
                return f"{bound}: {limit.scorer} {value:.4g} < {getattr(limit, bound):g}"
        if high - low > limit.max_margin + TOLERANCE:
            return f"max_margin: {limit.scorer} {high - low:.4g} > {limit.max_margin:g}"
    return ""
