"""Generate and score: each request keeps its own clip, each clip its own scores, whatever the batches."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from milonga.core.audio import pack_latents
from milonga.core.records import Clip, Prompt, Request
from milonga.preference.candidates import generate_clips, score_clips


class Echo:
    """A model whose clips hold the seed they were asked with; remembers its batches."""

    name, rate = "echo", 8000

    def __init__(self, latents: bool = True) -> None:
        self.latents, self.batches = latents, []

    def generate(self, requests: Sequence[Request]) -> list[Clip]:
        self.batches.append(list(requests))
        return [self._one(request) for request in requests]

    def _one(self, request: Request) -> Clip:
        kept = np.full((2, 3, 4), request.number / 8, dtype=np.float32) if self.latents else None
        return Clip(np.array([request.seed % 1000, request.steps], dtype=np.float32), self.rate, kept)


class Sum:
    """A scorer that adds up a clip and the length of its text; remembers its batches."""

    def __init__(self, name: str) -> None:
        self.name, self.sizes = name, []

    def score(self, clips: Sequence[Clip], texts: Sequence[str]) -> np.ndarray:
        self.sizes.append(len(clips))
        return np.array([clip.waveform.sum() + len(text) for clip, text in zip(clips, texts, strict=True)])


def requests() -> list[Request]:
    prompts = [Prompt.of(f"sound number {'o' * n}", "test") for n in range(5)]
    settings = [(4, 3.0), (8, 3.0), (4, 1.0)]
    return [Request.of(1, p, p.text, steps, g, n) for p in prompts for n, (steps, g) in enumerate(settings * 2)]


def packed(asked: Sequence[Request], model: Echo, batch: int) -> list[tuple[str, bytes | None]]:
    """The id of each request and the latents of its clip as they are stored, in the order in which they come."""
    return [(request.id, pack_latents(clip.latents)) for request, clip in generate_clips(asked, model.generate, batch)]


@pytest.mark.parametrize("batch", [1, 3, 4, 100])
def test_each_request_comes_back_once_with_its_own_clip_and_latents(batch: int) -> None:
    asked = requests()
    found = list(generate_clips(asked, Echo().generate, batch))
    assert sorted(request.id for request, _ in found) == sorted(request.id for request in asked)
    for request, clip in found:
        assert clip.waveform.tolist() == [request.seed % 1000, request.steps]
        stored = pack_latents(clip.latents)
        assert stored is not None
        assert (np.frombuffer(stored, dtype=np.float16).reshape(2, 3, 4) == request.number / 8).all()


@pytest.mark.parametrize("batch", [1, 3, 4, 100])
def test_a_batch_is_no_larger_than_asked_and_shares_steps_and_guidance(batch: int) -> None:
    model = Echo()
    list(generate_clips(requests(), model.generate, batch))
    assert max(map(len, model.batches)) == min(batch, 10)
    assert sum(map(len, model.batches)) == 30
    assert all(len({(one.steps, one.guidance) for one in part}) == 1 for part in model.batches)
    assert len(model.batches) == 3 * -(-10 // batch)


def test_neither_batch_nor_order_changes_what_comes_out() -> None:
    asked = requests()
    assert packed(asked[::-1], Echo(), 7) == packed(asked, Echo(), 4)


def test_a_model_without_latents_has_none_packed() -> None:
    assert {stored for _, stored in packed(requests(), Echo(latents=False), 8)} == {None}


def test_nothing_asked_is_nothing_made() -> None:
    assert list(generate_clips([], Echo().generate, 4)) == []


def test_clips_come_as_they_are_made_so_that_a_stop_loses_one_batch() -> None:
    model = Echo()
    stream = generate_clips(requests(), model.generate, 4)
    next(stream)
    assert len(model.batches) == 1


@pytest.mark.parametrize("room", [1, 3, 6])
def test_batches_are_halved_until_memory_suffices(room: int) -> None:
    class Small(Echo):
        """A model on a device that has no room for more than `room` clips at once."""

        def generate(self, requests: Sequence[Request]) -> list[Clip]:
            if len(requests) > room:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return super().generate(requests)

    model = Small()
    assert packed(requests(), model, 8) == packed(requests(), Echo(), 8)
    assert max(map(len, model.batches)) == {1: 1, 3: 2, 6: 4}[room]


def test_one_clip_that_memory_does_not_hold_is_an_error_and_so_is_any_other() -> None:
    class Broken(Echo):
        """A model that fails."""

        def __init__(self, error: Exception) -> None:
            super().__init__()
            self.error = error

        def generate(self, requests: Sequence[Request]) -> list[Clip]:
            self.batches.append(list(requests))
            raise self.error

    for error, batches in ((torch.OutOfMemoryError("CUDA out of memory"), 3), (RuntimeError("a shape"), 1)):
        model = Broken(error)
        with pytest.raises(type(error), match=str(error)):
            list(generate_clips(requests(), model.generate, 4))
        assert len(model.batches) == batches


def test_clips_of_a_real_pipeline_do_not_depend_on_batch_and_order() -> None:
    import small_networks

    from milonga.models.generator import TangoModel

    model = TangoModel("tiny", small_networks.pipeline())
    prompts = [Prompt.of(text, "test") for text in small_networks.WORDS]
    asked = [Request.of(1, p, p.text, steps, 3.0, n) for p in prompts[:3] for n, steps in enumerate((2, 2, 3))]
    alone, together = (
        {request.id: clip for request, clip in generate_clips(part, model.generate, batch)}
        for part, batch in ((asked, 1), (asked[::-1], 4))
    )
    for name, clip in alone.items():
        np.testing.assert_allclose(together[name].waveform, clip.waveform, atol=1e-4)
        first, second = (np.frombuffer(pack_latents(one.latents) or b"", np.float16) for one in (clip, together[name]))
        assert len(first)
        np.testing.assert_allclose(first.astype(np.float32), second.astype(np.float32), atol=5e-3)


@pytest.mark.parametrize("batch", [1, 2, 5, 100])
def test_each_clip_gets_its_own_score_from_every_scorer(batch: int) -> None:
    clips = [Clip(np.full(3, n, dtype=np.float32), 8000) for n in range(7)]
    texts = ["o" * (10 - n) for n in range(7)]
    scorers = [Sum("one"), Sum("two")]
    rows = score_clips(clips, texts, scorers, batch)
    assert rows == [{"one": 3 * n + 10 - n, "two": 3 * n + 10 - n} for n in range(7)]
    assert all(sum(scorer.sizes) == 7 and max(scorer.sizes) <= batch for scorer in scorers)
    assert all(type(value) is float for row in rows for value in row.values())


def test_a_score_that_is_no_number_is_kept() -> None:
    clips = [Clip(np.array([value], dtype=np.float32), 8000) for value in (1.0, np.nan)]
    rows = score_clips(clips, ["", ""], [Sum("one")], 2)
    assert rows[0] == {"one": 1.0}
    assert np.isnan(rows[1]["one"])


def test_nothing_to_score_is_no_rows() -> None:
    assert score_clips([], [], [Sum("one")], 4) == []
