"""PANNs: shapes, the audio path of the published metrics, answers that do not depend on the batch."""

from pathlib import Path

import numpy as np
import pytest
import torch

from milonga.core.errors import AudioError
from milonga.core.records import Clip
from milonga.maths.mel import log_mel
from milonga.scorers import panns
from milonga.scorers.panns import FRONT_ENDS, Cnn14, PannsEmbedder, WavegramLogmelCnn14, load_panns
from milonga.scorers.waveform import map_by_length, metric_waveform

RATES = sorted(FRONT_ENDS)


def noise(seed: int, seconds: float, rate: int = 16000, offset: float = 0.0, gain: float = 0.1) -> Clip:
    wave = offset + gain * np.random.default_rng(seed).standard_normal(round(seconds * rate))
    return Clip(wave.astype(np.float32), rate)


def embedder(rate: int = 16000) -> PannsEmbedder:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = Cnn14(FRONT_ENDS[rate], width=2)
        for name, value in network.named_parameters():
            if value.dim() > 1:
                torch.nn.init.kaiming_normal_(value)
            elif name == "bn0.weight":
                torch.nn.init.constant_(value, 0.1)
    return PannsEmbedder("small", network)


@pytest.mark.parametrize("rate", RATES)
def test_embeddings_are_not_negative_and_logits_are_theirs(rate: int) -> None:
    heard = embedder(rate)
    embeddings, logits = heard.features([noise(0, 2.5, rate), noise(1, 2.5, rate, gain=1.0)])
    assert (embeddings.shape, logits.shape) == ((2, 64), (2, 527))
    assert embeddings.min() == 0
    assert np.ptp(embeddings, axis=0).max() > 1e-2
    again = heard.network.fc_audioset(torch.from_numpy(embeddings)).detach().numpy()
    np.testing.assert_allclose(logits, again, atol=1e-5)


@pytest.mark.parametrize("rate", RATES)
def test_pictures_have_a_frame_more_than_hops_and_no_clipping(rate: int) -> None:
    mel = FRONT_ENDS[rate]
    wave = torch.from_numpy(noise(0, 10.0, rate).waveform)[None]
    assert log_mel(wave, mel).shape == (1, 1001, 64)
    torch.testing.assert_close(log_mel(100 * wave, mel), log_mel(wave, mel) + 40, atol=1e-3, rtol=0)


def test_the_constants_are_the_spectrum_that_is_computed() -> None:
    network = Cnn14(FRONT_ENDS[16000], width=1)
    held, frame = network.state_dict(), torch.from_numpy(noise(0, 512 / 16000).waveform)
    real, imaginary = (
        held[f"spectrogram_extractor.stft.conv_{part}.weight"][:, 0] @ frame for part in ("real", "imag")
    )
    expected = torch.fft.rfft(frame * torch.hann_window(512))
    torch.testing.assert_close(torch.complex(real, imaginary), expected, atol=1e-4, rtol=1e-4)


