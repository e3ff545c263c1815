"""Winners and losers (§4.1.2): one rule for all strategies, and the ensemble filter over several scorers.

Within a prompt and a strategy the winner is the best-ranked candidate made from the prompt's own words; every other
candidate is a possible loser. Strategy 1: all are faithful, best against the rest. Strategies 2 and 3: only x_τ is
faithful, so it wins where it scores higher. Whatever does not meet all conditions of all scorers is refused, with the
first condition that it fails. Equal scores: among the faithful the smallest id wins; a loser that scores the same as
the winner is not beaten, so that pair is refused as "order". Where only the worst may lose (CRPO, arXiv 2412.21037),
the others are refused as "worst".
"""

import math
from collections.abc import Iterable, Sequence

from milonga.core.config import Threshold
from milonga.core.errors import DataError
from milonga.core.ids import content_id
from milonga.core.records import Candidate, Pair, Record

TOLERANCE = 1e-9  # 0.45 - 0.40 is a little less than 0.05 in binary; bounds are meant in decimals


class Row(Record):
    """A row of Table 2: how many pairs were kept, and their mean scores by one scorer (None where there are none)."""

    strategy: str
    n: int
    winner: float | None
    loser: float | None
    delta: float | None


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
    _check(candidates, {threshold.scorer for threshold in thresholds} | ({rank_by} - {"mean"}))
    scorers = sorted({t.scorer for t in thresholds}) if rank_by == "mean" else [rank_by]
    pairs = []
    for strategy, members in _grouped(candidates):
        faithful = [member for member in members if member.request.faithful]
        if faithful:
            winner = min(faithful, key=lambda one: (-_rank(one, scorers, worst=-math.inf), one.request.id))
            others = [member for member in members if member is not winner]
            made = [_judged(winner, other, strategy, thresholds, rank_by, scorers) for other in others]
            pairs += made if losers == "all" else _of_worst(made, others, scorers)
    return sorted(pairs, key=lambda made: (made.strategy, made.prompt_id, made.rejected_id))


def _of_worst(made: Sequence[Pair], losers: Sequence[Candidate], scorers: Sequence[str]) -> list[Pair]:
    """The pairs of one winner, of which only that with the lowest-ranked loser may be kept, whatever the thresholds."""
    worst = min(losers, key=lambda one: (_rank(one, scorers, worst=math.inf), one.request.id), default=None)
    name, other = worst.request.id if worst else "", {"refused": "worst: another loser ranks lower"}
    unbeaten = ("order", "not a number")
    return [
        one if one.rejected_id == name or one.refused.startswith(unbeaten) else one.model_copy(update=other)
        for one in made
    ]


def kept(pairs: Iterable[Pair]) -> list[Pair]:
    """The pairs that were not refused."""
    return [made for made in pairs if not made.refused]


def refusals(pairs: Iterable[Pair]) -> dict[str, int]:
    """How many pairs each condition refused: not a number, order, alpha, beta, delta, worst."""
    counts: dict[str, int] = dict.fromkeys(("not a number", "order", "alpha", "beta", "delta", "worst"), 0)
    for made in pairs:
        if made.refused:
            counts[made.refused.partition(":")[0]] += 1
    return counts


def table2(pairs: Sequence[Pair], scorer: str) -> list[Row]:
    """Table 2 for the kept pairs: one row per strategy (also of those that kept none), then "Overall"."""
    strategies = sorted({made.strategy for made in pairs})
    good = kept(pairs)
    rows = [_row(name, [made for made in good if made.strategy == name], scorer) for name in strategies]
    return [*rows, _row("Overall", good, scorer)]


def unfiltered(pairs: Sequence[Pair], scorer: str) -> list[Distribution]:
    """Figure 2: per strategy, winner scores and differences of the pool before the thresholds.

    The pool is every pair whose winner scores higher than its loser by `scorer` (§4.1.2), whatever else refused it.
    """
    pool = [made for made in pairs if _delta(made, scorer) > 0]
    distributions = []
    for name in sorted({made.strategy for made in pairs}):
        own = [made for made in pool if made.strategy == name]
        winners, deltas = (made.chosen_scores[scorer] for made in own), (_delta(made, scorer) for made in own)
        distributions.append(Distribution(strategy=name, winners=tuple(winners), deltas=tuple(deltas)))
    return distributions


