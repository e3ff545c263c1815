"""The listeners of `milonga evaluate`: each turns clips into columns of arrays, and what it heard is kept.

What is kept is keyed by the audio's hash and by everything that made it: the listener, its weights, how files are
loaded. So it never grows stale, and a run that was killed goes on where it was.
"""

import io
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from milonga.core.errors import CheckpointError, RecipeError
from milonga.core.ids import content_id, file_hash
from milonga.core.progress import Advance
from milonga.core.records import Clip
from milonga.core.store import write_bytes
from milonga.evaluation.inputs import Sound
from milonga.evaluation.measure import Performance
from milonga.scorers import load as registry
from milonga.scorers.waveform import Loading

BATCH = 16
CLIPPED, SILENT = 0.999, 1e-4  # of full scale: what counts as clipped, and the peak below which a clip is silent
HIT = 3  # samples at full scale in a row that an ear may hear as clipping
Answers = dict[str, list[np.ndarray]]
Decoded = tuple[np.ndarray, int]


@dataclass(frozen=True)
class Extractor:
    """A listener: its name, what made its answers (hashed into the cache's key, told in stamps), and how it listens."""

    name: str
    told: str
    listen: Callable[[Sequence[Decoded]], Answers]

    @cached_property
    def key(self) -> str:
        """The part of a cache's key that says who listened."""
        return content_id("features", 1, self.name, self.told)


def cache_folder() -> Path:
    """Where what was heard is kept: $MILONGA_CACHE, or `milonga` in the user's cache folder."""
    given = os.environ.get("MILONGA_CACHE")
    return Path(given) if given else Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "milonga"


def plain() -> Extractor:
    """Silence and clipping of the file as it is, without any network."""

    def listen(clips: Sequence[Decoded]) -> Answers:
        peaks = [float(np.abs(samples).max()) for samples, _ in clips]
        return {
            "silent": [np.array(float(peak < SILENT)) for peak in peaks],
            "clipped": [np.array(float(_longest(np.abs(samples) >= CLIPPED) >= HIT)) for samples, _ in clips],
        }

    return Extractor("file", f"silent: peak below {SILENT:g}; clipped: {HIT} samples in a row at {CLIPPED:g}", listen)


def _longest(hits: np.ndarray) -> int:
    """The longest run of hits in any channel of (samples, channels)."""
    padded = np.pad(hits.astype(np.int8), ((1, 1), (0, 0)))
    best = 0
    for channel in padded.T:
        steps = np.diff(channel)
        starts, stops = np.flatnonzero(steps == 1), np.flatnonzero(steps == -1)
        best = max(best, int((stops - starts).max(initial=0)))
    return best


def panns(source: str, loading: Loading, fetch: bool) -> Extractor:
    """Cnn14 at 16 kHz: embeddings for FD and KAD, logits for KL and IS."""
    from milonga.scorers.panns import load_panns

    path = weights_file(source, fetch)
    embedder = load_panns(path)

    def listen(clips: Sequence[Decoded]) -> Answers:
        embeddings, logits = embedder.of_waves([loading.panns(*clip) for clip in clips])
        return {"panns": list(embeddings), "logits": list(logits)}

    return Extractor("panns", f"{embedder.name}@{file_hash(path)[:8]}; {loading.told}", listen)


def vggish(source: str, loading: Loading, fetch: bool) -> Extractor:
    """VGGish without its last ReLU and without PCA: the rows of the paper's FAD."""
    from milonga.scorers.vggish import load_vggish

    path = weights_file(source, fetch)
    embedder = load_vggish(path)

    def listen(clips: Sequence[Decoded]) -> Answers:
        return {"vggish": embedder.of_waves([loading.vggish(*clip) for clip in clips])}

    return Extractor("vggish", f"vggish@{file_hash(path)[:8]}, before ReLU, no PCA; {loading.told}", listen)


