"""Numbers: paired draws, real clips of other prompts, equal terms, and the warnings that belong to them."""

from dataclasses import replace

import numpy as np
import pytest

from milonga.core.records import Comparison, Prompt, Summary
from milonga.evaluation.compute import EvalPlan, Numbers
from milonga.evaluation.features import SystemFeatures
from milonga.evaluation.metrics import Metric, Rows, get_metric
from milonga.maths.bootstrap import inception_draws
from milonga.maths.metrics import frechet_distance, inception_score, kl_softmax

N = 60
KEYS = [f"clip{n:02d}" for n in range(N)]
METRICS = [
    replace(get_metric(name), needs=column)
    for name, column in (
        ("clap", "score"), ("silent", "silent"), ("kl", "logits"), ("is", "logits"), ("fd", "features"),
        ("fad", "rows"), ("fd_inf", "features"), ("kad", "features"),
    )
]  # fmt: skip


def summaries(systems: list[SystemFeatures], metrics: list[Metric], plan: EvalPlan) -> list[Summary]:
    return Numbers(systems, metrics, plan).summaries()


def comparisons(systems: list[SystemFeatures], metrics: list[Metric], plan: EvalPlan) -> list[Comparison]:
    return Numbers(systems, metrics, plan).comparisons()


def warnings(systems: list[SystemFeatures], metrics: list[Metric], plan: EvalPlan) -> list[str]:
    return Numbers(systems, metrics, plan).warnings()


def system(name: str, far: float, seed: int, keys: list[str] = KEYS) -> SystemFeatures:
    """A system whose features lie `far` from those of the real clips, and whose score falls with that."""
    own, shared = np.random.default_rng(seed), np.random.default_rng(0)
    real = shared.normal(size=(len(keys), 4))
    return SystemFeatures(
        name,
        {
            "score": {key: np.array(0.8 - 0.1 * far + 0.02 * own.normal()) for key in keys},
            "silent": {key: np.array(float(n < 3 * far)) for n, key in enumerate(keys)},
            "logits": {key: real[n] * 3 + far * own.normal(size=4) for n, key in enumerate(keys)},
            "features": {key: real[n] + far + 0.1 * own.normal(size=4) for n, key in enumerate(keys)},
            "rows": {key: real[n] + far + own.normal(size=(n % 3, 4)) for n, key in enumerate(keys)},
        },
    )


REAL = system("reference", 0, 1)
GOOD, BAD = system("good", 0.3, 2), system("bad", 1.5, 3)


def plan(paired: bool = True, reference: SystemFeatures | None = REAL, **splits: list[str]) -> EvalPlan:
    return EvalPlan({"overall": KEYS, **splits}, reference, {}, paired, 200, 0)


def column(of: SystemFeatures, name: str) -> np.ndarray:
    return np.stack([of.columns[name][key] for key in KEYS])


