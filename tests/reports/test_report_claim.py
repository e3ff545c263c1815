"""Verdicts and claims: an interval says better, worse or nothing, seen from either side."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from milonga.core.records import Comparison, Summary
from milonga.evaluation.formatting import compared, in_table_order, protocols, turned, verdict
from milonga.evaluation.metrics import BUILT_IN, metrics_named
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
        ("clap", -0.01, 0.03, "a", "neither"),
        ("clap", 0.0, 0.03, "a", "neither"),
        ("clap", 0.01, 0.03, "b", "neither"),
        ("clap", 0.01, 0.03, "neither", "neither"),
        ("clap", math.nan, 0.03, "a", "neither"),
        ("loudness", 0.01, 0.03, "a", "better"),
        ("loudness", 0.01, 0.03, "b", "worse"),
    ],
)
def test_a_verdict_needs_the_interval_and_the_record_to_agree(
    metric: str, low: float, high: float, better: str, expected: str
) -> None:
    assert verdict(row(metric, low, high, better)) == expected


@given(NUMBERS, NUMBERS, st.sampled_from([m.name for m in BUILT_IN]), st.sampled_from(["a", "b", "neither"]))
def test_turning_round_turns_the_verdict(first: float, second: float, metric: str, better: str) -> None:
    one = row(metric, min(first, second), max(first, second), better)
    opposite = {"better": "worse", "worse": "better", "neither": "neither"}
    assert verdict(turned(one)) == opposite[verdict(one)]
    assert turned(turned(one)) == one


def test_every_metric_has_a_title_and_a_meaning_and_the_names_of_its_sources() -> None:
    names = [one.name for one in BUILT_IN]
    assert all(one.title and one.meaning for one in BUILT_IN)
    assert not any("{" in one.title + one.meaning for one in metrics_named(names))
    clap, fd = metrics_named(["fd", "clap"], {"clap_title": "Judge CLAP", "clap": "x", "classifier": "PANNs"})
    assert (clap.title, clap.meaning) == ("Judge CLAP", "cosine similarity of caption and clip, by x")
    assert fd.meaning == "Fréchet distance to the real clips on PANNs features"
    assert metrics_named(["clap b", "score c"])[0].title == "CLAP b"


def test_comparisons_are_found_whichever_way_they_were_written() -> None:
    rows = [row("clap", 0.01, 0.03, "a"), row("fd", 0.1, 0.3, "a", a="base", b="aligned")]
    found = compared(rows, "aligned", "base", "overall")
    assert (found["fd"].a, found["fd"].low, found["fd"].better) == ("aligned", -0.3, "base")
    assert compared(rows, "aligned", "base", "temporal") == {}


def test_a_claim_tells_all_it_was_given() -> None:
    rows = [row("order_accuracy", -0.02, 0.05, "neither"), row("fd", 0.1, 0.5, "b"), row("clap", 0.01, 0.03, "a")]
    made = claim({one.metric: one for one in rows}, {"clap_title": "Judge CLAP"})
    assert made is not None
    assert made.sentence == (
        "On 400 captions, aligned fits its captions better than base: judge CLAP +0.020, 95 % interval "
        "[+0.010, +0.030]; worse: FD +0.30 [+0.10, +0.50]; not significant: order accuracy."
    )
    assert made.headline == made.sentence.replace("; not significant: order accuracy", "")
    assert [len(made.having(which)) for which in ("better", "worse", "neither")] == [1, 1, 1]


def test_a_worse_or_insignificant_lead_says_so() -> None:
    worse, unclear = (
        claim({"clap": row("clap", -0.03, -0.01, "b")}),
        claim({"clap": row("clap", -0.03, 0.01, "neither")}),
    )
    assert worse is not None
    assert "fits its captions worse than base" in worse.sentence
    assert unclear is not None
    assert "neither significantly better nor worse than base" in unclear.sentence
    assert claim({}) is None


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
    assert protocols(rows) == ([("FD", "N 9"), ("IS", "N 8; sd 0.1 (a); sd 0.2 (b)")], "panns@1; seed 0")
    assert protocols(rows[:1]) == ([], "panns@1; seed 0; N 9")
    assert protocols([]) == ([], "")


def test_shares_are_told_in_points_and_undefined_numbers_as_a_dash() -> None:
    present = metrics_named(["full_recall"])[0]
    assert present.format_value(0.823) == "82.3 %"
    assert present.format_change(-0.043) == "−4.3 points"
    assert present.format_interval(-0.01, 0.02, signed=True) == "[−1.0, +2.0]"
    assert (
        present.format_value(math.nan),
        present.format_change(math.nan),
        present.format_interval(math.nan, 1.0),
    ) == ("–", "–", "")


def test_base_comes_first_and_the_real_clips_last() -> None:
    assert in_table_order(["reference", "aligned", "sft", "base", "sft"]) == ["base", "sft", "aligned", "reference"]
