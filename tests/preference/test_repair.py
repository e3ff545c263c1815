"""Repair: which faults a tagger finds, where they are repainted, and when a take is accepted; then on nano."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import small_networks
from typer.testing import CliRunner

import milonga
from milonga.cli.main import app
from milonga.core.audio import read_samples, read_tags, write_samples
from milonga.core.errors import DataError, RecipeError
from milonga.core.records import Clip, Event, Scene
from milonga.models.editing import SPLICE
from milonga.models.generator import TangoModel
from milonga.preference.repair import MARGIN, place_of, repair_samples
from milonga.scorers.events import EventScorer, Fault

RATE, FRAMES, SECONDS = 16000, 20, 1.0
CLASSES = ("Dog", "Bell", "Rain")
SCENE: Scene = (("Dog",), ("Bell",))
CAPTION = "a dog barks then a bell rings"


class Ear:
    """A tagger that gives its posteriors one after the other, and the last of them from then on."""

    name, classes = "ear", CLASSES

    def __init__(self, *posteriors: np.ndarray) -> None:
        self.rows = list(posteriors)

    def posteriors(self, clips: Sequence[Clip]) -> list[np.ndarray]:
        return [self.rows.pop(0) if len(self.rows) > 1 else self.rows[0] for _ in clips]


def heard(height: float = 0.9, **spans: tuple[int, int] | list[tuple[int, int]]) -> np.ndarray:
    """Posteriors (FRAMES, classes): `height` in each sound's frames from and to, 0.02 elsewhere."""
    posterior = np.full((FRAMES, len(CLASSES)), 0.02)
    for label, given in spans.items():
        for first, last in given if isinstance(given, list) else [given]:
            posterior[first:last, CLASSES.index(label)] = height
    return posterior


def scorer(*posteriors: np.ndarray, scene: Scene | None = SCENE) -> EventScorer:
    named = {"a dog barks": (("Dog",),), "a bell rings": (("Bell",),)}
    ear: Any = Ear(*posteriors)
    return EventScorer("ear", ear, lambda text: named.get(text, scene))


def faults(posterior: np.ndarray, scene: Scene = SCENE) -> list[str]:
    silence = Clip(np.zeros(RATE, np.float32), RATE)
    return [str(fault) for fault in scorer(posterior, scene=scene).diagnose([silence], CAPTION)[0].faults]


def test_missing_extra_misplaced_and_doubled_sounds_are_faults():
    assert faults(heard(Dog=(0, 8), Bell=(10, 20))) == []
    assert faults(heard(Dog=(0, 8))) == ["missing Bell"]
    assert faults(heard(Dog=(0, 8), Bell=(10, 20), Rain=(4, 6))) == ["extra Rain 0.20-0.30 s"]
    assert faults(heard(Dog=(10, 20), Bell=(0, 8))) == ["order Bell 0.00-0.40 s"]
    again = heard(Dog=[(0, 6), (14, 18)], Bell=(7, 13))
    again[14:18, 0] = 0.6
    assert faults(again) == ["doubled Dog 0.70-0.90 s"]
    assert faults(heard(Dog=[(0, 3), (5, 8)], Bell=(10, 20))) == []  # it pauses, and nothing comes between
    together = heard(Dog=[(0, 6), (14, 18)], Rain=(7, 13))
    assert faults(together, (("Dog", "Rain"),)) == []


@pytest.mark.parametrize(
    ("fault", "events", "region", "groups"),
    [
        (Fault("missing", "Bell"), {"Dog": (0.1, 1.5)}, (1.5, 4.0), [1]),
        (Fault("missing", "Dog"), {"Bell": (2.0, 3.9), "Rain": (0.0, 1.0)}, (0.0, 2.0), [0]),
        (Fault("missing", "Bell"), {"Dog": (0.1, 3.9)}, (0.1, 4.0), [0, 1]),
        (Fault("order", "Bell", (0.2, 1.0)), {"Bell": (0.2, 1.0), "Dog": (2.0, 3.0)}, (0.2, 3.0), [0, 1]),
        (Fault("extra", "Rain", (1.0, 2.0)), {"Dog": (0.0, 0.9), "Rain": (1.0, 2.0)}, (1 - MARGIN, 2 + MARGIN), []),
        (Fault("extra", "Rain", (1.0, 2.0)), {"Dog": (0.0, 1.9), "Rain": (1.0, 2.0)}, (1 - MARGIN, 2 + MARGIN), [0]),
        (Fault("missing", "Dog"), {"Bell": (0.1, 3.0)}, (0.0, 3.0), [0, 1]),
        (Fault("missing", "Dog"), {}, (MARGIN, 4 - MARGIN), [0]),
    ],
)
def test_a_fault_has_a_region_and_the_groups_that_belong_there(fault, events, region, groups):
    spans = [Event(label=label, onset=first, offset=last) for label, (first, last) in events.items()]
    assert place_of(fault, spans, SCENE, 4.0) == (pytest.approx(region), groups)


