"""VGGish: its own framing and bands, one row for each 0.96 s, answers that do not depend on the batch."""

import numpy as np
import pytest
import torch

from milonga.core.errors import AudioError
from milonga.core.records import Clip
from milonga.scorers import vggish
from milonga.scorers.vggish import Vggish, VggishEmbedder, examples, mel_bands


def noise(seed: int, seconds: float, rate: int = 16000) -> Clip:
    wave = 0.1 * np.random.default_rng(seed).standard_normal(round(seconds * rate))
    return Clip(wave.astype(np.float32), rate)


@pytest.fixture(scope="module")
def embedder() -> VggishEmbedder:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = Vggish(width=2)
        for value in network.parameters():
            if value.dim() > 1:
                torch.nn.init.kaiming_normal_(value)
    return VggishEmbedder(network)


@pytest.mark.parametrize(("seconds", "rows"), [(10.0, 10), (10.24, 10), (2.0, 2), (0.98, 1), (0.96, 0), (3.7, 3)])
def test_a_row_for_each_whole_example(seconds: float, rows: int) -> None:
    assert examples(noise(0, seconds).waveform).shape == (rows, 96, 64)


def test_silence_is_the_logarithm_of_the_offset() -> None:
    assert np.unique(examples(np.zeros(32000, dtype=np.float32))).tolist() == [np.float32(np.log(0.01))]


def test_a_tone_is_loudest_in_the_band_around_it() -> None:
    times, bands = np.arange(32000) / 16000, mel_bands()
    for hertz in (200, 1000, 6000):
        picture = examples(0.5 * np.sin(2 * np.pi * hertz * times))[0]
        band = bands[:, picture.mean(axis=0).argmax()]
        assert band[round(hertz * 512 / 16000)] > 0.3


def test_examples_follow_each_other_without_overlap() -> None:
    wave = noise(0, 4.0).waveform
    np.testing.assert_array_equal(examples(wave)[1], examples(wave[96 * 160 :])[0])


def test_embeddings_have_both_signs(embedder: VggishEmbedder) -> None:
    (rows,) = embedder.embed([noise(0, 4.0)])
    assert rows.shape == (4, 128)
    assert rows.min() < 0 < rows.max()
    assert np.ptp(rows, axis=0).max() > 1e-3


def test_features_are_flattened_by_time_then_frequency_then_channel(embedder: VggishEmbedder) -> None:
    pictures, network = torch.from_numpy(examples(noise(0, 2.0).waveform)), embedder.network
    with torch.no_grad():
        found = network.features(pictures[:, None])
        assert found.shape == (2, 16, 6, 4)
        flat = torch.stack([found[:, :, time, band] for time in range(6) for band in range(4)], dim=1).flatten(1)
        torch.testing.assert_close(network(pictures), network.embeddings(flat))


def test_a_clip_has_the_same_rows_alone_and_beside_others(
    embedder: VggishEmbedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vggish, "BATCH", 4)
    clips = [noise(0, 3.0), noise(1, 0.4), noise(2, 5.5), noise(3, 2.2, 44100)]
    together = embedder.embed(clips)
    assert [len(rows) for rows in together] == [3, 2, 5, 2]
    for clip, rows in zip(clips, together, strict=True):
        np.testing.assert_allclose(rows, embedder.embed([clip])[0], atol=1e-5, rtol=1e-4)


def test_a_clip_that_cannot_be_measured_is_refused(embedder: VggishEmbedder) -> None:
    with pytest.raises(AudioError, match="empty or has NaN"):
        embedder.embed([Clip(np.zeros(0, dtype=np.float32), 16000)])
