"""`milonga nano benchmark`: each share counts what was right, of all that were measured."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import small_networks
from typer.testing import CliRunner

from milonga.cli.main import app
from milonga.core.records import Clip, Event, Prompt
from milonga.data.captions import world_prompts
from milonga.experiment.nano import benchmark as nano_benchmark
from milonga.experiment.registry import DEFAULT as registry
from milonga.maths.statistics import proportion
from milonga.models.generator import TangoModel
from milonga.models.tango_denoiser import TangoDenoiser
from milonga.nano.world import CLASSES

PROMPTS = world_prompts("test", 40)


def labels(prompt: Prompt) -> list[str]:
    return [label for group in prompt.scene or () for label in group]


# Each clip's one sample says which prompt it belongs to.
CLIPS = [Clip(np.array([n], dtype=np.float32), 16000) for n in range(len(PROMPTS))]


class Ear:
    """A tagger that hears all that was asked for but for the first `missed` clips, and `dreamt` in every clip."""

    name, classes = "ear", CLASSES

    def __init__(self, missed: int = 0, dreamt: str | None = None) -> None:
        self.missed, self.dreamt = missed, dreamt

    def detect(self, clips: Sequence[Clip]) -> list[list[Event]]:
        return [[Event(label=one, onset=0.0, offset=1.0) for one in self._labels(clip)] for clip in clips]

    def _labels(self, clip: Clip) -> set[str]:
        place = int(clip.waveform[0])
        return ({self.dreamt} if self.dreamt else set()) | set(labels(PROMPTS[place]) if place >= self.missed else ())


class Rank:
    """A scorer for which a clip is like its own caption as `right` says, and like any other caption as `wrong` says."""

    name = "rank"

    def __init__(self, right: float, wrong: float) -> None:
        self.right, self.wrong = right, wrong

    def embed_clips(self, clips: Sequence[Clip]) -> np.ndarray:
        return np.eye(len(PROMPTS))[[int(clip.waveform[0]) for clip in clips]]

    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        own = {prompt.text: place for place, prompt in enumerate(PROMPTS)}
        rows = np.full((len(texts), len(PROMPTS)), self.wrong)
        for row, text in zip(rows, texts, strict=True):
            if text in own:
                row[own[text]] = self.right
        return rows

    def compare(self, audio: np.ndarray, text: np.ndarray) -> np.ndarray:
        return (audio * text).sum(axis=1)


def test_a_tagger_is_asked_about_every_class_of_every_clip(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "tagger", lambda name: Ear())
    found = nano_benchmark.measure_tagger(PROMPTS, CLIPS)
    assert {name: interval.value for name, interval in found.items()} == dict.fromkeys(found, 1.0)
    assert found["tagger decisions right"].n == len(PROMPTS) * len(CLASSES)
    assert found["tagger recall"].n == sum(len(labels(prompt)) for prompt in PROMPTS)


def test_what_a_tagger_misses_costs_recall_and_what_it_dreams_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    sounds = [len(labels(prompt)) for prompt in PROMPTS]
    monkeypatch.setattr(registry, "tagger", lambda name: Ear(missed=10))
    deaf = nano_benchmark.measure_tagger(PROMPTS, CLIPS)
    assert deaf["tagger precision"].value == 1.0
    assert deaf["tagger recall"].value == pytest.approx(sum(sounds[10:]) / sum(sounds))
    monkeypatch.setattr(registry, "tagger", lambda name: Ear(dreamt="Frog"))
    dreamy = nano_benchmark.measure_tagger(PROMPTS, CLIPS)
    false = sum("Frog" not in labels(prompt) for prompt in PROMPTS)
    assert dreamy["tagger recall"].value == 1.0
    assert dreamy["tagger precision"].value == pytest.approx(sum(sounds) / (sum(sounds) + false))
    assert dreamy["tagger decisions right"].value == pytest.approx(1 - false / (len(PROMPTS) * len(CLASSES)))


@pytest.mark.parametrize(("right", "wrong", "share"), [(0.9, 0.1, 1.0), (0.1, 0.9, 0.0), (0.5, 0.5, 0.0)])
def test_a_clap_must_like_the_right_caption_strictly_better(right: float, wrong: float, share: float) -> None:
    scorer: Any = Rank(right, wrong)
    found = nano_benchmark.measure_clap(scorer, PROMPTS, CLIPS)
    assert found.keys() == {"rank against a wrong order", "rank against a wrong sound"}
    assert {interval.value for interval in found.values()} == {share}
    sequences = sum(len(prompt.scene or ()) > 1 for prompt in PROMPTS)
    assert found["rank against a wrong order"].n == sequences
    assert found["rank against a wrong sound"].n == len(PROMPTS)


class Dice:
    """A tagger that hears each class in half of all clips, by a hash of the clip."""

    name, classes = "dice", CLASSES

    def detect(self, clips: Sequence[Clip]) -> list[list[Event]]:
        draws = [np.random.default_rng(list(clip.waveform[:64].tobytes())).random(len(CLASSES)) for clip in clips]
        return [
            [
                Event(label=label, onset=value, offset=3.0)
                for label, value in zip(CLASSES, row, strict=True)
                if value < 0.5
            ]
            for row in draws
        ]

    def features(self, clips: Sequence[Clip]) -> tuple[np.ndarray, np.ndarray]:
        return small_networks.tagger().features(clips)


@pytest.fixture
def _tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = small_networks.pipeline()
    model = TangoModel("tiny", pipeline)
    monkeypatch.setattr(nano_benchmark, "load_denoiser", lambda name: TangoDenoiser.of(pipeline, name))
    monkeypatch.setattr(registry, "load", lambda name: model)
    monkeypatch.setattr(registry, "sampling", lambda name: (2, 3.0))
    monkeypatch.setattr(registry, "scorer", lambda name: small_networks.scorer(name=name))
    monkeypatch.setattr(registry, "tagger", lambda name: Dice())


@pytest.mark.slow
@pytest.mark.usefixtures("_tiny")
def test_the_whole_benchmark_on_untrained_networks_has_every_answer_and_repeats() -> None:
    found = nano_benchmark.benchmark(clips=6, captions=24, ranked=4)
    assert {
        "base presence on single events",
        "base clap",
        "base exact_match",
        "round trip keeps decisions",
        "tagger-b recall",
        "nano-events on generated clips: full_recall",
        "rankers and events on generated clips: full_recall",
    } <= found.keys()
    assert {f"nano-{name} against a wrong sound" for name in ("clap-a", "clap-b", "judge")} <= found.keys()
    for name, interval in found.items():
        assert interval.low <= interval.value <= interval.high, name
        assert interval.n >= 2
    assert found["base clap"].n == 24
    assert nano_benchmark.benchmark(clips=6, captions=24, ranked=4) == found


def test_rankers_are_compared_within_captions_alone() -> None:
    scores = np.array([[0.1, 0.2, 0.3, 0.2], [0.9, 0.8, 0.7, 0.6], [0.5, 0.5, 0.1, 0.2], [0.1, 0.2, 0.3, 0.4]])
    right = np.array([[0, 0, 1, 1], [0, 0, 0, 1], [1, 1, 1, 1], [0, 0, 0, 0]], dtype=bool)
    interval = nano_benchmark.within_captions(scores, right, 0)
    assert interval is not None
    assert interval.n == 2
    assert interval.value == pytest.approx((3.5 + 0) / (4 + 3))
    assert nano_benchmark.within_captions(scores[2:], right[2:], 0) is None


def test_the_old_name_of_the_command_is_accepted_with_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        nano_benchmark, "benchmark", lambda clips, captions, seed, ranked: {"share": proportion(np.ones(clips))}
    )
    done, old = (CliRunner().invoke(app, ["nano", name, "--clips", "3"]) for name in ("benchmark", "exam"))
    assert done.exit_code == old.exit_code == 0
    assert old.stdout == done.stdout
    assert old.stderr == "milonga: `nano exam` is deprecated: use `nano benchmark`\n"


def test_targets_stand_beside_what_was_measured_and_the_gate_fails_where_one_is_missed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gate, order = "rankers and events on generated clips: no extra", "base order_accuracy"
    shares = {"share": [1, 1], gate: [1, 1, 0], order: [1, 1, 1, 0], "clap-a against a wrong order": [1, 1]}
    measured = {name: proportion(np.array(values, float)) for name, values in shares.items()}
    monkeypatch.setattr(nano_benchmark, "benchmark", lambda clips, captions, seed, ranked: measured)
    plain, gated, json_rows = (
        CliRunner().invoke(app, ["nano", "benchmark", *more]) for more in ([], ["--gate"], ["--json"])
    )
    assert [one.exit_code for one in (plain, gated, json_rows)] == [0, 1, 0]
    lines = {line[:53].strip(): line for line in plain.stdout.splitlines()}
    assert lines[gate].endswith("target 0.75 to 1.00: missed")
    assert lines[order].endswith("target 0.65 to 0.90")
    assert "target" not in lines["share"]
    assert (gated.stdout, plain.stderr) == (plain.stdout, "")
    assert gated.stderr == f"milonga: 1 of 3 targets missed: {gate}\n"
    targets = {name: row["target"] for name, row in json.loads(json_rows.stdout).items()}
    assert targets == {
        "share": None,
        gate: [0.75, 1.0],
        order: [0.65, 0.9],
        "clap-a against a wrong order": [0.95, 1.0],
    }
    monkeypatch.setattr(nano_benchmark, "benchmark", lambda *_: {"share": measured["share"]})
    assert CliRunner().invoke(app, ["nano", "benchmark", "--gate"]).exit_code == 0
