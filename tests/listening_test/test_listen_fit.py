"""`listen fit`: a scorer recovered from simulated raters with a known taste, and refused from too few of them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from typer.testing import CliRunner

from milonga.cli.main import app
from milonga.core.audio import clip_table
from milonga.core.errors import CheckpointError, DataError, RecipeError, StoreError
from milonga.core.records import Clip
from milonga.core.store import Run
from milonga.data.corrections import correct_pair, run_pairs
from milonga.listening_test import fit as fitting
from milonga.listening_test.database import FILE
from milonga.listening_test.fit import Judgements, learn
from milonga.maths.devices import AUTO
from milonga.maths.preference_head import Choices, fit_head, z_scores
from milonga.scorers import load as loading
from milonga.scorers.fitted import feature_rows
from milonga.studio.clips import Take, Takes
from milonga.studio.sounds import shard_of

WIDTH = 8


def simulated(captions: int = 60, systems: int = 3, raters: int = 12, choices: int = 0, seed: int = 0):
    """Judgements by raters who follow a known taste: fit to the caption, and a direction of the clip's embedding.

    Gives the judgements and each clip's true worth. Some raters are strict or mild, and one answers the reverse.
    """
    rng = np.random.default_rng(seed)

    def unit(rows: np.ndarray) -> np.ndarray:
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    words = np.repeat(unit(rng.normal(size=(captions, WIDTH))), systems, axis=0)
    audio = unit(words + rng.normal(size=words.shape) * 0.5)
    worth = 2 * (audio * words).sum(axis=1) + 2 * audio[:, 0]
    texts = [f"caption {number // systems}" for number in range(len(audio))]
    ratings = []
    for clip in range(len(audio)):
        for rater in rng.choice(raters, 5, replace=False):
            sign = -1 if rater == 0 else 1
            ratings.append((clip, f"r{rater}", float(sign * 2 * worth[clip] + rater / 3 + rng.normal())))
    couples = rng.integers(0, captions, choices) * systems
    votes = [(int(a), int(a) + 1, "v", float(worth[a] + rng.logistic() / 4 > worth[a + 1])) for a in couples]
    return Judgements(texts, [audio], [words], [] if choices else ratings, votes), worth


@pytest.mark.slow
def test_the_ranking_of_a_known_listener_is_recovered_and_beats_the_cosine():
    judgements, worth = simulated()
    head, report = learn(judgements, ["clap"], seed=0)
    answers = head.predict(feature_rows(judgements.audio, judgements.words))
    fresh, truth = simulated(seed=99)
    new = head.predict(feature_rows(fresh.audio, fresh.words))
    assert np.corrcoef(answers, worth)[0, 1] > 0.95
    assert np.corrcoef(new, truth)[0, 1] > 0.9
    assert report.screened == ("r0",)
    fitted, cosine = report.held_out["fitted"], report.held_out["clap"]
    assert fitted.value > cosine.value + 0.1
    assert fitted.low < fitted.value < fitted.high
    assert 36 <= fitted.n <= 45  # the clips of a quarter of the captions that held-out raters judged
    assert np.isnan(report.behind["fitted"])  # it is the best
    assert "no better" not in str(report)


def test_choices_alone_teach_the_same_taste():
    judgements, worth = simulated(choices=300)
    head, report = learn(judgements, ["clap"], seed=0)
    answers = head.predict(feature_rows(judgements.audio, judgements.words))
    assert report.statistic == "pairs"
    assert np.corrcoef(answers, worth)[0, 1] > 0.85
    assert report.held_out["fitted"].value > report.held_out["clap"].value


def test_of_few_ratings_a_trusted_feature_remains_where_others_are_noise():
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(160, 200))
    truth, trusted = rows[:, 0], np.arange(200) == 0
    ratings, none = truth + rng.normal(size=160), np.empty(0, dtype=np.int64)
    known, quality = slice(0, 60), {}
    for name, chosen in (("trusted", trusted), ("all alike", None)):
        head = fit_head(rows[known], ratings[known], np.ones(60), Choices(none, none, np.empty(0)), 300.0, 0, chosen)
        quality[name] = np.corrcoef(head.predict(rows[60:]), truth[60:])[0, 1]
    assert quality["trusted"] > 0.9
    assert quality["trusted"] > quality["all alike"] + 0.2


@pytest.mark.slow
def test_a_taste_for_what_fits_is_not_lost_in_the_noise_of_wide_embeddings():
    """With as many features as clips: the decay must reach far enough to leave the cosine alone."""
    rng, halves = np.random.default_rng(0), []
    for _ in range(2):
        words = np.repeat(rng.normal(size=(80, 128)), 3, axis=0)
        audio = words + rng.normal(size=words.shape) * rng.uniform(0.5, 2, (len(words), 1))
        words, audio = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (words, audio))
        halves.append((audio, words, (audio * words).sum(axis=1)))
    (audio, words, worth), (other_audio, other_words, truth) = halves
    marks = (worth - worth.mean()) / worth.std()
    ratings = [(clip, f"r{rater}", mark + 2 * rng.normal()) for clip, mark in enumerate(marks) for rater in range(4)]
    texts = [f"caption {number // 3}" for number in range(len(marks))]
    head, _ = learn(Judgements(texts, [audio], [words], ratings, []), ["clap"], seed=0)
    answers = head.predict(feature_rows([other_audio], [other_words]))
    assert np.corrcoef(answers, truth)[0, 1] > 0.95


def test_too_few_are_refused_with_the_numbers_that_are_needed():
    judgements, _ = simulated(captions=20)
    with pytest.raises(DataError, match="60 rated clips and choices of 20 captions; a scorer needs 100 of 30 captions"):
        learn(judgements, ["clap"], seed=0)


@pytest.mark.parametrize("seed", [1, 4])
def test_captions_alone_are_held_out_where_held_out_raters_rated_few_or_none_of_their_clips(
    seed: int, monkeypatch: pytest.MonkeyPatch
):
    """Each rater knows the clips of one caption alone: of those held out, raters and captions meet once or never."""
    monkeypatch.setattr(fitting, "DECAYS", (300.0,))
    judgements, worth = simulated(captions=34)
    judgements.ratings = [(clip, f"r{clip // 3}", float(value)) for clip, value in enumerate(worth)]
    _, report = learn(judgements, ["clap"], seed)
    assert report.held_out["fitted"].n == 3 * round(34 / 4)
    assert "SRCC with captions held out" in str(report)


@pytest.mark.parametrize(("raters", "told"), [(7, "captions held out"), (12, "captions and raters held out")])
def test_the_report_says_where_raters_are_held_out_too(raters: int, told: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(fitting, "DECAYS", (300.0,))
    judgements, _ = simulated(captions=34, raters=raters)
    assert f"SRCC with {told}" in str(learn(judgements, ["clap"], seed=0)[1])


@pytest.mark.slow
def test_random_raters_teach_nothing_and_the_report_says_so():
    judgements, _ = simulated()
    rng = np.random.default_rng(5)
    judgements.ratings = [(clip, rater, float(rng.integers(1, 6))) for clip, rater, _ in judgements.ratings]
    _, report = learn(judgements, ["clap"], seed=0)
    assert report.held_out["fitted"].low < 0.2


def test_z_scores_are_those_of_each_rater_and_pooled_for_few_ratings():
    values, raters = np.array([1.0, 2, 3, 4, 5, 9, 3]), np.array(["a"] * 5 + ["b"] + ["c"])
    scores = z_scores(values, raters)
    np.testing.assert_allclose(scores[:5], (np.arange(5) - 2) / np.std(values[:5], ddof=1))
    assert scores[5] == scores[6] == 0


class Bands:
    """An embedder of little: the energy of a clip in WIDTH bands, and of a text by its letters."""

    name = "bands"

    def embed_clips(self, clips: Any) -> np.ndarray:
        rows = np.stack([[np.abs(part).mean() for part in np.array_split(np.abs(np.fft.rfft(clip.waveform)), WIDTH)]
                         for clip in clips])  # fmt: skip
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    def embed_texts(self, texts: Any) -> np.ndarray:
        rows = np.stack([np.random.default_rng(len(text)).random(WIDTH) for text in texts])
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    def score(self, clips: Any, texts: Any) -> np.ndarray:
        return (self.embed_clips(clips) * self.embed_texts(texts)).sum(axis=1)


@pytest.fixture
def bands(monkeypatch: pytest.MonkeyPatch) -> Bands:
    own, of_hub = Bands(), loading.scorer
    monkeypatch.setattr(fitting, "scorer", lambda name, device=AUTO: own)
    monkeypatch.setattr(fitting, "fingerprint", lambda name: "0" * 16)
    monkeypatch.setattr(loading, "scorer", lambda name, device=AUTO: own if name == "bands" else of_hub(name, device))
    monkeypatch.setattr(loading, "fingerprint", lambda name: "0" * 16)
    return own


@pytest.mark.slow
def test_the_command_writes_a_scorer_that_is_used_by_its_name(tmp_path: Path, bands: Bands):
    rng = np.random.default_rng(0)
    clips, ratings = ["clip,caption"], ["clip,rater,rel"]
    for number in range(102):
        hertz = float(rng.uniform(200, 6000))
        soundfile.write(tmp_path / f"{number}.wav", 0.3 * np.sin(np.arange(4000) * hertz * 6.283 / 16000), 16000)
        clips.append(f"{number}.wav,sound {number % 34}")
        ratings += [f"{number}.wav,r{rater},{5 - hertz / 2000 + 0.3 * rng.normal():.2f}" for rater in range(9)]
    (tmp_path / "clips.csv").write_text("\n".join(clips) + "\n")
    (tmp_path / "ratings.csv").write_text("\n".join(ratings) + "\n")
    out = tmp_path / "taste"
    words = ["listen", "fit", tmp_path / "clips.csv", "--ratings", tmp_path / "ratings.csv", "--features", "bands"]
    done = CliRunner().invoke(app, [*map(str, words), "--out", str(out)])
    assert done.exit_code == 0, done.output
    assert done.stdout.strip().splitlines()[-1] == f"fit:{out}"
    fitted = loading.fitted_scorer(f"fit:{out}")
    low, high = (Clip(0.3 * np.sin(np.arange(4000) * hertz * 6.283 / 16000), 16000) for hertz in (300, 5500))
    scores = fitted.score([low, high], ["sound 1", "sound 1"])
    assert scores[0] > scores[1] + 0.5
    np.testing.assert_allclose(fitted.score([high], ["sound 1"]), scores[1:])  # whatever else is in the batch
    again = CliRunner().invoke(app, [*map(str, words), "--out", str(out)])
    assert again.exit_code == 1
    assert "exists already" in again.output
    (out / "head.safetensors").write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match="cannot be used"):
        loading.fitted_scorer(f"fit:{out}")


@pytest.mark.slow
def test_weights_other_than_those_fitted_on_are_refused(tmp_path: Path, bands: Bands, monkeypatch: pytest.MonkeyPatch):
    judgements, _ = simulated()
    head, _ = learn(judgements, ["bands"], seed=0)
    fitting.save_fitted(tmp_path / "f", head, {"embedders": {"bands": "0" * 16}})
    monkeypatch.setattr(loading, "fingerprint", lambda name: "1" * 16)
    with pytest.raises(CheckpointError, match="bands has other weights"):
        loading.fitted_scorer(f"fit:{tmp_path / 'f'}")


def tone(hertz: float) -> Clip:
    return Clip((0.3 * np.sin(np.arange(4000) * hertz * 6.283 / 16000)).astype(np.float32), 16000)


@pytest.mark.slow
def test_what_a_studio_keeps_is_learnt_and_corrections_of_the_pairs_turn_the_taste(tmp_path: Path, bands: Bands):
    """From the studio's decisions by `listen export` to a scorer; then every pair is swapped by its person."""
    rng, studio = np.random.default_rng(0), tmp_path / "studio"
    studio.mkdir()
    store, clips = Takes(studio / FILE), Run(studio).stage("generate")
    for number in range(30):
        for variation, (low, high) in enumerate([(200, 1500), (200, 1500), (4000, 6000), (4000, 6000)]):
            take = Take.of(f"sound {number}", "nano", "w", 4, 3.0, 1, variation)
            store.add([take])
            clips.write_table(shard_of(take), clip_table([take.id], [tone(float(rng.uniform(low, high)))], [None]))
            store.mark_generated(take.id)
            store.decide(take.id, variation < 2)

    def taste(out: Path) -> float:
        words = ["listen", "fit", "--pairs", str(tmp_path / "pairs"), "--features", "bands", "--out", str(out)]
        done = CliRunner().invoke(app, words)
        assert done.exit_code == 0, done.output
        assert "120 choices" in done.output
        low, high = loading.fitted_scorer(f"fit:{out}").score([tone(700), tone(5000)], ["sound 1", "sound 1"])
        return low - high

    words = ["listen", "export", str(studio), str(tmp_path / "pairs"), "--as", "pairs"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    assert taste(tmp_path / "kept") > 0.5
    run = Run(tmp_path / "pairs")
    for pair in run_pairs(run):
        correct_pair(run, pair.id, "swap")
    assert taste(tmp_path / "corrected") < -0.5


def test_a_folder_that_cannot_be_written_is_refused_before_anything_is_computed(tmp_path: Path, monkeypatch: Any):
    monkeypatch.setattr(fitting, "scorer", lambda name: pytest.fail("a network was loaded"))
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(StoreError, match="file"):
        fitting.fit([], tmp_path / "file" / "taste", ["bands"], pairs=[tmp_path])


def test_nothing_to_learn_from_is_said(tmp_path: Path, bands: Bands):
    with pytest.raises(RecipeError, match="nothing to learn from"):
        fitting.fit([], tmp_path / "f", ["bands"])
