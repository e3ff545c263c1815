"""From ratings to results: the exclusion rule, known effects found again, what may be exported, and for whom."""

import csv
import json
from io import StringIO
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from small_test import SYSTEMS, small_test

from milonga.core.audio import clips_of
from milonga.core.errors import DataError, StoreError
from milonga.core.records import Label, Pair, Prompt, Rating
from milonga.core.store import Run, Shards
from milonga.listening_test import export
from milonga.listening_test.design import choose_prompts, plan_session
from milonga.listening_test.formatting import as_json, as_text
from milonga.listening_test.material import read_test
from milonga.listening_test.ratings import Ratings
from milonga.listening_test.records import BROKEN, ScreenedRating, Test
from milonga.listening_test.results import compute_results
from milonga.listening_test.screening import failed, verdict, verdicts

WORTH = {"zebra-base": 2.4, "zebra-sft": 2.6, "zebra-aligned": 3.6, "reference": 4.6, BROKEN: 1.0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A test with sixteen raters whose ears are known; the last two press keys by chance."""
    path = tmp_path_factory.mktemp("results") / "test"
    test = small_test(path, prompts=15)
    ratings = Ratings(path / "ratings.sqlite")
    for number, _ in enumerate(ratings.invite(16), 1):
        rate_all(ratings, test, number, attentive=number <= 14)
    return path


def rate_all(ratings: Ratings, test: Test, number: int, attentive: bool) -> None:
    """One rater's whole session, straight into the database."""
    rng = np.random.default_rng(number)
    taken = {one.id: sum(t.prompt_id == one.id for t in ratings.prompts()) for one in test.prompts}
    picked = choose_prompts(test, number, taken)
    ratings.begin(number, lambda: plan_session(test, number, {one: taken[one] for one in picked}))
    for item in range(6):
        ratings.answer_tone(number, item, 1, True)
    strict = 0.4 * rng.normal()
    for place, trial in enumerate(ratings.trials(number)):
        given = answer(rng, trial, strict) if attentive else answer(rng, trial, None)
        ratings.judge(number, place, given, 1.0)


def answer(rng: np.random.Generator, trial, strict: float | None) -> dict:
    """What a rater of known ears says; by chance where `strict` is None."""
    if strict is None:
        marks = rng.integers(1, 6, 2)
        gap = rng.normal()
    else:
        spread = 0.1 if trial.check else 0.6
        marks = np.clip(np.rint(WORTH[trial.a] + (0 if trial.check else strict) + spread * rng.normal(size=2)), 1, 5)
        if trial.shown_id:
            marks[1] = 1
        gap = WORTH[trial.a] - WORTH[trial.b] + spread * rng.normal() if trial.b else 0
    if trial.kind == "rate":
        return {"ovl": int(marks[0]), "rel": int(marks[1]), "better": None}
    return {"ovl": None, "rel": None, "better": "a" if gap > 0.2 else "b" if gap < -0.2 else "same"}


def read(folder: Path) -> tuple[Test, list[Rating], list]:
    test, ratings = read_test(folder), Ratings(folder / "ratings.sqlite")
    every = ratings.ratings(test)
    return test, every, verdicts(every, ratings.tones(), checked=True)


def test_known_effects_are_found_again_and_those_who_did_not_listen_are_out(folder):
    test, every, found = read(folder)
    result = compute_results(test, every, found)
    assert {one.rater for one in result.excluded} == {"r15", "r16"}
    assert all("attention" in one.excluded for one in result.excluded)
    rows = {(one.system, one.metric): one for one in result.summary}
    for system in SYSTEMS:
        for scale in ("ovl", "rel"):
            one = rows[system, scale]
            assert one.low <= min(WORTH[system], 4.5) + 0.15
            assert one.high >= WORTH[system] - 0.25
    assert rows["all", "ovl_alpha"].value > 0.4
    assert rows["zebra-aligned", "strength"].low > rows["zebra-sft", "strength"].high
    better = {(one.metric, one.a, one.b): one.better for one in result.comparisons}
    assert better["ovl", "zebra-aligned", "zebra-base"] == "zebra-aligned"
    shares = {(one.a, one.b): one for one in result.preferences}
    one = shares["zebra-aligned", "zebra-base"]
    assert one.low > 0.5
    assert one.wins + one.losses + one.ties == 14 * test.per_rater
    assert len(shares) == 3


def test_verdicts_follow_the_corrected_p(folder, monkeypatch):
    test, every, checks = read(folder)
    assert all(one.better == "neither" or one.p <= 0.05 for one in compute_results(test, every, checks).comparisons)
    monkeypatch.setattr("milonga.listening_test.results.holm", np.ones_like)
    assert {one.better for one in compute_results(test, every, checks).comparisons} == {"neither"}


def test_clips_of_checks_count_for_nobody(folder):
    test, every, found = read(folder)
    counted = [one for one in every if not one.check and one.rater not in ("r15", "r16")]
    assert compute_results(test, every, found).ratings == len(counted)
    assert not any(one.system == BROKEN for one in compute_results(test, every, found).summary)


def test_the_text_and_the_json_tell_the_same_and_an_empty_test_tells_nothing(folder, tmp_path):
    test, every, found = read(folder)
    result = compute_results(test, every, found)
    text, data = as_text(result), json.loads(as_json(result))
    for row in data["summary"]:
        assert f"{row['value']:.2f}" in text
    assert "r16" in text
    empty = compute_results(test, [], [])
    assert "0 valid ratings" in as_text(empty)
    assert json.loads(as_json(empty))["summary"] == []
    lone = compute_results(test, [one for one in every if one.rater == "r1"], [])
    assert json.loads(as_json(lone))["summary"][0]["low"] is None


@pytest.mark.parametrize(
    ("change", "fails"),
    [
        ({"check": "broken", "a": BROKEN, "ovl": 2}, False),
        ({"check": "broken", "a": BROKEN, "ovl": 3}, True),
        ({"check": "reference", "a": "reference", "ovl": 3, "rel": 3}, False),
        ({"check": "reference", "a": "reference", "ovl": 3, "rel": 2}, True),
        ({"check": "caption", "a": "reference", "ovl": 5, "rel": 2}, False),
        ({"check": "caption", "a": "reference", "ovl": 5, "rel": 3}, True),
        ({"check": "reference", "a": "reference", "ovl": 2}, True),
        ({"kind": "compare", "check": "pair", "a": BROKEN, "b": "reference", "better": "b"}, False),
        ({"kind": "compare", "check": "pair", "a": "reference", "b": BROKEN, "better": "b"}, True),
        ({"kind": "compare", "check": "pair", "a": "reference", "b": BROKEN, "better": "same"}, True),
    ],
)
def test_what_fails_a_check(folder, change, fails):
    rating = read(folder)[1][0]
    assert failed([rating.model_copy(update={"kind": "rate", "b": "", "better": None} | change)]) is fails


def test_the_rule_word_for_word(folder):
    first = read(folder)[1][0].model_copy(update={"kind": "rate", "check": "broken", "a": BROKEN, "ovl": 1})
    one, two, three = (first.model_copy(update={"place": place}) for place in range(3))
    wrong, plain = one.model_copy(update={"ovl": 5, "place": 9}), one.model_copy(update={"check": ""})
    again = wrong.model_copy(update={"place": 10})
    assert verdict("r1", [one, two, three, wrong], 5, True).excluded == ""
    assert verdict("r1", [one, two, wrong], 5, True).excluded == "attention: 1 of 3 checks failed"
    many = [one.model_copy(update={"place": place}) for place in range(6)]
    assert verdict("r1", [*many, wrong, again], 5, True).excluded == "attention: 2 checks of one kind failed (broken)"
    assert verdict("r1", many, 6, True, early=2).excluded == ""
    assert verdict("r1", many, 6, True, early=3).excluded.startswith("timing: 3 answers")
    assert verdict("r1", many, 6, True, revoked=True).excluded == "revoked"
    assert verdict("r1", [one], 4, True).excluded == "headphones: 4 of 6 tones right"
    assert verdict("r1", [plain], 6, True).excluded == "attention: no check answered yet"
    assert verdict("r1", [plain], 6, False).excluded == ""
    assert "; " in verdict("r1", [wrong], 0, True).excluded


def test_the_table_in_csv_and_parquet(folder, tmp_path):
    _, every, found = read(folder)
    rows = export.screened(every, found)
    export.write_table(rows, ScreenedRating, tmp_path / "ratings.csv")
    lines = list(csv.DictReader(StringIO((tmp_path / "ratings.csv").read_text())))
    export.write_table(rows, ScreenedRating, tmp_path / "ratings.parquet")
    table = pq.read_table(tmp_path / "ratings.parquet").to_pylist()
    assert len(lines) == len(table) == len(every)
    assert {one["rater"] for one in table if one["excluded"]} == {"r15", "r16"}
    assert [Rating.model_validate({k: v for k, v in one.items() if k != "excluded"}) for one in table] == every
    assert lines[0]["ovl"] == str(table[0]["ovl"])
    with pytest.raises(DataError, match=r"\.csv or \.parquet"):
        export.write_table(rows, ScreenedRating, tmp_path / "ratings.txt")


def test_a_spreadsheet_runs_nothing():
    rating = Rating(
        rater="r1", place=0, kind="rate", check="", prompt_id="x", prompt="=HYPERLINK(1)", a="s", b="", ovl=1, rel=1,
        better=None, seconds=1, given="now",
    )  # fmt: skip
    assert "'=HYPERLINK(1)" in export.as_csv(export.screened([rating], []), ScreenedRating)


def stored(folder: Path, test: Test) -> tuple[Shards, list[str], tuple[Prompt, ...]]:
    """A test's clips and prompts, as exports take them."""
    shards = Run(folder).stage("generate")
    return shards, shards.names(), test.prompts


def test_pairs_follow_the_votes_and_train_finds_their_clips(folder, tmp_path):
    test, every, found = read(folder)
    out = {one.rater for one in found if one.excluded}
    counted = [one for one in every if not one.check and one.rater not in out]
    export.write_pairs(*stored(folder, test), export.pairs(test, counted), tmp_path / "pairs")
    run = Run(tmp_path / "pairs")
    kept, refused = run.stage("pair").read_records(Pair), run.stage("refused").read_records(Pair)
    assert len(kept) + len(refused) == 12 * 3
    assert all(one.refused.startswith(("votes", "order")) for one in refused)
    clips = {
        name for shard in run.stage("generate").names() for name in clips_of(run.stage("generate").read_table(shard))
    }
    assert {name for one in kept for name in (one.chosen_id, one.rejected_id)} <= clips
    system = {one.id: one.system for one in test.clips}
    for one in kept:
        assert one.chosen_scores["human_preference"] > one.rejected_scores["human_preference"]
        assert one.chosen_scores["human_preference"] + one.rejected_scores["human_preference"] == pytest.approx(1)
    won = [system[one.chosen_id] for one in kept if "zebra-aligned" in (system[one.chosen_id], system[one.rejected_id])]
    assert won.count("zebra-aligned") > 0.9 * len(won)
    assert len(run.stage("prompts").read_records(Prompt)) == 12
    with pytest.raises(StoreError, match="not empty"):
        export.write_pairs(*stored(folder, test), export.pairs(test, counted), tmp_path / "pairs")


def test_labels_are_clear_cases_only(folder, tmp_path):
    test, every, _ = read(folder)
    counted = [one for one in every if not one.check and one.rater not in ("r15", "r16")]
    export.write_labels(*stored(folder, test), export.labels(test, counted), tmp_path / "labels")
    labels = Run(tmp_path / "labels").stage("label").read_records(Label)
    assert labels
    for one in labels:
        own = [
            (r.ovl + r.rel) / 2
            for r in counted
            if r.kind == "rate" and (r.prompt_id, r.a) == (one.prompt_id, one.system)
        ]
        assert one.opinion == pytest.approx(np.mean(own))
        assert one.desirable == (one.opinion >= 3.5)
        assert not 2.5 < one.opinion < 3.5
    assert {one.system for one in labels if one.desirable} <= {"reference", "zebra-aligned"}


def test_too_few_judgements_give_no_pairs_and_no_labels(folder, tmp_path):
    test = read_test(folder)
    for write, found in ((export.write_pairs, export.pairs(test, [])), (export.write_labels, export.labels(test, []))):
        with pytest.raises(DataError, match="collect more"):
            write(*stored(folder, test), found, tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_a_test_is_never_made_over_another(folder):
    with pytest.raises(StoreError, match="not empty"):
        small_test(folder)
    with pytest.raises(StoreError, match="no listening test"):
        read_test(folder / "nowhere")


def test_a_making_that_was_cut_short_leaves_no_test_and_is_done_again(tmp_path, monkeypatch):
    from milonga.listening_test import material

    def killed(*_) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(material, "_write_playback", killed)
        with pytest.raises(KeyboardInterrupt):
            small_test(tmp_path / "test")
    assert not (tmp_path / "test").exists()
    test = small_test(tmp_path / "test")
    assert read_test(tmp_path / "test") == test
    assert [one.name for one in tmp_path.iterdir()] == ["test"]
    played = {one.name for one in (tmp_path / "test" / "playback").iterdir()}
    assert played == {f"{one.id}.flac" for one in test.clips}


def test_a_file_that_is_no_database_is_told_and_left_alone(tmp_path):
    small_test(tmp_path / "test")
    path = tmp_path / "test" / "ratings.sqlite"
    path.write_bytes(b"this is no database, whatever its name says" * 50)
    with pytest.raises(StoreError, match=r"ratings\.sqlite"):
        Ratings(path)
    assert path.read_bytes().startswith(b"this is no database")
