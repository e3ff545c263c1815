"""The evaluation part of `another_reference`: other weights, audio and sets, by plain formulas and stock networks.

PANNs' Cnn14 and VGGish are written out as functions of the original's tensors, CLAP is transformers' own under the
names of `clap_hf_mapping.json`. The toolkit's pairs are the recorded ones under other names, at 16 kHz alone: its
numbers of pictures do not depend on weights and are taken over.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import recorded_evaluation
import soundfile
import torch
from another_audio import triangles
from another_metrics import divergences, frechet, functions, inception, kid
from torch import Tensor
from torch.nn.functional import avg_pool2d, batch_norm, conv2d, linear, max_pool2d, relu

SALT, RATE = "held/", 16000
NAMES = [f"output_{place}.wav" for place in (10, 11, *range(12, 22))]


def weights(folder: Path, layout: str) -> dict[str, Tensor]:
    """Every tensor of an original file by rule W1, its constants left out."""
    told = json.loads((folder / "layouts" / f"{layout}.json").read_text())["tensors"]
    kept = [key for key in told if "extractor" not in key]
    return {key: torch.from_numpy(recorded_evaluation.value(key, tuple(told[key]["shape"]), SALT)) for key in kept}


def spectra(wave: np.ndarray, size: int, hop: int, fft: int) -> np.ndarray:
    """Magnitudes (frames, fft / 2 + 1) under a periodic Hann window, float64; nothing is padded."""
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(size) / size)
    frames = np.lib.stride_tricks.sliding_window_view(wave.astype(np.float64), size)[::hop]
    return np.abs(np.fft.rfft(frames * window, fft))


def decibels(wave: np.ndarray, fft: int, hop: int, bands: np.ndarray) -> np.ndarray:
    """PANNs' and CLAP's picture (frames, bands): centred, reflected, power, 10 log10."""
    power = spectra(np.pad(wave.astype(np.float64), fft // 2, mode="reflect"), fft, hop, fft) ** 2
    return 10 * np.log10(np.maximum(power @ bands.T, 1e-10)).astype(np.float32)


@torch.no_grad()
def cnn14(held: dict[str, Tensor], wave: np.ndarray) -> tuple[np.ndarray, Tensor, Tensor]:
    """The picture, the embedding (2048,) and the logits (527,) of one waveform."""

    def normal(x: Tensor, name: str) -> Tensor:
        mean, spread, gain, bias = (
            held[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")
        )
        return batch_norm(x, mean, spread, gain, bias)

    picture = decibels(wave, 512, 160, triangles(RATE, 512, 64, 50, 8000))
    x = normal(torch.from_numpy(picture).T[None, :, :, None], "bn0").permute(0, 3, 2, 1)
    for block in range(1, 7):
        for layer in (1, 2):
            name = f"conv_block{block}"
            x = relu(normal(conv2d(x, held[f"{name}.conv{layer}.weight"], padding=1), f"{name}.bn{layer}"))
        x = x if block == 6 else avg_pool2d(x, 2)
    x = x.mean(3)
    embedding = relu(linear(x.amax(2) + x.mean(2), held["fc1.weight"], held["fc1.bias"]))
    return picture, embedding[0], linear(embedding, held["fc_audioset.weight"], held["fc_audioset.bias"])[0]


def htk() -> np.ndarray:
    """VGGish's triangles, linear in mel, (257, 64)."""
    mels = 1127 * np.log(1 + np.linspace(0, RATE / 2, 257) / 700)
    edges = np.linspace(*(1127 * np.log(1 + np.array([125.0, 7500.0]) / 700)), 66)
    rising = (mels[:, None] - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - mels[:, None]) / (edges[2:] - edges[1:-1])
    made = np.maximum(0, np.minimum(rising, falling))
    made[0] = 0
    return made


def examples(wave: np.ndarray) -> np.ndarray:
    picture = np.log(spectra(wave, 400, 160, 512) @ htk() + 0.01)
    return np.stack([picture[first : first + 96] for first in range(0, len(picture) - 95, 96)]).astype(np.float32)


@torch.no_grad()
def vggish(held: dict[str, Tensor], shown: np.ndarray) -> np.ndarray:
    x = torch.from_numpy(shown)[:, None]
    for place in (0, 3, 6, 8, 11, 13):
        x = relu(conv2d(x, held[f"features.{place}.weight"], held[f"features.{place}.bias"], padding=1))
        x = x if place in (6, 11) else max_pool2d(x, 2)
    x = x.permute(0, 2, 3, 1).flatten(1)
    for place in (0, 2, 4):
        x = linear(x, held[f"embeddings.{place}.weight"], held[f"embeddings.{place}.bias"])
        x = x if place == 4 else relu(x)
    return x.numpy()


