"""The audio part of `another_reference`: new sounds through the original's front end, by plain float64 formulas.

The short-time transform is a product with a dense basis, as in the original. Two files at other rates, which need the
original's resampler, are taken over with their recorded arrays under new names.
"""

import json
import shutil
from itertools import combinations
from pathlib import Path

import numpy as np
import soundfile
import torch
from safetensors.torch import load_file
from torch import Tensor

RATE, FFT, HOP, BANDS = 16000, 1024, 160, 64
TAKEN_OVER = {"hall": "stereo44k", "slow": "rate22050"}
FRAMES = {"hum": 192, "bells": 640, "two_channels": 320, "nothing": 192}
FLOOR = float(np.log(1e-5))


def sounds() -> dict[str, np.ndarray]:
    """New waveforms (samples, channels): longer and shorter than their pictures, with an offset, stereo, silent."""
    chance, time = np.random.RandomState(77), np.arange(RATE * 7) / RATE
    bells = sum(np.sin(2 * np.pi * tone * time) * np.exp(-(time % 1.7) * 3) for tone in (523, 1319, 3520))
    hum = 0.2 + 0.3 * np.sin(2 * np.pi * 90 * time[:20000]) + 0.05 * chance.randn(20000)
    noise = 0.2 * chance.randn(RATE * 2, 2) * np.linspace(0, 1, RATE * 2)[:, None]
    nothing = np.zeros((8000, 1))
    bells = 0.25 * bells + 0.002 * chance.randn(len(time))  # float32 hears no bands that are quieter by 100 dB
    return {"bells": bells[:, None], "hum": hum[:, None], "two_channels": noise, "nothing": nothing}