def repaired(*posteriors: np.ndarray, best_of: int = 2):
    samples = 0.1 * np.random.default_rng(0).standard_normal((RATE, 2))
    model = TangoModel("tiny", small_networks.pipeline())
    result = repair_samples(
        model.denoiser, samples, RATE, CAPTION, scorer(*posteriors), steps=1, guidance=3.0, best_of=best_of
    )
    return samples, result


def test_the_best_take_without_a_new_fault_and_with_a_higher_score_is_accepted():
    before, other = heard(Dog=(0, 8)), heard(Bell=(10, 20), Dog=(0, 8), Rain=(2, 4))
    samples, result = repaired(before, other, heard(Dog=(0, 8), Bell=(10, 20)))
    (attempt,) = result.attempts
    assert (attempt.fault, attempt.words, attempt.takes, attempt.refused) == (
        Fault("missing", "Bell"),
        "a bell rings",
        2,
        "",
    )
    assert attempt.after == result.after.score > result.before.score
    assert result.after.faults == ()
    first, last = (np.flatnonzero((result.samples != samples).any(1))[place] / RATE for place in (0, -1))
    assert result.region == pytest.approx((0.4, 1.0))
    assert 0.4 - SPLICE <= first < last <= 1.0


@pytest.mark.parametrize(
    ("after", "reason"),
    [
        (heard(Dog=(0, 8)), "the fault remains in the best take"),
        (heard(Dog=(0, 8), Bell=(10, 20), Rain=(2, 4)), "new faults in the best take: extra Rain 0.10-0.20 s"),
        (heard(0.51, Dog=(0, 8), Bell=(10, 20)), "the score does not rise"),
    ],
)
def test_otherwise_the_input_is_returned_with_the_reason(after, reason):
    before = heard(Dog=(0, 8))
    if "score" in reason:
        before[:, 1] = 0.499
        after[:, 2] = 0.45
    samples, result = repaired(before, after)
    assert result.attempts[0].refused.startswith(reason)
    assert result.region is None
    assert (result.samples == samples).all()
    assert result.after == result.before


def test_an_extra_sound_is_painted_over_away_from_its_name():
    _, result = repaired(heard(Dog=(0, 8), Bell=(10, 20), Rain=(12, 16)), heard(Dog=(0, 8), Bell=(10, 20)))
    (attempt,) = result.attempts
    assert (attempt.words, attempt.negative) == ("a bell rings", "rain")
    assert "extra Rain" in str(attempt)
    assert str(attempt).endswith("accepted")


def test_what_cannot_be_repaired_is_refused():
    nothing: Any = None
    samples, sampling = np.zeros((RATE, 1)), {"steps": 1, "guidance": 1.0}
    with pytest.raises(DataError, match="reads no sound in 'a dog barks then a bell rings'"):
        repair_samples(nothing, samples, RATE, CAPTION, scorer(heard(), scene=None), **sampling)
    with pytest.raises(RecipeError, match="NoneType detects no events"):
        repair_samples(nothing, samples, RATE, CAPTION, nothing, **sampling)
    with pytest.raises(RecipeError, match="at least one take"):
        repaired(heard(), best_of=0)


def test_nano_repairs_a_file_and_an_array_alike_and_the_manifest_says_how(tmp_path):
    pipe = milonga.load("nano")
    wave = pipe("a dog barks", seeds=7, num_inference_steps=2).audios[0]
    options: dict[str, Any] = {"best_of": 2, "seed": 3, "steps": 2}
    result = milonga.repair(wave, "a dog barks then a bell rings", pipe, **options, scorer="nano-events")
    assert "missing Bell" in map(str, result.before.faults)
    source = tmp_path / "in.wav"
    write_samples(source, wave[:, None], RATE, "FLOAT", {"prompt": "a dog barks then a bell rings"})
    words = [
        "edit",
        str(source),
        "--repair",
        "--best-of",
        "2",
        "--seed",
        "3",
        "--steps",
        "2",
        "--pairs",
        "--out",
        str(tmp_path / "out"),
    ]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.stderr
    (path,) = (tmp_path / "out").glob("*.wav")
    (row,) = [json.loads(line) for line in (tmp_path / "out" / "clips.jsonl").read_text().splitlines()]
    assert row["attempts"] == read_tags(path)["attempts"] == " | ".join(map(str, result.attempts))
    assert row["score_before"] == pytest.approx(result.before.score)
    assert row["score_after"] == pytest.approx(result.after.score)
    assert np.abs(read_samples(path)[0] - result.samples).max() < 1e-6
    assert (tmp_path / "out" / "pairs").is_dir() == (result.region is not None)
    if result.region is not None:
        (pair,) = milonga.read_pairs(tmp_path / "out" / "pairs")
        assert pair.pair.region is not None
        assert pair.pair.chosen_scores == {"nano-events": pytest.approx(result.after.score)}
    refused = CliRunner().invoke(app, [*words, "--region", "1-2"])
    assert refused.exit_code == 1
    assert "--repair finds its regions itself" in refused.stderr
    assert CliRunner().invoke(app, ["edit", str(source), "--best-of", "2"]).exit_code == 1