def waves(lengths: dict[Any, float], rate: int) -> dict[Any, np.ndarray]:
    """16-bit clips: tones over noise."""
    chance, made = np.random.RandomState(31), {}
    for name, seconds in lengths.items():
        time = np.arange(int(seconds * rate)) / rate
        tone = np.sin(2 * np.pi * (300 + 2000 * chance.rand()) * time * (1 + 0.1 * time))
        made[name] = np.round(32768 * (0.3 * tone + 0.05 * chance.randn(len(time)))).astype(np.int16)
    return made


def listeners(panns: dict[str, Tensor], vgg: dict[str, Tensor]) -> tuple[dict[str, Any], dict[str, Any]]:
    one: dict[str, Any] = {"melW": triangles(RATE, 512, 64, 50, 8000).T.astype(np.float32)}
    other: dict[str, Any] = {"mel_matrix": htk()}
    for place, samples in waves({0: 2.5, 1: 4.1, 2: 1.2}, RATE).items():
        wave = samples / 32768
        picture, embedding, logits = cnn14(panns, wave)
        one |= {f"wav{place}_int16": samples, f"logmel{place}_first32frames": picture[:32]}
        one |= {f"logmel{place}_shape": (1, 1, *picture.shape), f"embedding{place}": embedding.numpy()}
        one |= {f"logits{place}": logits.numpy(), f"clipwise{place}": logits.sigmoid().numpy()}
        shown = examples(wave)
        rows = vggish(vgg, shown)
        other |= {f"wav{place}_int16": samples, f"examples{place}_shape": (len(shown), 1, 96, 64)}
        other |= {f"example{place}_first": shown[0], f"example{place}_last": shown[-1]}
        other |= {f"emb_prerelu{place}": rows, f"emb_relu{place}": np.maximum(rows, 0)}
    return one, other


def toolkit(source: Path, folder: Path, panns: dict[str, Tensor], vgg: dict[str, Tensor]) -> None:
    """The recorded pairs under other names, heard by the new weights; files are at 16 kHz, where both toolkits agree
    but for VGGish, to which only the newer one gives waves without their mean, of two seconds or more."""
    olds = sorted(path.name for path in (source / "toolkit" / "gen").iterdir())
    for protocol in ("tango", "upstream"):
        recorded = json.loads((source / f"toolkit_{protocol}.json").read_text())["ref16k"]["metrics_full_precision"]
        arrays: dict[str, Any] = {}
        for side in ("gen", "ref16k"):
            (folder / "toolkit" / side).mkdir(parents=True, exist_ok=True)
            rows: dict[str, list[Any]] = {"embedding2048": [], "logits": [], "vggish": []}
            for old, name in zip(olds, NAMES, strict=True):
                shutil.copy(source / "toolkit" / side / old, folder / "toolkit" / side / name)
                wave, _ = soundfile.read(folder / "toolkit" / side / name)
                centred = np.pad(wave - wave.mean(), (0, max(0, 2 * RATE - len(wave))))
                arrays[f"{side}/wave16k_head/{name}"] = centred[:4000].astype(np.float32)
                arrays[f"{side}/wave16k_len/{name}"] = len(centred)
                _, embedding, logits = cnn14(panns, centred)
                rows["embedding2048"].append(embedding.numpy()[None])
                rows["logits"].append(logits.numpy()[None])
                rows["vggish"].append(vggish(vgg, examples(wave if protocol == "tango" else centred)))
            arrays |= {f"{side}/{kind}": np.concatenate(found) for kind, found in rows.items()}
            arrays[f"{side}/vggish_rows_per_clip"] = [len(found) for found in rows["vggish"]]
            arrays[f"{side}/names"] = NAMES
        numbers = recorded | told(arrays, protocol)
        (folder / f"toolkit_{protocol}.json").write_text(json.dumps({"ref16k": {"metrics_full_precision": numbers}}))
        np.savez(folder / f"toolkit_{protocol}.npz", **arrays)


def told(arrays: dict[str, Any], protocol: str) -> dict[str, float]:
    """The numbers that depend on weights, under the names of a toolkit."""
    sides = {kind: (arrays[f"gen/{kind}"], arrays[f"ref16k/{kind}"]) for kind in ("embedding2048", "logits", "vggish")}
    soft, sigmoid = divergences(*reversed(sides["logits"]))
    mean, spread = inception(sides["logits"][0])
    made = {"frechet_distance": frechet(*sides["embedding2048"]), "frechet_audio_distance": frechet(*sides["vggish"])}
    if protocol == "tango":
        made |= {"kl_softmax": soft, "kl_sigmoid": sigmoid, "is_mean": mean, "is_std": spread}
        return made | {"kid_mean": kid(*sides["embedding2048"], 1000)}
    divergence, score = "kullback_leibler_divergence", "inception_score"
    made |= {f"{divergence}_softmax": soft, f"{divergence}_sigmoid": sigmoid}
    return made | {f"{score}_mean": mean, f"{score}_std": spread}