def tagger(name: str) -> Extractor:
    """A tagger of the registry: events, and features in place of PANNs' where those are not given."""
    heard = registry.tagger(name)

    def listen(clips: Sequence[Decoded]) -> Answers:
        mixed = [Clip(samples.mean(axis=1), rate) for samples, rate in clips]
        embeddings, logits = heard.features(mixed)
        events = [
            np.array([[heard.classes.index(one.label), one.onset, one.offset] for one in found]).reshape(-1, 3)
            for found in heard.detect(mixed)
        ]
        return {"tagger": list(embeddings), "tagger_logits": list(logits), "events": events}

    told = f"{name}@{registry.fingerprint(name)[:8]}; mean of channels, soxr HQ to 16 kHz"
    return Extractor("tagger", told, listen)


def clap(name: str) -> Extractor:
    """A CLAP's unit-norm rows; the cosine with the caption is taken later, so that captions may change."""
    scorer = registry.scorer(name)

    def listen(clips: Sequence[Decoded]) -> Answers:
        mixed = [Clip(samples.mean(axis=1), rate) for samples, rate in clips]
        return {f"clap {name}": list(scorer.embed_clips(mixed))}

    window = "windows as named, else the first" if ":" in name else "first window"
    told = f"{name}@{registry.fingerprint(name)[:8]}; {window}; mean of channels, soxr HQ to {scorer.mel.rate} Hz"
    return Extractor(f"clap {name}", told, listen)


def weights_file(source: str, fetch: bool) -> Path:
    """The file of some weights: a path, or OWNER/NAME:FILE of the Hub, which is only fetched if `fetch` allows it.

    Raises CheckpointError where it is not on this machine, RecipeError for what is neither.
    """
    if Path(source).is_file():
        return Path(source)
    owner, mark, file = source.partition(":")
    if not mark or owner.count("/") != 1 or owner.startswith((".", "/")):
        raise RecipeError(f"{source!r} is neither a file nor OWNER/NAME:FILE of the Hub")
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(owner, file, local_files_only=not fetch))
    except LocalEntryNotFoundError:
        raise CheckpointError(f"{source} is not on this machine: --fetch would download it") from None
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise CheckpointError(f"{source} cannot be had from the Hub: {type(error).__name__}") from None


def perform(
    name: str, sounds: Mapping[str, Sound], listeners: Sequence[Extractor], cache: Path | None, advance: Advance
) -> Performance:
    """What all listeners hear in a system's clips, each clip decoded at most once, answers taken from the cache first.

    Raises AudioError naming a clip that cannot be decoded.
    """
    columns: dict[str, dict[str, np.ndarray]] = {}
    keys = sorted(sounds)
    for first in range(0, len(keys), BATCH):
        part = keys[first : first + BATCH]
        hashes = {key: sounds[key].hash() for key in part} if cache else {}
        decoded: dict[str, Decoded] = {}
        for listener in listeners:
            known = {key: _kept(cache, listener, hashes[key]) for key in part} if cache else {}
            fresh = [key for key in part if known.get(key) is None]
            decoded |= {key: sounds[key].samples() for key in fresh if key not in decoded}
            found = listener.listen([decoded[key] for key in fresh]) if fresh else {}
            for place, key in enumerate(fresh):
                known[key] = {column: answers[place] for column, answers in found.items()}
                if cache:
                    _keep(cache, listener, hashes[key], known[key] or {})
            for key in part:
                for column, answer in (known[key] or {}).items():
                    columns.setdefault(column, {})[key] = answer
        advance(len(part))
    return Performance(name, columns)


def _file(cache: Path, listener: Extractor, audio: str) -> Path:
    return cache / "features" / listener.key / audio[:2] / f"{audio}.npz"


def _kept(cache: Path | None, listener: Extractor, audio: str) -> dict[str, np.ndarray] | None:
    """A clip's answers from the cache; None where there are none, or a torn file."""
    assert cache is not None
    try:
        with np.load(_file(cache, listener, audio)) as held:
            return dict(held)
    except (OSError, ValueError, EOFError, BadZipFile):
        return None


def _keep(cache: Path, listener: Extractor, audio: str, answers: Mapping[str, np.ndarray]) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, **answers)  # pyright: ignore[reportArgumentType]
    write_bytes(_file(cache, listener, audio), buffer.getvalue())