def triangles(rate: int, fft: int, bands: int, low: float, high: float) -> np.ndarray:
    """Slaney's triangles of equal area, (bands, fft / 2 + 1)."""

    def mels(hertz: float) -> float:
        return 3 * hertz / 200 if hertz < 1000 else 15 + 27 * np.log(hertz / 1000) / np.log(6.4)

    def hertz(mel: float) -> float:
        return 200 / 3 * mel if mel < 15 else 1000 * 6.4 ** ((mel - 15) / 27)

    edges = [hertz(mel) for mel in np.linspace(mels(low), mels(high), bands + 2)]
    made, lines = np.zeros((bands, fft // 2 + 1)), np.arange(fft // 2 + 1) * rate / fft
    for band, (start, peak, end) in enumerate(zip(edges, edges[1:], edges[2:], strict=False)):
        sides = np.minimum((lines - start) / (peak - start), (end - lines) / (end - peak))
        made[band] = np.maximum(0, sides) * 2 / (end - start)
    return made


def mel_basis() -> np.ndarray:
    return triangles(RATE, FFT, BANDS, 0, 8000)


def basis() -> np.ndarray:
    """The windowed cosines, then the negative sines, of every line, (fft + 2, fft)."""
    place = np.arange(FFT)
    turns = 2 * np.pi * np.outer(np.arange(FFT // 2 + 1), place) / FFT
    return np.concatenate([np.cos(turns), -np.sin(turns)]) * (0.5 - 0.5 * np.cos(2 * np.pi * place / FFT))


def magnitudes(wave: np.ndarray) -> np.ndarray:
    """(lines, frames) of what the original transforms: clipped to [-1, 1], NaN silenced, edges reflected."""
    padded = np.pad(np.nan_to_num(np.clip(wave.astype(np.float64), -1, 1)), FFT // 2, mode="reflect")
    frames = np.stack([padded[first : first + FFT] for first in range(0, len(padded) - FFT + 1, HOP)], axis=1)
    both = basis() @ frames
    return np.sqrt(both[: FFT // 2 + 1] ** 2 + both[FFT // 2 + 1 :] ** 2)


def mel(wave: np.ndarray) -> np.ndarray:
    """(frames, bands), with the surplus frame."""
    return np.log(np.maximum(mel_basis() @ magnitudes(wave), 1e-5)).T


def prepared(wave: np.ndarray, frames: int) -> np.ndarray:
    """A file's first channel as it is trained on (FACTS §2, steps 2 to 4), float32."""
    wave = wave[:, 0] - wave[:, 0].mean()
    wave = 0.5 * wave / (np.abs(wave).max() + 1e-8)
    wave = np.concatenate([wave, np.zeros(frames * HOP)])[: frames * HOP]
    with np.errstate(invalid="ignore"):
        return (0.5 * wave / np.abs(wave).max()).astype(np.float32)


def a_weighting() -> np.ndarray:
    squares = np.linspace(0, RATE / 2, 1025) ** 2
    squares[0] = 1
    terms = 2 * np.log10(squares) - np.log10(squares + 12194.0**2) - np.log10(squares + 20.6**2)
    terms -= 0.5 * (np.log10(squares + 107.7**2) + np.log10(squares + 737.9**2))
    return np.maximum(20 * (np.log10(12194.0**2) + terms) + 2, -80)


def gains(wave: np.ndarray) -> np.ndarray:
    window, ear = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(2048) / 2048), 10 ** (a_weighting() / 10)
    starts = range(0, len(wave) - 2047, 1024)
    energies = [np.sum(np.abs(np.fft.rfft(window * wave[one : one + 2048])) ** 2 * ear) for one in starts]
    return 10 * np.log10(np.maximum(energies, 1e-8))


def share(one: np.ndarray, other: np.ndarray, ratio: float) -> float:
    return 1 / (1 + 10 ** ((gains(one).max() - gains(other).max()) / 20) * (1 - ratio) / ratio)


def mix(one: np.ndarray, other: np.ndarray, ratio: float) -> np.ndarray:
    p = share(one, other, ratio)
    return ((p * one + (1 - p) * other) / np.sqrt(p**2 + (1 - p) ** 2)).astype(np.float32)


def made(source: Path, folder: Path, ratios: list[float]) -> tuple[dict[str, Tensor], dict[str, str], dict[str, int]]:
    """The arrays and the words of `audio.safetensors`, and every file's frames; writes the files into `folder`."""
    (folder / "wavs").mkdir()
    recorded, told = load_file(source / "audio.safetensors"), json.loads((source / "manifest.json").read_text())
    held: dict[str, Tensor] = {}
    frames = dict(FRAMES)
    for name, old in TAKEN_OVER.items():
        shutil.copy(source / "wavs" / f"{old}.wav", folder / "wavs" / f"{name}.wav")
        held |= {f"pipe.{name}.{part}": recorded[f"pipe.{old}.{part}"] for part in ("waveform", "mel")}
        frames[name] = told["wavs"][old]
    for name, wave in sounds().items():
        soundfile.write(folder / "wavs" / f"{name}.wav", wave, RATE, "PCM_16")
    read = {name: soundfile.read(folder / "wavs" / f"{name}.wav", always_2d=True)[0] for name in FRAMES}
    arrays = raw() | through(read) | mixed(read, ratios) | {"stft.mel_basis": mel_basis()}
    augmented, words = augment(read)
    numbers = {
        key: torch.from_numpy(np.array(value, dtype=np.float32, order="C"))
        for key, value in (arrays | augmented).items()
    }
    exact = {key: value.double() for key, value in numbers.items() if key.startswith(("mix.a_", "mix.g", "mix.p"))}
    return held | numbers | exact | whole_numbers() | {
        "pipe.nothing.waveform_is_nan": torch.tensor([True]),
        "stft.forward_basis_rows_0_7_512_600": torch.from_numpy(basis()[[0, 7, 512, 600]].astype(np.float32)),
    }, words, frames  # fmt: skip


def raw() -> dict[str, np.ndarray]:
    wave = np.random.RandomState(5).randn(3, 24000).astype(np.float32) * np.array([[0.1], [0.7], [0.3]], np.float32)
    wave[1, 400] = np.nan
    found = np.stack([magnitudes(one) for one in wave])
    return {
        "raw.wave": wave, "raw.mel": np.stack([mel(one).T for one in wave]),
        "raw.energy": np.sqrt((found**2).sum(1)), "raw.log_magnitude_frame5": np.log(np.maximum(found[..., 5], 1e-5)),
    }  # fmt: skip


def through(read: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Every sounding file's waveform and picture; of a silent one two frames."""
    made = {"pipe.nothing.mel_frames_0_2": np.full((1, 2, BANDS), FLOOR)}
    for name, wave in read.items():
        if name != "nothing":
            done = prepared(wave, FRAMES[name])
            made |= {f"pipe.{name}.waveform": done[None], f"pipe.{name}.mel": mel(done)[None, :-1]}
    return made


def mixed(read: dict[str, np.ndarray], ratios: list[float]) -> dict[str, np.ndarray]:
    pair = [prepared(read[name], max(FRAMES.values())) for name in ("two_channels", "bells")]
    made = {f"mix.gain_frames_{place + 1}": gains(wave) for place, wave in enumerate(pair)}
    made |= {"mix.gain_db": np.array([gains(wave).max() for wave in pair])}
    made[f"mix.a_weight_{RATE}_2048_every64"] = a_weighting()[::64]
    for ratio in ratios:
        made |= {f"mix.p_r{ratio}": np.array([share(*pair, ratio)]), f"mix.r{ratio}.out": mix(*pair, ratio)}
    return made


def augment(read: dict[str, np.ndarray]) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    names, texts = ["hum", "bells", "two_channels"], ["Engine Hums", "Three bells ring", "Wind"]
    waves, longest = [prepared(read[name], max(FRAMES.values())) for name in names], max(FRAMES.values())
    pairs = list(combinations(range(3), 2))
    heard = np.stack([mix(waves[one], waves[other], 0.5) for one, other in pairs])
    heard = 0.5 * heard / np.abs(heard).max()
    said = [f"{texts[one]} and {texts[other][0].lower()}{texts[other][1:]}" for one, other in pairs]
    told = {"augment_paths": [f"{name}.wav" for name in names], "augment_texts": texts, "augment_captions": said}
    return {
        "augment.mel": np.stack([mel(wave)[:longest] for wave in heard]), "augment.waveform_every16": heard[:, ::16],
        "augment.waveform_absmax_per_item": np.abs(heard).max(1),
        "augment_with_silence.mel_unique_values": np.array([FLOOR]),
    }, {key: json.dumps(value) for key, value in told.items()}  # fmt: skip


def whole_numbers() -> dict[str, Tensor]:
    given = np.array([0, 0.25, -0.25, 0.99997, 1.0, -1.0, 1e-5, -1e-5, 0.123456], dtype=np.float32)
    taken = (given.astype(np.float64) * 32768).astype(np.int64)
    return {"int16.in": torch.from_numpy(given), "int16.out": torch.from_numpy(taken).to(torch.int16)}
