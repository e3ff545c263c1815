"""Mel pictures of one caption by every system of a run, from the same noise: README's pictures.

    python benchmarks/pictures.py RUN "CAPTION" docs/images

Reads the evaluated clips of RUN and writes `mel-SYSTEM.png` for each system. Time runs to the right, frequency upwards.
"""

import hashlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from PIL import Image

from milonga.core.audio import from_flac
from milonga.maths.mel import MelSettings, log_mel

SCALE, RANGE = 3, 7.5  # pixels per mel cell; natural-log units below the loudest cell (65 dB)
# Dark blue to white over magenta and orange, evenly in lightness.
STOPS = np.array([[0, 0, 4], [81, 18, 124], [183, 55, 121], [252, 137, 97], [252, 253, 191]], dtype=float)


def rows(folder: Path, columns: list[str] | None = None) -> list[dict[str, Any]]:
    """All rows of a stage's shards."""
    return [
        row for path in sorted(folder.glob("*.parquet")) for row in pq.read_table(path, columns=columns).to_pylist()
    ]


def picture(waveform: np.ndarray, rate: int) -> Image.Image:
    """The log-mel of a waveform as an image, low frequencies at the bottom."""
    settings = MelSettings(rate=rate, hop=256, bands=48, low=40.0, high=min(8000.0, rate / 2))
    mel = log_mel(torch.from_numpy(waveform.astype(np.float32))[None], settings)[0].numpy()
    columns = np.stack([part.mean(axis=0) for part in np.array_split(mel, min(160, len(mel)))], axis=1)
    level = np.clip((columns[::-1] - (columns.max() - RANGE)) / RANGE, 0, 1)
    places = np.linspace(0, 1, len(STOPS))
    pixels = np.stack([np.interp(level, places, STOPS[:, channel]) for channel in range(3)], axis=-1)
    image = Image.fromarray(pixels.round().astype(np.uint8))
    return image.resize((image.width * SCALE, image.height * SCALE), Image.Resampling.NEAREST).quantize(64)


def main(run: Path, caption: str, out: Path) -> None:
    prompt = next(row for row in rows(run / "evaluate" / "prompts") if row["text"] == caption)
    for folder in sorted(run.glob("evaluate/*/")):
        if folder.name == "prompts":
            continue
        features = rows(run / "features" / folder.name, ["id", "prompt_id"])
        wanted = next(row["id"] for row in features if row["prompt_id"] == prompt["id"])
        clip = from_flac(next(row["audio"]["bytes"] for row in rows(folder) if row["id"] == wanted))
        path = out / f"mel-{folder.name}.png"
        picture(clip.waveform, clip.rate).save(path, optimize=True)
        print(path, hashlib.sha256(path.read_bytes()).hexdigest()[:12])


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
