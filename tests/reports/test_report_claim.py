"""Verdicts and claims: an interval says better, worse or nothing, seen from either side."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from milonga.core.records import Comparison, Summary
from milonga.evaluation.numbers import MEASURES, compared, measures, ordered, stamps, turned, verdict
from milonga.reports.claim import claim

NUMBERS = st.floats(-2, 2, allow_nan=False)


def row(metric: str, low: float, high: float, better: str, a: str = "aligned", b: str = "base") -> Comparison:
    middle, better = (low + high) / 2, {"a": a, "b": b}.get(better, better)
    return Comparison(
        split="overall", metric=metric, a=a, b=b, difference=middle, low=low, high=high, p=0.5, n=400, better=better
    )


@pytest.mark.parametrize(
    ("metric", "low", "high", "better", "expected"),
    [
        ("clap", 0.01, 0.03, "a", "better"),
        ("clap", 0.01, 0.03, "aligned", "better"),
        ("clap", -0.03, -0.01, "b", "worse"),
        ("fd", 0.1, 0.5, "b", "worse"),
        ("fd", -0.5, -0.1, "a", "better"),
        ("clap", -0.01, 0.03, "a", "undecided"),
        ("clap", 0.0, 0.03, "a", "undecided"),
        ("clap", 0.01, 0.03, "b", "undecided"),
        ("clap", 0.01, 0.03, "neither", "undecided"),
        ("clap", math.nan, 0.03, "a", "undecided"),
        ("loudness", 0.01, 0.03, "a", "better"),
        ("loudness", 0.01, 0.03, "b", "worse"),
    ],
)
def test_a_verdict_needs_the_interval_and_the_record_to_agree(
    metric: str, low: float, high: float, better: str, expected: str
) -> None:
    assert verdict(row(metric, low, high, better)) == expected


@given(NUMBERS, NUMBERS, st.sampled_from([m.name for m in MEASURES]), st.sampled_from(["a", "b", "neither"]))
def test_turning_round_turns_the_verdict(first: float, second: float, metric: str, better: str) -> None:
    one = row(metric, min(first, second), max(first, second), better)
    opposite = {"better": "worse", "worse": "better", "undecided": "undecided"}
    assert verdict(turned(one)) == opposite[verdict(one)]
    assert turned(turned(one)) == one


def test_every_metric_of_an_evaluation_has_a_title_and_the_same_better_direction() -> None:
    from milonga.evaluation.run_metrics import CLIP_METRICS, LOWER_IS_BETTER, SETS, SHARES

    of_runs = {*CLIP_METRICS, *SETS}
    assert {one.name for one in MEASURES} >= of_runs
    assert {one.name for one in MEASURES if not one.up} & of_runs == set(LOWER_IS_BETTER)
    assert {one.name for one in MEASURES if one.share} & of_runs == {*SHARES, "presence"}
    assert all(one.meaning for one in MEASURES)


def test_comparisons_are_found_whichever_way_they_were_written() -> None:
    rows = [row("clap", 0.01, 0.03, "a"), row("fd", 0.1, 0.3, "a", a="base", b="aligned")]
    found = compared(rows, "aligned", "base", "overall")
    assert (found["fd"].a, found["fd"].low, found["fd"].better) == ("aligned", -0.3, "base")
    assert compared(rows, "aligned", "base", "temporal") == {}


def test_a_claim_tells_all_it_was_given() -> None:
    rows = [row("order", -0.02, 0.05, "neither"), row("fd", 0.1, 0.5, "b"), row("clap", 0.01, 0.03, "a")]
    made = claim({one.metric: one for one in rows})
    assert made is not None
    assert made.sentence == (
        "On 400 captions, aligned fits its captions better than base: judge CLAP +0.020, 95 % interval "
        "[+0.010, +0.030]; worse: FD +0.30 [+0.10, +0.50]; undecided: order right."
    )
    assert made.headline == made.sentence.replace("; undecided: order right", "")
    assert [len(made.having(which)) for which in ("better", "worse", "undecided")] == [1, 1, 1]


def test_a_worse_or_undecided_lead_says_so() -> None:
    worse, unclear = (
        claim({"clap": row("clap", -0.03, -0.01, "b")}),
        claim({"clap": row("clap", -0.03, 0.01, "neither")}),
    )
    assert worse is not None
    assert "fits its captions worse than base" in worse.sentence
    assert unclear is not None
    assert "undecided whether" in unclear.sentence
    assert claim({}) is None


def test_a_claim_says_what_the_correction_for_many_comparisons_leaves_of_it() -> None:
    def told(**holm: float) -> str:
        rows = {
            "clap": row("clap", 0.01, 0.03, "a"),
            "fd": row("fd", 0.1, 0.5, "b"),
            "is": row("is", -0.1, 0.2, "neither"),
        }
        made = claim({name: one.model_copy(update={"holm": holm.get(name)}) for name, one in rows.items()})
        assert made is not None
        return made.corrected

    assert told() == told(**{"is": 0.01}) == ""
    assert "none of the differences is beyond chance" in told(clap=0.2, fd=0.9)
    assert told(clap=0.01, fd=0.9).endswith("these are beyond chance: Judge CLAP.")
    assert told(clap=0.01, fd=0.02).endswith("all of them.")


def test_stamps_are_told_once_and_what_systems_differ_in_by_their_name() -> None:
    def stamped(system: str, metric: str, stamp: str, split: str = "overall") -> Summary:
        return Summary(system=system, split=split, metric=metric, value=1, low=0, high=2, n=9, protocol=stamp)

    rows = [
        stamped("a", "fd", "panns@1; seed 0; N 9"),
        stamped("a", "is", "panns@1; seed 0; sd 0.1; N 8"),
        stamped("b", "fd", "panns@1; seed 0; N 9"),
        stamped("b", "is", "panns@1; seed 0; sd 0.2; N 8"),
        stamped("b", "is", "panns@1; seed 0; sd 0.3; N 4", "temporal"),
    ]
    assert stamps(rows) == ([("FD", "N 9"), ("IS", "N 8; sd 0.1 (a); sd 0.2 (b)")], "panns@1; seed 0")
    assert stamps(rows[:1]) == ([], "panns@1; seed 0; N 9")
    assert stamps([]) == ([], "")


def test_shares_are_told_in_points_and_undefined_numbers_as_a_dash() -> None:
    present = measures(["all_present"])[0]
    assert present.value(0.823) == "82.3 %"
    assert present.change(-0.043) == "−4.3 points"
    assert present.interval(-0.01, 0.02, signed=True) == "[−1.0, +2.0]"
    assert (present.value(math.nan), present.change(math.nan), present.interval(math.nan, 1.0)) == ("–", "–", "")


def test_base_comes_first_and_the_real_clips_last() -> None:
    assert ordered(["reference", "aligned", "sft", "base", "sft"]) == ["base", "sft", "aligned", "reference"]