def test_a_clip_is_heard_the_same_alone_and_beside_others_of_any_length(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(panns, "BATCH", 2)
    heard = embedder()
    clips = [noise(0, 2.0), noise(1, 3.1), noise(2, 2.0), noise(3, 0.5), noise(4, 2.0), noise(5, 3.1, 32000)]
    embeddings, logits = heard.features(clips)
    for place, clip in enumerate(clips):
        alone = heard.features([clip])
        np.testing.assert_allclose(embeddings[place], alone[0][0], atol=1e-4, rtol=1e-4)
        np.testing.assert_allclose(logits[place], alone[1][0], atol=1e-4, rtol=1e-4)


def test_no_batch_is_larger_than_asked_and_every_answer_finds_its_wave() -> None:
    sizes = []

    def listen(batch: torch.Tensor) -> list[float]:
        sizes.append(tuple(batch.shape))
        return batch[:, 0].tolist()

    waves = [np.full(length, place, dtype=np.float32) for place, length in enumerate([3, 5, 3, 3, 5])]
    assert map_by_length(listen, waves, batch=2) == [0.0, 1.0, 2.0, 3.0, 4.0]
    assert sizes == [(2, 3), (1, 3), (2, 5)]


def test_a_metric_waveform_has_no_mean_and_two_seconds_at_least() -> None:
    long, short = noise(0, 2.5, offset=0.3), noise(1, 0.7, offset=0.3)
    np.testing.assert_allclose(metric_waveform(long, 16000), long.waveform - long.waveform.mean(), atol=1e-7)
    padded = metric_waveform(short, 16000)
    assert len(padded) == 32000
    np.testing.assert_allclose(padded[:11200], short.waveform - short.waveform.mean(), atol=1e-7)
    assert not padded[11200:].any()
    assert len(metric_waveform(noise(2, 3.0, 44100), 32000)) == 96000


@pytest.mark.parametrize("samples", [[], [0.1, np.nan], [np.inf, 0.0]])
def test_a_clip_that_cannot_be_measured_is_refused(samples: list[float]) -> None:
    with pytest.raises(AudioError, match="empty or has NaN"):
        embedder().features([noise(0, 2.0), Clip(np.array(samples, dtype=np.float32), 16000)])


# Names and shapes of what Wavegram_Logmel_Cnn14_mAP=0.439.pth holds beside Cnn14's layers, and where it differs.
WAVEGRAM = {
    "pre_conv0.weight": (64, 1, 11),
    "pre_bn0.running_mean": (64,),
    "pre_block1.conv1.weight": (64, 64, 3),
    "pre_block1.conv2.weight": (64, 64, 3),
    "pre_block2.conv1.weight": (128, 64, 3),
    "pre_block2.conv2.weight": (128, 128, 3),
    "pre_block3.conv1.weight": (128, 128, 3),
    "pre_block3.bn2.weight": (128,),
    "pre_block4.conv1.weight": (64, 4, 3, 3),
    "pre_block4.conv2.weight": (64, 64, 3, 3),
    "conv_block1.conv2.weight": (64, 64, 3, 3),
    "conv_block2.conv1.weight": (128, 128, 3, 3),
    "conv_block3.conv1.weight": (256, 128, 3, 3),
    "conv_block6.conv1.weight": (2048, 1024, 3, 3),
    "fc_audioset.weight": (527, 2048),
    "logmel_extractor.melW": (513, 64),
}


def test_wavegram_has_the_published_layout() -> None:
    with torch.device("meta"):
        network = WavegramLogmelCnn14(FRONT_ENDS[32000])
        plain = Cnn14(FRONT_ENDS[32000])
    shapes = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    assert {name: shapes[name] for name in WAVEGRAM} == WAVEGRAM
    added = {name.split(".")[0] for name in shapes.keys() - plain.state_dict().keys()}
    assert added == {"pre_conv0", "pre_bn0", *(f"pre_block{number}" for number in range(1, 5))}


def test_wavegram_is_read_from_its_file_and_embeds_clips_of_any_length(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = WavegramLogmelCnn14(FRONT_ENDS[32000], width=16)
    for value in network.parameters():
        if value.dim() > 1:
            torch.nn.init.kaiming_normal_(value)
    torch.save({"model": network.state_dict()}, tmp_path / "wavegram.pth")
    loaded = load_panns(tmp_path / "wavegram.pth", width=16)
    assert loaded.name == "panns-wavegram-logmel-cnn14-32k"
    clips = [noise(0, 2.0), noise(1, 2.01), noise(2, 2.0, 32000)]  # frames of both pictures are even, and odd
    embeddings, logits = loaded.features(clips)
    assert (embeddings.shape, logits.shape) == ((3, 512), (3, 527))
    for place, clip in enumerate(clips):
        alone = loaded.features([clip])
        np.testing.assert_allclose(embeddings[place], alone[0][0], atol=1e-4, rtol=1e-4)
    with torch.no_grad():
        wave = torch.from_numpy(metric_waveform(clips[1], 32000))[None]
        whole, _ = loaded.network(wave)
        np.testing.assert_allclose(embeddings[1], whole[0], atol=1e-3, rtol=1e-3)  # the same without oneDNN's layout
        for name, value in loaded.network.named_parameters():
            if name.startswith("pre_block4.bn2"):
                value.zero_()
        assert (loaded.network(wave)[0] - whole).abs().max() > 1e-3  # the picture of the waveform counts
