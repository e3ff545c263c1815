"""The gallery and what it is read from: fair picks, honest timelines, and logs that a killed run left."""

from pathlib import Path

import pytest
from synthetic_run import make_run

from milonga.core.errors import StoreError
from milonga.core.records import Event, Prompt, RewardReport, Summary
from milonga.reports import gallery as report_gallery
from milonga.reports.gallery import DRAWN, IMPROVED, LOWEST, WORSENED, Card, faults_of, gallery, lanes
from milonga.reports.material import RunMaterial, read_material, read_rows, read_steps, read_thresholds

SYSTEMS = ["base", "sft", "aligned", "reference"]
PROMPT = Prompt.of("a dog, then a bell while it rains", "test", (), (("Dog",), ("Bell", "Rain")))


def event(label: str, onset: float, offset: float = 3.0) -> Event:
    return Event(label=label, onset=onset, offset=offset)


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> RunMaterial:
    return read_material(make_run(tmp_path_factory.mktemp("gallery") / "run", prompts=60))


@pytest.fixture(scope="module")
def cards(material: RunMaterial) -> list[Card]:
    return gallery(material.evaluation, SYSTEMS, "aligned")


@pytest.mark.slow
def test_half_of_the_prompts_are_drawn_at_random_and_the_extremes_say_so(cards: list[Card]) -> None:
    reasons = [card.reason for card in cards]
    assert [reasons.count(name) for name in (DRAWN, IMPROVED, WORSENED, LOWEST)] == [12, 4, 4, 4]
    assert len({card.prompt.id for card in cards}) == 24
    assert all(card.gain > 0 for card in cards if card.reason == IMPROVED)
    assert all(card.gain < 0 for card in cards if card.reason == WORSENED)


@pytest.mark.slow
def test_every_card_has_every_system_base_first_and_from_one_seed(cards: list[Card]) -> None:
    assert {tuple(player.system for player in card.players) for card in cards} == {tuple(SYSTEMS)}
    assert all(card.same_seed for card in cards)


@pytest.mark.slow
def test_long_clips_mean_fewer_prompts(
    material: RunMaterial, cards: list[Card], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report_gallery, "BUDGET", 3 * max(card.size for card in cards))
    fewer = gallery(material.evaluation, SYSTEMS, "aligned")
    assert 3 <= len(fewer) < 24
    assert sum(card.size for card in fewer) <= 3 * max(card.size for card in cards)


def test_a_timeline_keeps_a_lane_for_what_was_asked_and_not_heard() -> None:
    found = lanes(PROMPT, (event("Dog", 0.4, 1.4), event("Siren", 1.0, 9.0)), 4.0)
    assert [(lane.label, lane.colour, len(lane.bars)) for lane in found] == [
        ("Dog", 0, 1),
        ("Bell", 1, 0),
        ("Rain", 2, 0),
        ("Siren", -1, 1),
    ]
    assert (found[0].bars[0].left, found[0].bars[0].width) == (10.0, 25.0)
    assert found[3].bars[0].left + found[3].bars[0].width == 100.0


@pytest.mark.parametrize(
    ("events", "words", "good"),
    [
        ((event("Dog", 0.1), event("Bell", 1.0), event("Rain", 1.2)), "exact match", True),
        ((event("Dog", 1.1), event("Bell", 1.0), event("Rain", 1.2)), "wrong order", False),
        ((event("Dog", 0.1), event("Rain", 1.2), event("Cat", 2.0)), "Bell missing, extra Cat", False),
    ],
)
def test_a_clip_is_judged_in_words(events: tuple[Event, ...], words: str, good: bool) -> None:
    assert faults_of(PROMPT, events) == (words, good)


def test_a_prompt_without_a_scene_is_not_judged() -> None:
    assert faults_of(Prompt.of("music", "test"), (event("Dog", 0.1),)) == ("", False)


def test_a_log_keeps_the_latest_of_a_step_and_passes_over_a_torn_end(tmp_path: Path) -> None:
    log = tmp_path / "aligned.jsonl"
    log.write_text('{"step": 1, "phase": "sft", "loss": 3}\n{"step": 1, "phase": "sft", "loss": 2}\n{"step": 2, "ph')
    assert [row["loss"] for row in read_steps(log)] == [2]


def test_a_broken_line_inside_a_log_is_an_error_that_names_it(tmp_path: Path) -> None:
    log = tmp_path / "aligned.jsonl"
    log.write_text('{"step": 1}\nnot json\n{"step": 2}\n')
    with pytest.raises(StoreError, match="line 2"):
        read_steps(log)


def test_null_in_a_summary_is_not_a_number_and_foreign_rows_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    row = '{"system": "base", "split": "overall", "metric": "order", "low": null, "high": null, "n": 0, "protocol": "p"'
    path.write_text(f'[{row}, "value": null}}]')
    assert read_rows(path, Summary)[0].value != read_rows(path, Summary)[0].value
    path.write_text('[{"system": "base"}]')
    with pytest.raises(StoreError, match="does not hold Summary rows"):
        read_rows(path, Summary)


def test_a_report_that_lacks_a_number_is_refused_and_not_half_told(tmp_path: Path) -> None:
    path = tmp_path / "reward.json"
    assert read_rows(path, RewardReport) == []
    path.write_text('{"scorer": "a", "taught": 3}')
    with pytest.raises(StoreError, match="does not hold RewardReport rows"):
        read_rows(path, RewardReport)


@pytest.mark.slow
def test_thresholds_come_from_the_recipe_and_a_broken_recipe_is_an_error(material: RunMaterial) -> None:
    assert [(one.scorer, one.min_winner_score) for one in material.thresholds] == [
        ("ranker-a", 0.45),
        ("ranker-b", 0.4),
    ]
    with pytest.raises(StoreError, match="is not TOML"):
        read_thresholds("[pair", Path("recipe.toml"))
