"""LAION-CLAP: files map both ways, windows are without chance, a row depends on its clip alone and is heard once."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import laion_file
import numpy as np
import pytest
import torch
from small_networks import WORDS, tokenizer
from transformers import ClapFeatureExtractor

from milonga.core.cache import ArrayCache
from milonga.core.errors import AudioError, CheckpointError, RecipeError
from milonga.core.records import Clip
from milonga.core.weights import read_weights
from milonga.maths.mel import log_mel
from milonga.scorers import laion_clap
from milonga.scorers.laion_clap import LaionClap, Windows, convert_laion, filled, front_end, load_laion, quantised
from milonga.scorers.laion_convert import from_original, to_original

RATE = 48000


def noise(seed: int, seconds: float = 1.0, rate: int = RATE) -> Clip:
    """Noise that swells and fades in its own manner."""
    rng = np.random.default_rng(seed)
    samples = round(seconds * rate)
    swell = 0.05 + 0.3 * np.abs(np.sin((seed + 2) * np.arange(samples) / rate))
    colour = np.convolve(rng.standard_normal(samples), np.ones(1 + 7 * seed) / (1 + 7 * seed), "same")
    return Clip((swell * colour).clip(-1, 1).astype(np.float32), rate)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Path]:
    """Converted checkpoints, plain and fused."""
    place, made = tmp_path_factory.mktemp("clap"), {}
    for fused in (False, True):
        source = laion_file.write(place / f"source-{fused}", fused=fused)
        made[fused] = place / f"converted-{fused}"
        convert_laion(source, made[fused], tokenizer("<s>"))
    return made


@pytest.fixture(scope="module")
def plain(folders: dict[bool, Path]) -> LaionClap:
    return load_laion(folders[False], "plain")


@pytest.mark.slow
@pytest.mark.parametrize("fused", [False, True])
def test_a_file_maps_both_ways_and_the_model_is_the_one_that_wrote_it(fused: bool, tmp_path: Path) -> None:
    path = laion_file.write(tmp_path, fused=fused)
    state = read_weights(path, "state_dict")
    model, unused = from_original(state, path)
    assert unused.keys() == laion_file.unused().keys()
    back = to_original(model, unused)
    assert back.keys() == state.keys()
    assert all(torch.equal(back[key], value) for key, value in state.items())
    own = laion_file.model(fused).state_dict()
    assert all(torch.equal(own[key], value) for key, value in model.state_dict().items())
    assert any("mel_conv2d" in key for key in state) == fused


@pytest.mark.slow
@pytest.mark.parametrize("fused", [False, True])
def test_a_converted_checkpoint_is_one_of_transformers_and_scores(folders: dict[bool, Path], fused: bool) -> None:
    scorer = load_laion(folders[fused], "mine")
    clips = [noise(n) for n in range(3)]
    rows = scorer.embed_clips(clips)
    assert rows.shape == (3, 16)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1.0, atol=1e-5)
    assert min(np.abs(rows[0] - rows[1]).max(), np.abs(rows[1] - rows[2]).max()) > 1e-3
    scores = scorer.score(clips, WORDS[:3])
    np.testing.assert_allclose(scores, (rows * scorer.embed_texts(WORDS[:3])).sum(1), atol=1e-6)
    extractor = ClapFeatureExtractor.from_pretrained(folders[fused])
    theirs = extractor(quantised(clips[0].waveform), sampling_rate=RATE, return_tensors="pt")["input_features"][0, 0]
    ours = log_mel(torch.from_numpy(filled(quantised(clips[0].waveform), 480000)).double()[None], scorer.mel)[0]
    torch.testing.assert_close(ours.float(), theirs.float(), atol=2e-3, rtol=0)


@pytest.mark.parametrize("fused", [False, True])
def test_the_rewards_of_waves_are_the_scores_of_their_clips_and_pull_at_every_wave(
    folders: dict[bool, Path], fused: bool
) -> None:
    scorer, texts = load_laion(folders[fused], "reward"), WORDS[:2]
    clips = [Clip(quantised(noise(n, 3.3).waveform), RATE) for n in range(2)]
    waves = torch.from_numpy(np.stack([clip.waveform for clip in clips])).requires_grad_()
    rewards = scorer.wave_rewards(waves, RATE, texts)
    np.testing.assert_allclose(rewards.detach().numpy(), scorer.score(clips, texts), atol=1e-5)
    rewards.sum().backward()
    assert waves.grad is not None
    assert waves.grad.isfinite().all()
    assert (waves.grad.abs().amax(1) > 0).all()


@pytest.mark.slow
def test_a_row_is_the_same_alone_and_beside_others_of_any_length_and_rate(plain: LaionClap) -> None:
    clips = [noise(0), noise(1, 0.2, 16000), noise(2, 11.0), noise(3, 10.0), noise(4, 3.3)]
    together = plain.embed_clips(clips)
    for place, clip in enumerate(clips):
        np.testing.assert_allclose(plain.embed_clips([clip])[0], together[place], atol=2e-5)


def test_a_long_clip_is_heard_by_its_first_window_or_by_all(folders: dict[bool, Path], plain: LaionClap) -> None:
    long, head = noise(0, 25.0), noise(0, 25.0).waveform[:480000]
    np.testing.assert_allclose(plain.embed_clips([long]), plain.embed_clips([Clip(head, RATE)]), atol=1e-6)
    parts = [long.waveform[:480000], long.waveform[480000:960000], long.waveform[-480000:]]
    mean = plain.embed_clips([Clip(part, RATE) for part in parts]).mean(0)
    found = load_laion(folders[False], "mean", Windows("mean")).embed_clips([long])[0]
    np.testing.assert_allclose(found, mean / np.linalg.norm(mean), atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("fused", [False, True])
def test_random_windows_come_from_seed_and_clip_alone(folders: dict[bool, Path], fused: bool) -> None:
    clips = [noise(0, 14.0), noise(1, 14.0), noise(2, 1.0)]
    first, again, other = (
        load_laion(folders[fused], "r", Windows("random", seed)).embed_clips(clips) for seed in (1, 1, 2)
    )
    assert np.array_equal(first, again)
    assert np.abs(first[:2] - other[:2]).max() > 1e-4
    np.testing.assert_allclose(first[2], other[2], atol=1e-6)
    alone = load_laion(folders[fused], "r", Windows("random", 1)).embed_clips(clips[1:2])
    np.testing.assert_allclose(alone[0], first[1], atol=2e-5)


def test_windows_cover_a_clip_and_stay_inside() -> None:
    assert Windows("mean").starts(25, 10, "x") == [0, 10, 15]
    assert Windows("mean").starts(20, 10, "x") == [0, 10]
    assert Windows("mean").starts(7, 10, "x") == [0]
    assert Windows().starts(25, 10, "x") == [0]
    drawn = {Windows("random", seed).starts(12, 10, "x")[0] for seed in range(60)}
    assert drawn == {0, 1, 2}
    assert Windows.of("random:7") == Windows("random", 7)
    for wrong in ("last", "random", "random:x", ""):
        with pytest.raises(RecipeError, match="write first, mean or random:SEED"):
            Windows.of(wrong)


def test_short_clips_are_repeated_whole_and_then_padded() -> None:
    assert filled(np.arange(1.0, 4.0), 8).tolist() == [1, 2, 3, 1, 2, 3, 0, 0]
    assert filled(np.arange(1.0, 7.0), 8).tolist() == [1, 2, 3, 4, 5, 6, 0, 0]
    assert quantised(np.array([2.0, -2.0, 0.99999, 1.5 / 32767])).tolist() == pytest.approx(
        [1, -1, 32766 / 32767, 1 / 32767]
    )


def test_what_was_heard_is_not_heard_again(folders: dict[bool, Path], tmp_path: Path) -> None:
    cache, clips = ArrayCache(tmp_path / "rows.sqlite"), [noise(n) for n in range(3)]
    first = load_laion(folders[False], "a", cache=cache, identity="one").embed_clips(clips)
    again = load_laion(folders[False], "b", cache=cache, identity="one")
    heard: list[int] = []
    original = again._rows
    again._rows = lambda inputs: heard.append(len(inputs)) or original(inputs)  # type: ignore[method-assign]
    np.testing.assert_array_equal(again.embed_clips([clips[2], noise(9), clips[0], noise(9)])[[2, 0]], first[[0, 2]])
    assert heard == [1]
    for other in ({"identity": "two"}, {"identity": "one", "windows": Windows("mean")}):
        fresh: Any = load_laion(folders[False], "c", cache=cache, **other)
        fresh._rows = lambda inputs: heard.append(len(inputs)) or original(inputs)
        fresh.embed_clips(clips[:1])
    assert heard == [1, 1, 1]


def test_a_clip_that_cannot_be_heard_is_told(plain: LaionClap) -> None:
    for wave in (np.zeros(0, np.float32), np.array([0.0, np.nan], np.float32)):
        with pytest.raises(AudioError, match="empty or has NaN"):
            plain.embed_clips([Clip(wave, RATE)])
    assert np.isfinite(plain.embed_clips([Clip(np.zeros(3, np.float32), RATE)])).all()


def test_text_norms_get_the_epsilon_they_were_trained_with(folders: dict[bool, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(folders[False], tmp_path / "hub"))
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["layer_norm_eps"] = 1e-12
    (folder / "config.json").write_text(json.dumps(config))
    norms = [m for m in load_laion(folder, "hub").model.text_model.modules() if isinstance(m, torch.nn.LayerNorm)]
    assert {norm.eps for norm in norms} == {1e-5}
    assert front_end(folder)[1] == 10.0


def edited(how: Callable[[dict[str, Any]], dict[Any, Any]]) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        held = torch.load(path)
        torch.save(held | {"state_dict": how(held["state_dict"])}, path)

    return change


def without(key: str) -> Callable[[dict[str, Any]], dict[Any, Any]]:
    return lambda state: {name: value for name, value in state.items() if key not in name}


PROJ = "module.audio_branch.patch_embed.proj.weight"
BROKEN: dict[str, tuple[Callable[[Path], None], str]] = {
    "no container": (lambda path: torch.save({"weights": {}}, path), "has no 'state_dict'"),
    "a projection missing": (edited(without("text_projection.2.bias")), r"lacks text_projection\.2\.bias"),
    "no text tower": (edited(without("text_branch")), "does not tell the model's size"),
    "a stranger": (edited(lambda s: s | {"module.head2.bias": torch.zeros(3)}), r"holds head2\.bias"),
    "a wrong shape": (edited(lambda s: s | {PROJ: torch.zeros(8, 2, 8, 8)}), r"patch_embed\.proj\.weight has shape"),
    "NaN": (edited(lambda s: s | {PROJ: s[PROJ] * np.nan}), "has NaN"),
    "no tensor": (edited(lambda s: s | {PROJ: 3}), "is no tensor"),
    "truncated": (lambda path: path.write_bytes(path.read_bytes()[:3000]) and None, "is truncated"),
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_broken_file_is_told_in_one_line(how: str, tmp_path: Path) -> None:
    path = laion_file.write(tmp_path)
    BROKEN[how][0](path)
    with pytest.raises(CheckpointError, match=BROKEN[how][1]) as error:
        convert_laion(path, tmp_path / "made", tokenizer("<s>"))
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.slow
@pytest.mark.parametrize("missing", ["preprocessor_config.json", "model.safetensors", "tokenizer.json", "config.json"])
def test_a_broken_folder_is_told_in_one_line(missing: str, folders: dict[bool, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(folders[False], tmp_path / "clap"))
    (folder / missing).unlink()
    with pytest.raises(CheckpointError, match="holds no usable CLAP") as error:
        load_laion(folder, "broken")
    assert "\n" not in str(error.value)


def test_batches_are_as_small_as_told(folders: dict[bool, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(laion_clap, "BATCH", 2)
    scorer, sizes = load_laion(folders[False], "small"), []
    original = scorer._rows
    scorer._rows = lambda inputs: sizes.append(len(inputs)) or original(inputs)  # type: ignore[method-assign]
    scorer.embed_clips([noise(n) for n in range(5)])
    assert sizes == [2, 2, 1]