@torch.no_grad()
def clap(folder: Path) -> dict[str, Any]:
    """Three clips and texts through transformers' CLAP, filled under the names of the recorded mapping."""
    from transformers import ClapConfig, ClapModel

    held = weights(folder, "laion_clap_htsat_tiny_nonfusion")
    mapping = json.loads((folder / "layouts" / "clap_hf_mapping.json").read_text())["map"]
    config = ClapConfig(text_config={"layer_norm_eps": 1e-5, "vocab_size": 50265, "type_vocab_size": 1})
    model = ClapModel(config).eval()
    own = model.state_dict()
    for theirs, ours in mapping.items():
        for place, name in enumerate(ours or ()):
            if theirs in held and name in own and "index" not in name:
                own[name].copy_(held[theirs].tensor_split(len(ours))[place] if len(ours) > 1 else held[theirs])
    made, rows = {}, []
    for name, samples in waves({"quick": 2.2, "long": 7.0, "whole": 10.0}, 48000).items():
        wave = np.trunc(np.clip(samples / 32768, -1, 1) * 32767).astype(np.int16).astype(np.float32) / 32767
        full = np.tile(wave, 480000 // len(wave))
        full = np.pad(full, (0, 480000 - len(full)))
        picture = decibels(full, 1024, 480, triangles(48000, 1024, 64, 50, 14000))
        answer = model.audio_model(
            torch.from_numpy(picture)[None, None], is_longer=torch.tensor([[False]])
        ).pooler_output
        row = torch.nn.functional.normalize(model.audio_projection(answer), dim=-1)[0]
        rows.append(row.numpy())
        made |= {f"{name}/wav48k_int16": samples, f"{name}/quantised_first64": full[:64]}
        made |= {
            f"{name}/padded_nonzero_tail": (480000, np.flatnonzero(full)[-1]),
            f"{name}/logmel_shape": (1, 1, *picture.shape),
        }
        made |= {
            f"{name}/logmel_frames_0_8": picture[:8],
            f"{name}/logmel_mean_std": (picture.mean(), picture.std(ddof=1)),
        }
        made |= {f"{name}/htsat_embedding768": answer[0].numpy(), f"{name}/audio_embed512_normalised": rows[-1]}
    return made | clap_texts(model, np.stack(rows))


def clap_texts(model: Any, rows: np.ndarray) -> dict[str, Any]:
    ids, mask = np.ones((3, 77), dtype=np.int64), np.zeros((3, 77), dtype=np.int64)
    for place, count in enumerate((4, 40, 9)):
        ids[place, :count], mask[place, :count] = np.random.RandomState(place).randint(4, 50000, count), 1
        ids[place, 0], ids[place, count - 1] = 0, 2
    pooled = model.text_model(input_ids=torch.from_numpy(ids), attention_mask=torch.from_numpy(mask)).pooler_output
    found = torch.nn.functional.normalize(model.text_projection(pooled), dim=-1).numpy()
    made = {"text/input_ids": ids, "text/attention_mask": mask, "text/pooler768": pooled.numpy()}
    return made | {"text/text_embed512_normalised": found, "cosine_audio_x_text": rows.astype(np.float64) @ found.T}


def write(source: Path, folder: Path, large: bool) -> None:
    """The folder; `large` adds all that whole networks answer."""
    folder.mkdir()
    shutil.copytree(source / "layouts", folder / "layouts")
    (folder / "manifest.json").write_text(json.dumps({"salt": SALT}))
    arrays, numbers, kads = functions()
    np.savez(folder / "functions.npz", **arrays)
    (folder / "functions.json").write_text(json.dumps(numbers))
    (folder / "kad.json").write_text(json.dumps(kads))
    if large:
        panns, vgg = weights(folder, "panns_cnn14_16k"), weights(folder, "vggish")
        one, other = listeners(panns, vgg)
        stereo = np.load(source / "vggish.npz")
        other |= {name: stereo[name] for name in ("stereo441_int16", "stereo441_examples")}
        other["stereo441_emb_prerelu"] = vggish(vgg, other["stereo441_examples"])
        np.savez(folder / "panns_cnn14_16k.npz", **one)
        np.savez(folder / "vggish.npz", **other)
        toolkit(source, folder, panns, vgg)
        np.savez(folder / "clap_htsat_tiny.npz", **clap(folder))
