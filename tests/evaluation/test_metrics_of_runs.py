"""Metrics of a run's features: the prompts each applies to, the clips it is computed over, and who is better."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from milonga.core.records import Comparison, Event, Prompt, Scene, Summary
from milonga.core.store import Run
from milonga.evaluation.compute import EvalPlan, Numbers
from milonga.evaluation.features import ClipFeatures, SystemFeatures, system_features
from milonga.evaluation.inputs import EvalInputs
from milonga.evaluation.metrics import SMALLEST_SET, all_metrics, clip_values, get_metric

METRICS = [row for row in all_metrics() if row.feature in ("clap", "events", "embedding", "logits") and row.default]
CLIP_METRICS = [row.name for row in METRICS if row.feature in ("clap", "events")]
SETS = [row.name for row in METRICS if row.kind == "set"]
LOWER_IS_BETTER = [row.name for row in METRICS if not row.higher]
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


def clip(of: Prompt, *labels: str, clap: float = 0.5, far: float = 0.0, place: int = 0) -> ClipFeatures:
    """A clip in which `labels` are detected in turn; its features lie `far` from those of the real clip `place`."""
    rng = np.random.default_rng(place)
    embedding, logits = rng.standard_normal(4) + far, rng.standard_normal(3) * 3 + np.array([2 * far, 0, 0])
    return ClipFeatures(
        id=f"clip-{of.id}", prompt_id=of.id, clap=clap, events=events(*labels),
        embedding=tuple(embedding), logits=tuple(logits), silent=False, clipped=False,
    )  # fmt: skip


def right(of: Prompt) -> list[str]:
    return [label for group in of.scene or () for label in group]


@dataclass(frozen=True)
class System:
    """A system's stored features, by prompt id."""

    name: str
    rows: dict[str, ClipFeatures]

    @property
    def features(self) -> SystemFeatures:
        return system_features(self.name, list(self.rows.values()))


def system(name: str, clap: float, wrong_every: int, far: float) -> System:
    """Every `wrong_every`-th clip has its events in reverse and one that nobody asked for."""
    rows = {}
    for place, one in enumerate(PROMPTS):
        wrong = place // 2 % wrong_every == 0
        labels = [*right(one)[::-1], "Siren"] if wrong else right(one)
        rows[one.id] = clip(one, *labels, clap=clap + 0.01 * (place % 5), far=far, place=place)
    return System(name, rows)


BASE, ALIGNED = system("base", 0.4, 2, 1.0), system("aligned", 0.6, 5, 0.3)
REAL = System("reference", {one.id: clip(one, *right(one), clap=0.8, place=n) for n, one in enumerate(PROMPTS)})
ALL = {"overall": PROMPTS}


def numbers(*systems: System, prompts: list[Prompt] = PROMPTS, real: System = REAL, seed: int = 0) -> Numbers:
    known = {one.id: one for one in prompts}
    plan = EvalPlan({"overall": list(known)}, real.features, known, True, 200, seed)
    return Numbers([one.features for one in systems], METRICS, plan, lambda metric: "by hand")


def measured(*systems: System, prompts: list[Prompt] = PROMPTS, real: System = REAL) -> dict[tuple[str, str], Summary]:
    rows = numbers(*systems, prompts=prompts, real=real).summaries()
    assert len({(row.system, row.metric) for row in rows}) == len(rows)
    return {(row.system, row.metric): row for row in rows}


def compared(first: System, second: System, prompts: list[Prompt] = PROMPTS) -> dict[str, Comparison]:
    return {row.metric: row for row in numbers(first, second, prompts=prompts).comparisons()}


def values_of(metric: str, one: System, prompts: list[Prompt]) -> np.ndarray:
    row, known = get_metric(metric), {prompt.id: prompt for prompt in prompts}
    return clip_values(row, one.features.columns[row.feature], known, list(known))


def splits_of(prompts: list[Prompt], names: tuple[str, ...]) -> dict[str, list[Prompt]]:
    """The prompts of a run's splits."""
    known = {one.id: one for one in prompts}
    manifest = {"recipe": {"evaluate": {"splits": names}}}
    inputs = EvalInputs("run", {"base": {}}, prompts=known, run=Run(Path("run")), manifest=manifest)
    return {name: [known[key] for key in keys] for name, keys in inputs.splits().items()}


def changed(of: System, name: str, places: range, **changes: object) -> System:
    """A system some of whose clips have other features."""
    some = {PROMPTS[place].id for place in places}
    return System(
        name, {one: row.model_copy(update=changes) if one in some else row for one, row in of.rows.items()}
    )  # fmt: skip


def without(of: System, name: str, places: range) -> System:
    some = {PROMPTS[place].id for place in places}
    return System(name, {one: row for one, row in of.rows.items() if one not in some})