def _delta(made: Pair, scorer: str) -> float:
    return made.chosen_scores[scorer] - made.rejected_scores[scorer]


def _row(name: str, pairs: Sequence[Pair], scorer: str) -> Row:
    if not pairs:
        return Row(strategy=name, n=0, winner=None, loser=None, delta=None)
    winner = sum(made.chosen_scores[scorer] for made in pairs) / len(pairs)
    loser = sum(made.rejected_scores[scorer] for made in pairs) / len(pairs)
    return Row(strategy=name, n=len(pairs), winner=winner, loser=loser, delta=winner - loser)


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


def _grouped(candidates: Sequence[Candidate]) -> Iterable[tuple[str, list[Candidate]]]:
    """(strategy, candidates) for each prompt and strategy; a candidate is in every group that its request serves."""
    groups: dict[tuple[str, str], list[Candidate]] = {}
    for candidate in candidates:
        for strategy in candidate.request.strategies:
            groups.setdefault((strategy, candidate.request.prompt_id), []).append(candidate)
    return [(strategy, members) for (strategy, _), members in groups.items()]


def _rank(candidate: Candidate, scorers: Sequence[str], worst: float = math.nan) -> float:
    """The score that ranks: the mean over `scorers` (all, where none is named); `worst` where one is not a number."""
    values = [candidate.scores[name] for name in scorers or sorted(candidate.scores)]
    mean = sum(values) / len(values) if values else math.nan
    return mean if math.isfinite(mean) else worst


def _judged(
    winner: Candidate,
    loser: Candidate,
    strategy: str,
    thresholds: Sequence[Threshold],
    rank_by: str,
    scorers: Sequence[str],
) -> Pair:
    ranks = (rank_by, _rank(winner, scorers), _rank(loser, scorers))
    judged = [ranks, *((t.scorer, winner.scores[t.scorer], loser.scores[t.scorer]) for t in thresholds)]
    chosen, rejected = winner.request, loser.request
    return Pair(
        id=content_id(strategy, chosen.id, rejected.id),
        prompt_id=chosen.prompt_id,
        prompt=chosen.prompt,
        strategy=strategy,
        chosen_id=chosen.id,
        rejected_id=rejected.id,
        chosen_words=chosen.words,
        rejected_words=rejected.words,
        chosen_steps=chosen.steps,
        rejected_steps=rejected.steps,
        chosen_seed=chosen.seed,
        rejected_seed=rejected.seed,
        chosen_scores=winner.scores,
        rejected_scores=loser.scores,
        refused=_unbeaten(judged) or _outside(winner, loser, thresholds),
    )


def _unbeaten(judged: Sequence[tuple[str, float, float]]) -> str:
    """Condition 3 for every (scorer, winner's score, loser's score): the winner scores higher."""
    for scorer, high, low in judged:
        if not (math.isfinite(high) and math.isfinite(low)):
            return f"not a number: {scorer}"
    for scorer, high, low in judged:
        if not high > low:
            return f"order: {scorer} {high:.4g} <= {low:.4g}"
    return ""


def _outside(winner: Candidate, loser: Candidate, thresholds: Sequence[Threshold]) -> str:
    """Conditions 1, 2 and 4 for every scorer: the first that fails, as "alpha: clap 0.41 < 0.45"."""
    for limit in thresholds:
        high, low = winner.scores[limit.scorer], loser.scores[limit.scorer]
        checks = (("alpha", high, limit.alpha), ("beta", low, limit.beta), ("delta", high - low, limit.delta_low))
        for name, value, least in checks:
            if value < least - TOLERANCE:
                return f"{name}: {limit.scorer} {value:.4g} < {least:g}"
        if high - low > limit.delta_high + TOLERANCE:
            return f"delta: {limit.scorer} {high - low:.4g} > {limit.delta_high:g}"
    return ""
