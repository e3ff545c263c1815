"""Evaluation: whom a metric can be asked of, over which clips it is taken, and who is better by its interval."""

import numpy as np
import pytest

from milonga.core.records import Comparison, Event, Prompt, Scene, Summary
from milonga.evaluation.hear import Heard
from milonga.evaluation.run_metrics import (
    CLIP_METRICS,
    LOWER_IS_BETTER,
    SETS,
    SMALLEST_SET,
    System,
    asked_of,
    comparisons,
    splits_of,
    summaries,
    values_of,
)

SEQUENCE: Scene = (("Dog",), ("Bell",))
ALONE: Scene = (("Rain",),)
COUNT = 60
NAN = float("nan")


def prompt(n: int, scene: Scene | None, *tags: str) -> Prompt:
    return Prompt.of(f"caption {n}", "test", tags, scene)


PROMPTS = [
    prompt(n, SEQUENCE, "temporal", "multi-concept") if n % 2 else prompt(n, ALONE) for n in range(COUNT)
]  # fmt: skip


def events(*labels: str) -> tuple[Event, ...]:
    return tuple(Event(label=label, onset=float(n), offset=n + 1.0) for n, label in enumerate(labels))


def heard(of: Prompt, *labels: str, clap: float = 0.5, far: float = 0.0, place: int = 0) -> Heard:
    """A clip in which `labels` are heard in turn; its features lie `far` from those of the real clip `place`."""
    rng = np.random.default_rng(place)
    embedding, logits = rng.standard_normal(4) + far, rng.standard_normal(3) * 3 + np.array([2 * far, 0, 0])
    return Heard(
        id=f"clip-{of.id}", prompt_id=of.id, clap=clap, events=events(*labels),
        embedding=tuple(embedding), logits=tuple(logits),
    )  # fmt: skip


def right(of: Prompt) -> list[str]:
    return [label for group in of.scene or () for label in group]


def system(name: str, clap: float, wrong_every: int, far: float) -> System:
    """Every `wrong_every`-th clip has its events in reverse and one that nobody asked for."""
    rows = {}
    for place, one in enumerate(PROMPTS):
        wrong = place // 2 % wrong_every == 0
        labels = [*right(one)[::-1], "Siren"] if wrong else right(one)
        rows[one.id] = heard(one, *labels, clap=clap + 0.01 * (place % 5), far=far, place=place)
    return System(name, rows)


BASE, ALIGNED = system("base", 0.4, 2, 1.0), system("aligned", 0.6, 5, 0.3)
REAL = System("reference", {one.id: heard(one, *right(one), clap=0.8, place=n) for n, one in enumerate(PROMPTS)})
ALL = {"overall": PROMPTS}


def measured(*systems: System, prompts: list[Prompt] = PROMPTS, real: System = REAL) -> dict[tuple[str, str], Summary]:
    rows = summaries(systems, real, {"overall": prompts}, 200, 0, "by hand")
    assert len({(row.system, row.metric) for row in rows}) == len(rows)
    return {(row.system, row.metric): row for row in rows}


def compared(first: System, second: System, prompts: list[Prompt] = PROMPTS) -> dict[str, Comparison]:
    return {row.metric: row for row in comparisons([first, second], REAL, {"overall": prompts}, 200, 0)}


def changed(of: System, name: str, places: range, **changes: object) -> System:
    """A system some of whose clips were heard otherwise."""
    some = {PROMPTS[place].id for place in places}
    return System(
        name, {one: row.model_copy(update=changes) if one in some else row for one, row in of.heard.items()}
    )  # fmt: skip


def without(of: System, name: str, places: range) -> System:
    some = {PROMPTS[place].id for place in places}
    return System(name, {one: row for one, row in of.heard.items() if one not in some})


def test_splits_follow_the_tags_and_an_empty_one_is_left_out() -> None:
    names = ("overall", "temporal", "non-temporal", "multi-concept", "single-concept")
    both = [prompt(0, None, "temporal"), prompt(1, None, "multi-concept"), prompt(2, None)]
    found = splits_of(both, names)
    assert {name: [both.index(one) for one in part] for name, part in found.items()} == {
        "overall": [0, 1, 2], "temporal": [0], "non-temporal": [1, 2], "multi-concept": [1], "single-concept": [0, 2],
    }  # fmt: skip
    assert list(found) == list(names)
    assert list(splits_of(both[1:], ("temporal", "overall"))) == ["overall"]