def test_splits_follow_the_tags_and_an_empty_one_is_left_out() -> None:
    names = ("overall", "temporal", "non-temporal", "multi-concept", "single-concept")
    both = [prompt(0, None, "temporal"), prompt(1, None, "multi-concept"), prompt(2, None)]
    found = splits_of(both, names)
    assert {name: [both.index(one) for one in part] for name, part in found.items()} == {
        "overall": [0, 1, 2], "temporal": [0], "non-temporal": [1, 2], "multi-concept": [1], "single-concept": [0, 2],
    }  # fmt: skip
    assert list(found) == list(names)
    assert list(splits_of(both[1:], ("temporal", "overall"))) == ["overall"]


def test_a_metric_has_values_for_the_prompts_it_applies_to() -> None:
    together, unknown = prompt(90, (("Dog", "Bell"),)), prompt(91, None)
    some = [PROMPTS[0], PROMPTS[1], together, unknown]
    whole = System("all", {one.id: clip(one, *right(one)) for one in some})
    for metric in CLIP_METRICS:
        applies = np.isfinite(values_of(metric, whole, some)).tolist()
        expected = (
            [True] * 4
            if metric == "clap"
            else [False, True, False, False]
            if "order_accuracy" in metric
            else [True] * 3 + [False]
        )
        assert applies == expected, metric


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (
            ("Dog", "Bell"),
            {
                "full_recall": 1,
                "event_recall": 1,
                "extra_events": 0,
                "order_accuracy": 1,
                "order_accuracy_detected": 1,
                "exact_match": 1,
            },
        ),
        (
            ("Bell", "Dog"),
            {
                "full_recall": 1,
                "event_recall": 1,
                "extra_events": 0,
                "order_accuracy": 0,
                "order_accuracy_detected": 0,
                "exact_match": 0,
            },
        ),
        (
            ("Dog",),
            {
                "full_recall": 0,
                "event_recall": 0.5,
                "extra_events": 0,
                "order_accuracy": 0,
                "order_accuracy_detected": NAN,
                "exact_match": 0,
            },
        ),
        (
            ("Dog", "Bell", "Rain", "Cat"),
            {"event_recall": 1, "extra_events": 2, "order_accuracy": 1, "order_accuracy_detected": 1, "exact_match": 0},
        ),
        (
            (),
            {
                "full_recall": 0,
                "event_recall": 0,
                "extra_events": 0,
                "order_accuracy": 0,
                "order_accuracy_detected": NAN,
                "exact_match": 0,
            },
        ),
    ],
)
def test_values_of_a_clip_are_what_its_events_say(labels: tuple[str, ...], expected: dict[str, float]) -> None:
    one = prompt(0, SEQUENCE)
    single = System("one", {one.id: clip(one, *labels, clap=0.25)})
    for metric, value in {"clap": 0.25, **expected}.items():
        np.testing.assert_equal(values_of(metric, single, [one]), np.array([value], dtype=float), metric)


def test_a_missing_clip_has_no_value() -> None:
    assert np.isnan(values_of("clap", without(BASE, "base", range(1)), PROMPTS[:2])).tolist() == [True, False]