def test_values_are_the_plain_metrics_and_lie_in_their_intervals() -> None:
    rows = {(row.system, row.metric): row for row in summaries([BAD, GOOD], METRICS, plan())}
    fd = frechet_distance(column(BAD, "features"), column(REAL, "features"))
    assert rows["bad", "fd"].value == pytest.approx(fd)
    assert rows["bad", "kl"].value == pytest.approx(kl_softmax(column(REAL, "logits"), column(BAD, "logits")).mean())
    assert rows["bad", "is"].value == pytest.approx(inception_score(column(BAD, "logits"))[0])
    stacked = [np.concatenate([one.columns["rows"][key] for key in KEYS]) for one in (BAD, REAL)]
    assert rows["bad", "fad"].value == pytest.approx(frechet_distance(stacked[0], stacked[1]))
    for row in rows.values():
        assert row.low <= row.value <= row.high
        assert row.n == (N * 2 // 3 if row.metric == "fad" else N)  # every third clip is too short for a row
        assert f"N {row.n}; seed 0" in row.protocol
    assert f"sd of the splits {inception_score(column(BAD, 'logits'))[1]:.6g}" in rows["bad", "is"].protocol
    assert {metric for system, metric in rows if system == "reference"} == {"clap", "silent", "is"}


def test_the_better_system_is_found_by_every_metric_and_holm_is_never_below_p() -> None:
    rows = {row.metric: row for row in comparisons([BAD, GOOD], METRICS, plan())}
    assert {metric: row.better for metric, row in rows.items() if metric not in ("is", "silent")} == dict.fromkeys(
        ("clap", "kl", "fd", "fad", "fd_inf", "kad"), "good"
    )
    assert all(row.holm is not None and row.p <= row.holm <= 1 for row in rows.values())
    assert rows["fd"].holm is not None
    assert rows["fd"].holm < 0.01


def test_progress_counts_every_number() -> None:
    steps: list[int] = []
    numbers = Numbers([BAD, GOOD], METRICS[:2], plan())
    numbers.summaries(steps.append)
    numbers.comparisons(steps.append)
    assert sum(steps) == numbers.count


def test_real_clips_of_other_prompts_give_distances_of_all_clips_alone() -> None:
    other = SystemFeatures(
        "reference", {name: {f"real{key}": v for key, v in held.items()} for name, held in REAL.columns.items()}
    )
    found = summaries([BAD], METRICS, plan(False, other, half=KEYS[:30]))
    rows = {(row.split, row.metric): row for row in found if row.system == "bad"}
    fd = frechet_distance(column(BAD, "features"), column(REAL, "features"))
    assert rows["overall", "fd"].value == pytest.approx(fd)
    assert ("overall", "kl") not in rows
    assert ("half", "fd") not in rows
    assert ("half", "clap") in rows
    assert any("no KL" in told for told in warnings([BAD], METRICS, plan(False, other)))


def test_few_clips_give_values_without_intervals_and_that_is_said() -> None:
    few = KEYS[:12]
    rows = {row.metric: row for row in summaries([BAD], METRICS, EvalPlan({"overall": few}, REAL, {}, True, 200, 0))}
    assert np.isfinite(rows["fd"].value)
    assert np.isnan([rows["fd"].low, rows["fd"].high]).all()
    assert np.isfinite(rows["clap"].low)
    told = warnings([BAD], METRICS, EvalPlan({"overall": few}, REAL, {}, True, 200, 0))
    assert any("fewer than 20 clips" in one for one in told)
    assert any("cannot exceed 1.2" in one for one in told)
    assert "fd" not in {
        r.metric for r in comparisons([BAD, GOOD], METRICS, EvalPlan({"x": few}, REAL, {}, True, 200, 0))
    }


def test_a_clip_that_was_not_measured_is_left_out_of_its_metric_alone() -> None:
    spoilt = {name: dict(held) for name, held in BAD.columns.items()}
    spoilt["score"][KEYS[0]] = np.array(np.nan)
    rows = {
        row.metric: row.n for row in summaries([SystemFeatures("bad", spoilt)], METRICS, plan()) if row.system == "bad"
    }
    assert rows["clap"] == N - 1
    assert rows["fd"] == N


@pytest.mark.parametrize("short", [KEYS[1], KEYS[-1]])
def test_a_set_metric_leaves_out_the_clip_whose_real_clip_is_too_short_for_a_row(short: str) -> None:
    real = SystemFeatures("reference", REAL.columns | {"rows": REAL.columns["rows"] | {short: np.empty((0, 4))}})
    (row,) = (one for one in summaries([BAD], [METRICS[5]], plan(reference=real)) if one.system == "bad")
    held = [key for key in KEYS if key != short]
    stacked = [np.concatenate([one.columns["rows"][key] for key in held]) for one in (BAD, REAL)]
    assert row.n == N * 2 // 3 - 1
    assert row.value == pytest.approx(frechet_distance(stacked[0], stacked[1]))
    assert row.low <= row.value <= row.high


def test_a_set_metric_that_is_not_defined_is_left_out_and_a_warning_says_why() -> None:
    alike = dict(REAL.columns) | {"features": dict.fromkeys(KEYS, np.zeros(4))}
    numbers = Numbers([BAD], METRICS, plan(reference=SystemFeatures("reference", alike)))
    assert "kad" not in {row.metric for row in numbers.summaries() if row.system == "bad"}
    assert any("KAD of bad" in one and "all alike" in one for one in numbers.failures)


@pytest.mark.slow
def test_a_metric_of_a_set_needs_no_draws_of_its_own() -> None:
    spread = Metric("spread", "Spread", lambda rows, real: float(rows.values.std()), "features", "set")
    plain = replace(
        get_metric("is"), needs="logits", draws=None, value=lambda rows, real: get_metric("is").value(rows, real)
    )
    numbers = {row.metric: row for row in summaries([BAD], [spread, plain], plan()) if row.system == "bad"}
    assert numbers["spread"].value == pytest.approx(column(BAD, "features").std())
    assert numbers["spread"].low < numbers["spread"].value < numbers["spread"].high
    own = {row.metric: row for row in summaries([BAD], METRICS, plan()) if row.system == "bad"}["is"]
    assert (numbers["is"].low, numbers["is"].high) == (pytest.approx(own.low), pytest.approx(own.high))


@pytest.mark.slow
@pytest.mark.parametrize("count", [4, 12])
def test_a_certain_difference_among_many_systems_is_significant(count: int) -> None:
    clips = [get_metric("clap")] + [
        replace(get_metric("clap"), name=f"noise {n}", needs=f"noise {n}") for n in range(9)
    ]
    generator = np.random.default_rng(0)
    level = generator.normal(0.5, 0.1, N)

    def scored(place: int) -> SystemFeatures:
        gain = 0.1 if place == count - 1 else 0.0
        noise = {f"noise {n}": dict(zip(KEYS, generator.normal(size=N), strict=True)) for n in range(9)}
        scores = level + gain + generator.normal(0, 0.05, N)
        return SystemFeatures(f"s{place}", {"clap": dict(zip(KEYS, scores, strict=True)), **noise})

    many = EvalPlan({"overall": KEYS}, None, {}, False, 100, 0)
    rows = comparisons([scored(place) for place in range(count)], clips, many)
    assert len(rows) == 10 * count * (count - 1) // 2
    winners = {(row.a, row.b): row.better for row in rows if row.metric == "clap"}
    assert all(winners[f"s{count - 1}", f"s{place}"] == f"s{count - 1}" for place in range(count - 1))
    assert all(row.better == "neither" for row in rows if row.metric != "clap")
    assert all(
        (row.better != "neither") == (row.holm <= 0.05 and not row.low <= 0 <= row.high) for row in rows if row.holm
    )


def test_clips_of_one_caption_count_as_their_mean_and_draws_are_of_captions() -> None:
    """Three clips of each caption, all alike, with one real clip: every number and interval is that of one clip."""
    prompts = {f"{key}.{n}" if n else key: Prompt(id=key, text=key, source="") for n in range(3) for key in KEYS}

    def copies(one: SystemFeatures) -> SystemFeatures:
        columns = one.columns.items()
        return SystemFeatures(one.name, {c: {key: cells[p.id] for key, p in prompts.items()} for c, cells in columns})

    single = replace(plan(), prompts={key: prompts[key] for key in KEYS})
    several = replace(plan(), prompts=prompts, splits={"overall": list(prompts)})
    rows = [row for row in METRICS if row.name in ("clap", "kl", "fd")]
    once = summaries([BAD, GOOD], rows, single)
    again = summaries([copies(BAD), copies(GOOD)], rows, several)
    for a, b in zip(once, again, strict=True):
        assert (a.system, a.metric, a.n) == (b.system, b.metric, b.n)
        assert b.value == pytest.approx(a.value, rel=0.05)  # FD: the covariance has N − 1 of more clips
        assert (b.high - b.low) == pytest.approx(a.high - a.low, rel=0.05), (a.metric, a.system)
    others = comparisons([copies(BAD), copies(GOOD)], rows, several)
    for a, b in zip(comparisons([BAD, GOOD], rows, single), others, strict=True):
        assert (a.n, a.better) == (b.n, b.better)
        assert b.difference == pytest.approx(a.difference, rel=0.05)


def test_different_clips_of_a_caption_narrow_only_what_is_within_captions() -> None:
    """Yes or no of two clips a caption, drawn anew for each clip: the mean is that of means, NaN left out."""
    names = {key: Prompt.of(key, "test") for key in KEYS}
    keys = [*KEYS, *(f"{key}.1" for key in KEYS)]
    prompts = {key: names[key.partition(".")[0]] for key in keys}
    cells = {key: float(n % 3 == 0) for n, key in enumerate(keys)} | {KEYS[0]: np.nan, KEYS[5]: np.nan}
    cells[f"{KEYS[5]}.1"] = np.nan  # no clip of this caption is measured
    known = EvalPlan({"overall": keys}, None, prompts, False, 200, 0)
    (row,) = summaries([SystemFeatures("a", {"silent": cells})], [get_metric("silent")], known)
    means = [np.nanmean([cells[key], cells[f"{key}.1"]]) for key in KEYS if key != KEYS[5]]
    assert row.n == len(means) == N - 1
    assert row.value == pytest.approx(np.mean(means))
    spread = np.std(means, ddof=1) / np.sqrt(len(means))
    assert (row.high - row.low) == pytest.approx(3.92 * spread, rel=0.2)


def test_the_inception_score_of_draws_takes_every_clip_of_a_caption() -> None:
    logits = np.random.default_rng(4).normal(size=(60, 4)) * 3
    rows = Rows(logits, np.arange(60) % 30)
    own = np.random.default_rng(5).integers(30, size=(3, 30))
    expected = [inception_draws(logits, np.stack([draw, draw + 30], 1).reshape(1, -1), 10)[0] for draw in own]
    assert get_metric("is").draws(rows, None, own, own) == pytest.approx(expected)


def test_the_headline_is_a_family_of_its_own_where_events_are_measured() -> None:
    """Holm counts the headline's comparisons alone for the headline, and all of them for the other metrics."""
    events = Metric("told", "Told", lambda value, real, prompt: float(value), "events", headline=True)
    judge = Metric("judged", "Judged", needs="score", headline=True)
    others = [Metric(f"other {n}", f"Other {n}", needs="score") for n in range(6)]
    systems = [replace(one, columns=one.columns | {"events": one.columns["score"]}) for one in (BAD, GOOD)]
    rows = {row.metric: row for row in comparisons(systems, [events, judge, *others], plan())}
    assert rows["judged"].holm == pytest.approx(2 * rows["judged"].p)  # as many as the headline has
    assert rows["other 0"].holm == pytest.approx(8 * rows["other 0"].p)
    alone = {row.metric: row for row in comparisons(systems, [judge, *others], plan())}
    assert alone["judged"].holm == pytest.approx(7 * alone["judged"].p)  # without events there is one family
