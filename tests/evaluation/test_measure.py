"""Measuring: paired draws, real clips of other prompts, equal terms, and what must be said with the numbers."""

import numpy as np
import pytest

from milonga.evaluation.measure import Metric, Performance, Question, comparisons, count, summaries, warnings
from milonga.maths.metrics import frechet_distance, inception_score, kl_softmax

N = 60
KEYS = [f"clip{n:02d}" for n in range(N)]
METRICS = [
    Metric("clap", "mean", "score", "by a judge"),
    Metric("silent", "share", "silent", "by the file", up=False),
    Metric("kl", "kl", "logits", "by a tagger", up=False),
    Metric("is", "inception", "logits", "by a tagger"),
    Metric("fd", "frechet", "features", "by a tagger", up=False),
    Metric("fad", "frechet", "rows", "by rows", up=False),
    Metric("fd_inf", "endless", "features", "by a tagger", up=False),
    Metric("kad", "kernel", "features", "by a tagger", up=False),
]


def performance(name: str, far: float, seed: int, keys: list[str] = KEYS) -> Performance:
    """A system whose features lie `far` from those of the real clips, and whose score falls with that."""
    own, shared = np.random.default_rng(seed), np.random.default_rng(0)
    real = shared.normal(size=(len(keys), 4))
    return Performance(
        name,
        {
            "score": {key: np.array(0.8 - 0.1 * far + 0.02 * own.normal()) for key in keys},
            "silent": {key: np.array(float(n < 3 * far)) for n, key in enumerate(keys)},
            "logits": {key: real[n] * 3 + far * own.normal(size=4) for n, key in enumerate(keys)},
            "features": {key: real[n] + far + 0.1 * own.normal(size=4) for n, key in enumerate(keys)},
            "rows": {key: real[n] + far + own.normal(size=(n % 3, 4)) for n, key in enumerate(keys)},
        },
    )


REAL = performance("reference", 0, 1)
GOOD, BAD = performance("good", 0.3, 2), performance("bad", 1.5, 3)


def asked(paired: bool = True, reference: Performance | None = REAL, **splits: list[str]) -> Question:
    return Question({"overall": KEYS, **splits}, reference, paired, 200, 0)


def column(of: Performance, name: str) -> np.ndarray:
    return np.stack([of.columns[name][key] for key in KEYS])


def test_values_are_the_plain_metrics_and_lie_in_their_intervals() -> None:
    rows = {(row.system, row.metric): row for row in summaries([BAD, GOOD], METRICS, asked())}
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
    rows = {row.metric: row for row in comparisons([BAD, GOOD], METRICS, asked())}
    assert {metric: row.better for metric, row in rows.items() if metric not in ("is", "silent")} == dict.fromkeys(
        ("clap", "kl", "fd", "fad", "fd_inf", "kad"), "good"
    )
    assert all(row.holm is not None and row.p <= row.holm <= 1 for row in rows.values())
    assert rows["fd"].holm is not None
    assert rows["fd"].holm < 0.01


def test_progress_counts_every_number() -> None:
    told: list[int] = []
    summaries([BAD, GOOD], METRICS[:2], asked(), told.append)
    comparisons([BAD, GOOD], METRICS[:2], asked(), told.append)
    assert sum(told) == count([BAD, GOOD], METRICS[:2], asked())


def test_real_clips_of_other_prompts_give_distances_of_all_clips_alone() -> None:
    other = Performance(
        "reference", {name: {f"real{key}": v for key, v in held.items()} for name, held in REAL.columns.items()}
    )
    found = summaries([BAD], METRICS, asked(False, other, half=KEYS[:30]))
    rows = {(row.split, row.metric): row for row in found if row.system == "bad"}
    fd = frechet_distance(column(BAD, "features"), column(REAL, "features"))
    assert rows["overall", "fd"].value == pytest.approx(fd)
    assert ("overall", "kl") not in rows
    assert ("half", "fd") not in rows
    assert ("half", "clap") in rows
    assert any("no KL" in told for told in warnings([BAD], METRICS, asked(False, other)))


def test_few_clips_give_values_without_intervals_and_that_is_said() -> None:
    few = KEYS[:12]
    rows = {row.metric: row for row in summaries([BAD], METRICS, Question({"overall": few}, REAL, True, 200, 0))}
    assert np.isfinite(rows["fd"].value)
    assert np.isnan([rows["fd"].low, rows["fd"].high]).all()
    assert np.isfinite(rows["clap"].low)
    told = warnings([BAD], METRICS, Question({"overall": few}, REAL, True, 200, 0))
    assert any("fewer than 20 clips" in one for one in told)
    assert any("cannot pass 1.2" in one for one in told)
    assert "fd" not in {r.metric for r in comparisons([BAD, GOOD], METRICS, Question({"x": few}, REAL, True, 200, 0))}


def test_a_clip_that_was_not_measured_is_left_out_of_its_metric_alone() -> None:
    spoilt = {name: dict(held) for name, held in BAD.columns.items()}
    spoilt["score"][KEYS[0]] = np.array(np.nan)
    rows = {
        row.metric: row.n for row in summaries([Performance("bad", spoilt)], METRICS, asked()) if row.system == "bad"
    }
    assert rows["clap"] == N - 1
    assert rows["fd"] == N