def test_a_summary_is_the_mean_over_its_prompts_with_an_interval_around_it() -> None:
    found = measured(BASE, ALIGNED)
    clap = found["base", "clap"]
    assert (clap.value, clap.n) == (pytest.approx(0.42), COUNT)
    order = found["base", "order_accuracy"]
    assert (order.value, order.n) == (pytest.approx(0.5), COUNT // 2)
    assert found["base", "extra_events"].value == pytest.approx(0.5)
    assert found["aligned", "exact_match"].value == pytest.approx(0.8)
    for row in found.values():
        assert row.low <= row.value <= row.high, row
        assert row.split == "overall"
        assert row.protocol.startswith("by hand; ")


def test_a_share_of_yes_keeps_its_width_when_all_say_yes() -> None:
    order = measured(BASE)["reference", "order_accuracy"]
    assert (order.value, order.high) == (1.0, 1.0)
    assert 0.8 < order.low < 1.0


def test_the_reference_has_no_distance_to_itself_but_an_inception_score() -> None:
    metrics = {metric for name, metric in measured(BASE) if name == "reference"}
    assert metrics == {*CLIP_METRICS, "is"}


@pytest.mark.slow
def test_distances_are_to_the_real_clips_of_the_same_prompts() -> None:
    found = measured(BASE, ALIGNED)
    twin = System("twin", {one.id: clip(one, *right(one), place=n) for n, one in enumerate(PROMPTS)})
    assert measured(twin)["twin", "fd"].value == pytest.approx(0.0, abs=1e-6)
    assert measured(twin)["twin", "kl"].value == pytest.approx(0.0, abs=1e-4)
    assert found["base", "fd"].value == pytest.approx(4 * 1.0**2, rel=0.01)
    assert found["aligned", "fd"].value == pytest.approx(4 * 0.3**2, rel=0.01)
    assert found["base", "kl"].value > found["aligned", "kl"].value > 0


def test_too_few_clips_give_a_set_no_interval_and_one_clip_values_alone() -> None:
    few = measured(BASE, prompts=PROMPTS[: SMALLEST_SET - 1])
    assert np.isfinite([few["base", "clap"].low, few["base", "fd"].value]).all()
    assert all(np.isnan([few["base", name].low, few["base", name].high]).all() for name in SETS)
    assert np.isfinite(measured(BASE, prompts=PROMPTS[:SMALLEST_SET])["base", "fd"].low)
    single = measured(BASE, prompts=PROMPTS[:1])
    assert single["base", "clap"].value == pytest.approx(0.4)
    assert not {metric for _, metric in single} & set(SETS)
    assert all(np.isnan([row.low, row.high]).all() and row.n == 1 for row in single.values())
    assert "fd" not in compared(BASE, ALIGNED, PROMPTS[: SMALLEST_SET - 1])
    assert compared(BASE, ALIGNED, PROMPTS[:1]) == {}
    unknown = [prompt(200 + n, None) for n in range(30)]
    lost = System("lost", {one.id: clip(one, place=n) for n, one in enumerate(unknown)})
    assert {metric for name, metric in measured(lost, prompts=unknown) if name == "lost"} == {"clap", "is"}


@pytest.mark.slow
def test_nan_is_left_out_and_counted_out() -> None:
    holed = changed(BASE, "holed", range(20), clap=NAN)
    found = measured(holed)["holed", "clap"]
    assert found.n == COUNT - 20
    assert np.isfinite([found.value, found.low, found.high]).all()
    assert ("deaf", "clap") not in measured(changed(BASE, "deaf", range(COUNT), clap=NAN))
    assert compared(holed, ALIGNED)["clap"].n == COUNT - 20
    assert "clap" not in compared(changed(BASE, "deaf", range(COUNT - 1), clap=NAN), ALIGNED)


def test_detected_order_counts_only_clips_in_which_all_is_detected() -> None:
    half_silent = changed(BASE, "half", range(30), events=())
    found = measured(half_silent)
    assert found["half", "order_accuracy"].n == COUNT // 2
    assert found["half", "order_accuracy_detected"].n == COUNT // 4


def test_a_comparison_is_later_less_earlier_and_knows_which_way_is_better() -> None:
    found = compared(BASE, ALIGNED)
    assert found.keys() == {*CLIP_METRICS, *SETS, "kl"}
    for metric, row in found.items():
        assert (row.a, row.b, row.split) == ("aligned", "base", "overall")
        assert row.low <= row.difference <= row.high
        assert 0 < row.p <= 1
        if metric in ("clap", "exact_match", "extra_events", "fd", "fd_inf", "kad", "kl"):
            assert row.better == "aligned", metric
            assert (row.difference < 0) == (metric in LOWER_IS_BETTER), metric
    turned = compared(ALIGNED, BASE)
    for metric in ("clap", "extra_events", "fd", "kl"):
        assert turned[metric].difference == pytest.approx(-found[metric].difference)
        assert turned[metric].better == "aligned"
    assert found["clap"].difference == pytest.approx(0.2)


def test_a_system_is_not_better_than_itself() -> None:
    for row in compared(BASE, System("twin", BASE.rows)).values():
        assert (row.difference, row.better) == (0.0, "neither"), row
        assert row.p == pytest.approx(1.0)


def test_every_two_systems_are_compared_on_every_split() -> None:
    known = {one.id: one for one in PROMPTS}
    splits = {name: [one.id for one in part] for name, part in splits_of(PROMPTS, ("overall", "temporal")).items()}
    systems = [BASE.features, System("sft", BASE.rows).features, ALIGNED.features]
    rows = Numbers(systems, METRICS, EvalPlan(splits, REAL.features, known, True, 100, 0)).comparisons()
    assert {(row.a, row.b) for row in rows} == {("sft", "base"), ("aligned", "base"), ("aligned", "sft")}
    assert {row.n for row in rows if row.split == "temporal" and row.metric == "clap"} == {COUNT // 2}
    for metric in ("order_accuracy", "order_accuracy_detected"):
        overall, temporal = ([r for r in rows if (r.metric, r.split) == (metric, s)] for s in ("overall", "temporal"))
        assert [row.difference for row in overall] == [row.difference for row in temporal]


@pytest.mark.slow
def test_only_prompts_that_both_have_are_compared() -> None:
    holed = without(BASE, "holed", range(20))
    found = compared(holed, ALIGNED)
    assert {found[metric].n for metric in ("clap", "fd", "kl", "is")} == {COUNT - 20}
    fewer = compared(System("base", holed.rows), without(ALIGNED, "aligned", range(20)))
    for metric in ("clap", "fd", "is"):
        assert fewer[metric].difference == pytest.approx(found[metric].difference)


def test_the_same_seed_gives_the_same_numbers_and_another_other_intervals() -> None:
    first, again = (numbers(BASE).summaries() for _ in range(2))
    assert first == again
    other = numbers(BASE, seed=1).summaries()
    set_metrics = ("fd_inf",)  # extrapolated from drawn parts
    pairs = [(a, b) for a, b in zip(first, other, strict=True) if a.metric not in set_metrics]
    assert all(a.value == b.value for a, b in pairs)
    assert [a.low for a, _ in pairs] != [b.low for _, b in pairs]