def test_a_metric_is_asked_of_the_prompts_it_applies_to() -> None:
    together, unknown = prompt(90, (("Dog", "Bell"),)), prompt(91, None)
    some = [PROMPTS[0], PROMPTS[1], together, unknown]
    for metric in (*CLIP_METRICS, *SETS):
        found = asked_of(metric, some)
        if metric == "clap" or metric in SETS:
            assert found == some, metric
        elif metric.startswith("order"):
            assert found == [PROMPTS[1]], metric
        else:
            assert found == some[:3], metric


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (("Dog", "Bell"), {"all_present": 1, "presence": 1, "extra": 0, "order": 1, "order_heard": 1, "correct": 1}),
        (("Bell", "Dog"), {"all_present": 1, "presence": 1, "extra": 0, "order": 0, "order_heard": 0, "correct": 0}),
        (("Dog",), {"all_present": 0, "presence": 0.5, "extra": 0, "order": 0, "order_heard": NAN, "correct": 0}),
        (("Dog", "Bell", "Rain", "Cat"), {"presence": 1, "extra": 2, "order": 1, "order_heard": 1, "correct": 0}),
        ((), {"all_present": 0, "presence": 0, "extra": 0, "order": 0, "order_heard": NAN, "correct": 0}),
    ],
)
def test_values_of_a_clip_are_what_its_events_say(labels: tuple[str, ...], expected: dict[str, float]) -> None:
    one = prompt(0, SEQUENCE)
    single = System("one", {one.id: heard(one, *labels, clap=0.25)})
    for metric, value in {"clap": 0.25, **expected}.items():
        np.testing.assert_equal(values_of(metric, single, [one]), np.array([value], dtype=float), metric)


def test_a_missing_clip_has_no_value() -> None:
    assert np.isnan(values_of("clap", without(BASE, "base", range(1)), PROMPTS[:2])).tolist() == [True, False]


