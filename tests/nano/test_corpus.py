"""The corpus: shards done by rename, made once, the same when made again, with truth that agrees with the events."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from milonga.core.records import Clip, Event
from milonga.maths.mel import log_mel, normalise
from milonga.nano.build import corpus
from milonga.nano.world import CLASSES, SECONDS, Sounding

SEED, CLIPS = 3, 7


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus, "SHARD", 3)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    corpus.build(tmp_path, SEED, range(CLIPS), lambda count: None)
    return tmp_path


def everything(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_shards_are_named_by_seed_and_first_clip_and_progress_is_told(tmp_path: Path) -> None:
    told: list[int] = []
    corpus.build(tmp_path, SEED, range(CLIPS), told.append)
    assert told == [3, 3, 1]
    assert sorted(everything(tmp_path)) == [f"3-{first:06d}.safetensors" for first in (0, 3, 6)]


def test_what_is_there_is_left_alone_and_what_is_missing_is_made_the_same(folder: Path) -> None:
    before = everything(folder)
    middle, first = folder / "3-000003.safetensors", folder / "3-000000.safetensors"
    middle.unlink()
    stamp = first.stat().st_mtime_ns
    told: list[int] = []
    corpus.build(folder, SEED, range(CLIPS), told.append)
    assert everything(folder) == before
    assert first.stat().st_mtime_ns == stamp
    assert told == [3, 3, 1]


def test_a_shard_that_was_cut_off_while_it_was_written_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(handle: int) -> None:
        os.ftruncate(handle, os.fstat(handle).st_size // 2)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", stopped)
        with pytest.raises(KeyboardInterrupt):
            corpus.build(tmp_path, SEED, range(3), lambda count: None)
    assert not list(tmp_path.glob("*.safetensors"))
    corpus.build(tmp_path, SEED, range(3), lambda count: None)
    assert len(corpus.load(tmp_path, SEED, range(3))) == 3
    with pytest.raises(FileNotFoundError):
        corpus.load(tmp_path, SEED, range(4))


def test_a_loaded_corpus_is_the_clips_by_number_and_no_more(folder: Path) -> None:
    loaded = corpus.load(folder, SEED, range(CLIPS))
    assert len(loaded) == CLIPS
    assert (loaded.mels.shape, loaded.mels.dtype) == ((CLIPS, corpus.FRAMES, 64), torch.float16)
    assert (loaded.truth.shape, loaded.truth.dtype) == ((CLIPS, corpus.TRUTH_FRAMES, len(CLASSES)), torch.uint8)
    for index in (0, 4, 6):
        clip = corpus.sounding(SEED, index)
        assert loaded.scenes[index] == clip.scene
        assert loaded.counts[index] == clip.counts
        wave = torch.from_numpy(normalise(clip.clip.waveform))[None]
        torch.testing.assert_close(loaded.mels[index], log_mel(wave, corpus.MEL)[0].half(), atol=0.01, rtol=0.0)
        assert np.array_equal(loaded.truth[index], corpus.frame_truth(clip))


def test_a_part_is_a_slice_of_everything(folder: Path) -> None:
    loaded = corpus.load(folder, SEED, range(CLIPS))
    part = loaded.part(2, 5)
    assert len(part) == len(part.mels) == len(part.truth) == len(part.counts) == 3
    assert part.scenes == loaded.scenes[2:5]
    assert torch.equal(part.mels, loaded.mels[2:5])


def test_other_seeds_and_numbers_are_other_clips() -> None:
    waves = [corpus.sounding(seed, index).clip.waveform for seed, index in ((3, 0), (3, 1), (4, 0))]
    assert not any(np.allclose(waves[i], waves[j]) for i in range(3) for j in range(i))
    assert np.array_equal(corpus.sounding(3, 0).clip.waveform, waves[0])


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(CLASSES), st.floats(0, SECONDS), st.floats(0, SECONDS)), max_size=3))
def test_frame_truth_says_of_each_frames_middle_what_sounds(drawn: list[tuple[str, float, float]]) -> None:
    events = tuple(Event(label=label, onset=min(a, b), offset=max(a, b)) for label, a, b in drawn)
    truth = corpus.frame_truth(Sounding((), Clip(np.zeros(1), 16000), events, {}))
    step = SECONDS / corpus.TRUTH_FRAMES
    for frame in range(corpus.TRUTH_FRAMES):
        middle = (frame + 0.5) * step
        sounding = {event.label for event in events if event.onset <= middle <= event.offset}
        assert {CLASSES[place] for place in np.flatnonzero(truth[frame])} == sounding


def test_frame_truth_of_a_rendered_clip_has_its_events_in_order() -> None:
    for index in range(10):
        clip = corpus.sounding(5, index)
        truth = corpus.frame_truth(clip)
        assert {CLASSES[place] for place in np.flatnonzero(truth.any(axis=0))} == {e.label for e in clip.events}
        for event in clip.events:
            active = np.flatnonzero(truth[:, CLASSES.index(event.label)])
            step = SECONDS / corpus.TRUTH_FRAMES
            assert active[0] * step == pytest.approx(event.onset, abs=step)
            assert (active[-1] + 1) * step == pytest.approx(event.offset, abs=step)
            assert len(active) == active[-1] - active[0] + 1


def test_only_the_shards_of_the_clips_asked_for_are_rendered(tmp_path: Path) -> None:
    told: list[int] = []
    corpus.build(tmp_path, SEED, range(4, 7), told.append)
    assert told == [2, 1]
    assert sorted(everything(tmp_path)) == [f"3-{first:06d}.safetensors" for first in (3, 6)]
    loaded = corpus.load(tmp_path, SEED, range(4, 7))
    assert loaded.scenes == [corpus.sounding(SEED, index).scene for index in (4, 5, 6)]