def test_a_summary_is_the_mean_over_those_asked_with_an_interval_around_it() -> None:
    found = measured(BASE, ALIGNED)
    clap = found["base", "clap"]
    assert (clap.value, clap.n) == (pytest.approx(0.42), COUNT)
    order = found["base", "order"]
    assert (order.value, order.n) == (pytest.approx(0.5), COUNT // 2)
    assert found["base", "extra"].value == pytest.approx(0.5)
    assert found["aligned", "correct"].value == pytest.approx(0.8)
    for row in found.values():
        assert row.low <= row.value <= row.high, row
        assert (row.split, row.protocol) == ("overall", "by hand")


def test_a_share_of_yes_keeps_its_width_when_all_say_yes() -> None:
    order = measured(BASE)["reference", "order"]
    assert (order.value, order.high) == (1.0, 1.0)
    assert 0.8 < order.low < 1.0


def test_the_reference_has_no_distance_to_itself_but_an_inception_score() -> None:
    metrics = {metric for name, metric in measured(BASE) if name == "reference"}
    assert metrics == {*CLIP_METRICS, "is"}


def test_distances_are_to_the_real_clips_of_the_same_prompts() -> None:
    found = measured(BASE, ALIGNED)
    twin = System("twin", {one.id: heard(one, *right(one), place=n) for n, one in enumerate(PROMPTS)})
    assert measured(twin)["twin", "fd"].value == pytest.approx(0.0, abs=1e-6)
    assert measured(twin)["twin", "kl"].value == pytest.approx(0.0, abs=1e-4)
    assert found["base", "fd"].value == pytest.approx(4 * 1.0**2, rel=0.01)
    assert found["aligned", "fd"].value == pytest.approx(4 * 0.3**2, rel=0.01)
    assert found["base", "kl"].value > found["aligned", "kl"].value > 0


def test_too_few_clips_make_no_row() -> None:
    few = measured(BASE, prompts=PROMPTS[: SMALLEST_SET - 1])
    assert ("base", "clap") in few
    assert not {metric for _, metric in few} & set(SETS)
    assert ("base", "fd") in measured(BASE, prompts=PROMPTS[:SMALLEST_SET])
    assert measured(BASE, prompts=PROMPTS[:1]) == {}
    assert "fd" not in compared(BASE, ALIGNED, PROMPTS[: SMALLEST_SET - 1])
    assert compared(BASE, ALIGNED, PROMPTS[:1]) == {}
    unknown = [prompt(200 + n, None) for n in range(30)]
    lost = System("lost", {one.id: heard(one, place=n) for n, one in enumerate(unknown)})
    assert {metric for _, metric in measured(lost, prompts=unknown)} == {"clap"}


def test_nan_is_left_out_and_counted_out() -> None:
    holed = changed(BASE, "holed", range(20), clap=NAN)
    found = measured(holed)["holed", "clap"]
    assert found.n == COUNT - 20
    assert np.isfinite([found.value, found.low, found.high]).all()
    assert ("deaf", "clap") not in measured(changed(BASE, "deaf", range(COUNT), clap=NAN))
    assert compared(holed, ALIGNED)["clap"].n == COUNT - 20
    assert "clap" not in compared(changed(BASE, "deaf", range(COUNT - 1), clap=NAN), ALIGNED)


def test_order_where_heard_counts_only_clips_in_which_all_is_heard() -> None:
    half_deaf = changed(BASE, "half", range(30), events=())
    found = measured(half_deaf)
    assert found["half", "order"].n == COUNT // 2
    assert found["half", "order_heard"].n == COUNT // 4


def test_a_comparison_is_later_less_earlier_and_knows_which_way_is_better() -> None:
    found = compared(BASE, ALIGNED)
    assert found.keys() == {*CLIP_METRICS, *SETS}
    for metric, row in found.items():
        assert (row.a, row.b, row.split) == ("aligned", "base", "overall")
        assert row.low <= row.difference <= row.high
        assert 0 < row.p <= 1
        if metric in (*LOWER_IS_BETTER, "clap", "order", "correct"):
            assert row.better == "aligned", metric
            assert (row.difference < 0) == (metric in LOWER_IS_BETTER), metric
    turned = compared(ALIGNED, BASE)
    for metric in ("clap", "order", "extra", "fd", "kl"):
        assert turned[metric].difference == pytest.approx(-found[metric].difference)
        assert turned[metric].better == "aligned"
    assert found["clap"].difference == pytest.approx(0.2)


def test_a_system_is_not_better_than_itself() -> None:
    for row in compared(BASE, System("twin", BASE.heard)).values():
        assert (row.difference, row.better) == (0.0, "neither"), row
        assert row.p == pytest.approx(1.0)


def test_every_two_systems_are_compared_on_every_split() -> None:
    splits = splits_of(PROMPTS, ("overall", "temporal"))
    rows = comparisons([BASE, System("sft", BASE.heard), ALIGNED], REAL, splits, 100, 0)
    assert {(row.a, row.b) for row in rows} == {("sft", "base"), ("aligned", "base"), ("aligned", "sft")}
    assert {row.n for row in rows if row.split == "temporal" and row.metric == "clap"} == {COUNT // 2}
    for metric in ("order", "order_heard"):
        overall, temporal = ([r for r in rows if (r.metric, r.split) == (metric, s)] for s in ("overall", "temporal"))
        assert [row.difference for row in overall] == [row.difference for row in temporal]


def test_only_prompts_that_both_performed_are_compared() -> None:
    holed = without(BASE, "holed", range(20))
    found = compared(holed, ALIGNED)
    assert {found[metric].n for metric in ("clap", "fd", "kl", "is")} == {COUNT - 20}
    fewer = compared(System("base", holed.heard), without(ALIGNED, "aligned", range(20)))
    for metric in ("clap", "fd", "is"):
        assert fewer[metric].difference == pytest.approx(found[metric].difference)


def test_the_same_seed_gives_the_same_numbers_and_another_other_intervals() -> None:
    first, again = (summaries([BASE], REAL, ALL, 200, 0, "") for _ in range(2))
    assert first == again
    other = summaries([BASE], REAL, ALL, 200, 1, "")
    assert [row.value for row in other] == [row.value for row in first]
    assert [row.low for row in other] != [row.low for row in first]
