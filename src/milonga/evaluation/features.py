"""Features of clips: what scorers, classifiers and the audio itself say of each clip, from which metrics are computed.

An `Extractor` turns decoded clips into named columns. Extracted features are cached under the audio's hash and a hash
of everything that made them: the extractor, its weights, how files are loaded. A run stores its own as `ClipFeatures`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from milonga.core.cache import ArrayCache, cache_folder
from milonga.core.errors import DataError, RecipeError
from milonga.core.hub import fetch_file, offline
from milonga.core.ids import content_id, file_hash
from milonga.core.progress import Advance
from milonga.core.protocols import Embedder, Scorer, Tagger
from milonga.core.records import Clip, Event, Prompt, Record
from milonga.core.store import Run
from milonga.evaluation import reconstruction
from milonga.evaluation.inputs import AudioRef
from milonga.evaluation.metrics import Metric
from milonga.maths.devices import AUTO
from milonga.scorers import load as scorers
from milonga.scorers.waveform import RATE, Loading

BATCH = 16
RECONSTRUCTION = ("psnr", "ssim", "ssim_stft", "lsd")
CLIPPED, SILENT = 0.999, 1e-4  # of full scale: what counts as clipped, and the peak below which a clip is silent
HIT = 3  # samples at full scale in a row that may be audible as clipping
# The published weights: LAION's CLAP is on the Hub, the others have an address and a SHA-256 of their own.
PUBLISHED = {
    "clap": "lukewys/laion_clap:630k-audioset-best.pt",
    "panns": "https://zenodo.org/records/3987831/files/Cnn14_16k_mAP=0.438.pth",
    "vggish": "https://github.com/harritaylor/torchvggish/releases/download/v0.1/vggish-10086976.pth",
}
DIGESTS = {
    PUBLISHED["panns"]: "e2ee543a27919542c2ea03eabaa70b24dcd4e6c8e05621de6b67a94e4c5058e6",
    PUBLISHED["vggish"]: "10086976245803799d9194e9a73d9b6c1549c71d1b80106f5cade5608a561f4b",
}
Columns = dict[str, list[Any]]
Decoded = tuple[np.ndarray, int]  # samples (samples, channels) and sampling rate


class ClipFeatures(Record):
    """One clip of a run, the `number`th of its prompt from 0: the judge's score, and what tagger and file say."""

    id: str
    prompt_id: str
    number: int = 0
    clap: float
    events: tuple[Event, ...]
    embedding: tuple[float, ...]
    logits: tuple[float, ...]
    silent: bool
    clipped: bool


@dataclass(frozen=True)
class SystemFeatures:
    """The features of one system's clips: columns by name, each a value by clip key."""

    name: str
    columns: Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Extractor:
    """A source of features: its name, a description for protocols and the cache's key, and the function that extracts.

    `extract(keys, clips)` gives columns with a value for each decoded clip; of these only `columns` are used. Values
    that depend on more than the clip itself are not `cached`.
    """

    name: str
    description: str
    extract: Callable[[Sequence[str], Sequence[Decoded]], Columns]
    columns: tuple[str, ...]
    cached: bool = True

    @cached_property
    def key(self) -> str:
        """The part of a cache's key that stands for the extractor."""
        return content_id("features", 3, self.name, self.description)


# -- a run's own


def extract_features(
    ids: Sequence[str], prompts: Sequence[Prompt], clips: Sequence[Clip], judge: Scorer, tagger: Tagger, batch: int
) -> list[ClipFeatures]:
    """The features of N clips, each scored by the judge with its prompt's text; all sequences have one length."""
    rows: list[ClipFeatures] = []
    for first in range(0, len(clips), batch):
        part = slice(first, first + batch)
        scores = judge.score(clips[part], [prompt.text for prompt in prompts[part]])
        embeddings, logits = tagger.features(clips[part])
        events = tagger.detect(clips[part])
        for place, clip in enumerate(clips[part]):
            waveform = clip.waveform[:, None]
            rows.append(
                ClipFeatures(
                    id=ids[first + place], prompt_id=prompts[first + place].id, clap=float(scores[place]),
                    events=tuple(events[place]), embedding=tuple(map(float, embeddings[place])),
                    logits=tuple(map(float, logits[place])), silent=is_silent(waveform), clipped=is_clipped(waveform),
                )
            )  # fmt: skip
    return rows


def system_features(name: str, rows: Sequence[ClipFeatures]) -> SystemFeatures:
    """Stored features as columns by `Request.key`: a prompt's id, and ID.1, ID.2, … of its further clips."""
    names = [name for name in ClipFeatures.model_fields if name not in ("id", "prompt_id", "number")]
    columns: dict[str, dict[str, Any]] = {column: {} for column in names}
    for row in rows:
        key = f"{row.prompt_id}.{row.number}" if row.number else row.prompt_id
        for column, cells in columns.items():
            value = getattr(row, column)
            cells[key] = np.array(value) if column in ("embedding", "logits") else value
    return SystemFeatures(name, columns)


def load_features(run: Run, name: str) -> SystemFeatures:
    """The stored features of one system of a run (`features/NAME`), by `Request.key`."""
    return system_features(name, run.stage(f"features/{name}").read_records(ClipFeatures))


# -- extractors


def file_extractor(seconds: float) -> Extractor:
    """Silence and clipping of the file as it is, without any network, and whether it reaches the `seconds` measured."""

    def extract(keys: Sequence[str], clips: Sequence[Decoded]) -> Columns:
        return {
            "silent": [np.array(float(is_silent(samples))) for samples, _ in clips],
            "clipped": [np.array(float(is_clipped(samples))) for samples, _ in clips],
            "cut": [np.array(float(len(samples) >= round(seconds * rate))) for samples, rate in clips],
        }

    return Extractor("file", FILE_DESCRIPTION, extract, ("silent", "clipped", "cut"))


FILE_DESCRIPTION = f"silent: peak below {SILENT:g}; clipped: {HIT} samples in a row at {CLIPPED:g}"


def is_silent(samples: np.ndarray) -> bool:
    """Whether no sample of (samples, channels) reaches SILENT."""
    return bool(np.abs(samples).max() < SILENT)


def is_clipped(samples: np.ndarray) -> bool:
    """Whether HIT samples in a row of some channel of (samples, channels) reach CLIPPED."""
    hits = np.abs(samples) >= CLIPPED
    runs = hits[: len(hits) - HIT + 1].copy() if len(hits) >= HIT else hits[:0]
    for shift in range(1, HIT):
        runs &= hits[shift : len(hits) - HIT + 1 + shift]
    return bool(runs.any())


def classifier_extractor(source: str, loading: Loading, fetch: bool, device: Any = AUTO) -> Extractor:
    """PANNs' Cnn14 or Wavegram-Logmel-CNN14 from a file, or `passt`: embeddings for FD and KAD, logits for KL and IS.

    Raises RecipeError for a protocol that loads clips at another rate than the classifier's, and as loading it does.
    """
    from milonga.scorers.packaged import PASST, PasstEmbedder
    from milonga.scorers.panns import load_panns

    if source == PASST:
        embedder: Any = PasstEmbedder(device)
        rate, weights = embedder.rate, embedder.weights
    else:
        path = weights_file(source, fetch)
        embedder = load_panns(path, device=device)
        rate, weights = embedder.network.mel.rate, file_hash(path)[:8]
    if rate != RATE and loading.name != "milonga":
        raise RecipeError(f"{source} takes {rate} Hz, and --protocol {loading.name} gives {RATE} Hz: leave it out")

    def extract(keys: Sequence[str], clips: Sequence[Decoded]) -> Columns:
        if rate == RATE:
            embeddings, logits = embedder.of_waves([loading.panns(*clip) for clip in clips])
        else:
            embeddings, logits = embedder.features([mono_clip(clip) for clip in clips])
        return {"embedding": list(embeddings), "logits": list(logits)}

    description = f"{embedder.name}@{weights}; {loading.description.replace('to 16 kHz', f'to {rate // 1000} kHz')}"
    return Extractor("panns", description, extract, ("embedding", "logits"))


def vggish_extractor(source: str, loading: Loading, fetch: bool, device: Any = AUTO) -> Extractor:
    """VGGish without its last ReLU and without PCA: the rows of the paper's FAD."""
    from milonga.scorers.vggish import load_vggish

    path = weights_file(source, fetch)
    embedder = load_vggish(path, device=device)

    def extract(keys: Sequence[str], clips: Sequence[Decoded]) -> Columns:
        return {"vggish": embedder.of_waves([loading.vggish(*clip) for clip in clips])}

    description = f"vggish@{file_hash(path)[:8]}, before ReLU, no PCA; {loading.description}"
    return Extractor("vggish", description, extract, ("vggish",))


def tagger_extractor(name: str, classifies: bool, device: Any = AUTO) -> Extractor:
    """A tagger by its name: events, and where it `classifies` also embeddings and logits in the place of PANNs'."""
    tagger = scorers.tagger(name, device)

    def extract(keys: Sequence[str], clips: Sequence[Decoded]) -> Columns:
        mono = [mono_clip(clip) for clip in clips]
        embeddings, logits = tagger.features(mono)
        places = [
            np.array([[tagger.classes.index(one.label), one.onset, one.offset] for one in events]).reshape(-1, 3)
            for events in tagger.detect(mono)
        ]
        return {"embedding": list(embeddings), "logits": list(logits), "event places": places}

    description = f"{name}@{scorers.fingerprint(name)[:8]}; mean of channels, soxr HQ to 16 kHz"
    columns = ("event places", "embedding", "logits") if classifies else ("event places",)
    return Extractor("tagger", description, extract, columns)


def clap_extractor(scorer: Any) -> Extractor:
    """A CLAP's unit-norm rows; the cosine with the caption is taken later, so that captions may change."""
    name = scorer.name

    def extract(keys: Sequence[str], clips: Sequence[Decoded]) -> Columns:
        mono = [mono_clip(clip) for clip in clips]
        return {f"rows {name}": list(scorer.embed_clips(mono))}

    window = "windows as named, else the first" if ":" in name else "first window"
    description = f"{name}@{scorers.fingerprint(name)[:8]}; {window}; mean of channels, soxr HQ to {scorer.mel.rate} Hz"
    return Extractor(f"clap {name}", description, extract, (f"rows {name}",))


def text_scorer_extractor(scorer: Any, prompts: Mapping[str, Prompt]) -> Extractor:
    """A scorer without embeddings: its score of each clip with its caption, NaN for a clip without one."""

    def extract(keys: Sequence[str], clips: Sequence[Decoded]) -> Columns:
        pairs = [(mono_clip(clip), prompts[key].text) for key, clip in zip(keys, clips, strict=True) if key in prompts]
        scores = iter(scorer.score([clip for clip, _ in pairs], [text for _, text in pairs]) if pairs else ())
        return {f"score {scorer.name}": [float(next(scores)) if key in prompts else np.nan for key in keys]}

    description = f"{scorer.name}; mean of channels"
    return Extractor(f"score {scorer.name}", description, extract, (f"score {scorer.name}",), cached=False)


def audio_metric_extractor(
    metric: Metric, prompts: Mapping[str, Prompt], real: Mapping[str, AudioRef], seconds: float | None = None
) -> Extractor:
    """A metric that is computed from the clips themselves: its value for each, NaN where it does not apply."""

    def value(key: str, clip: Decoded) -> float:
        prompt = prompts.get(key)
        if len((prompt and prompt.scene) or ()) < metric.scene or (metric.reference and key not in real):
            return np.nan
        reference = mono_clip(real[key].samples(seconds)) if metric.reference else None
        return float(metric.value(mono_clip(clip), reference, prompt))

    def extract(keys: Sequence[str], clips: Sequence[Decoded]) -> Columns:
        return {f"audio {metric.name}": [value(key, clip) for key, clip in zip(keys, clips, strict=True)]}

    name = f"audio {metric.name}"
    return Extractor(name, "the clip itself, mean of channels", extract, (name,), cached=False)


def reconstruction_extractor(real: Mapping[str, AudioRef], loading: Loading, seconds: float | None = None) -> Extractor:
    """PSNR, SSIM and LSD of each clip against its original; NaN for those that are silent or too short."""

    def extract(keys: Sequence[str], clips: Sequence[Decoded]) -> Columns:
        rows = [
            reconstruction_values(clip, real[key].samples(seconds), loading) if key in real else {}
            for key, clip in zip(keys, clips, strict=True)
        ]
        return {column: [row.get(column, np.nan) for row in rows] for column in RECONSTRUCTION}

    return Extractor("reconstruction", loading.description, extract, RECONSTRUCTION, cached=False)


def mono_clip(decoded: Decoded) -> Clip:
    """A decoded clip as the mean of its channels."""
    samples, rate = decoded
    return Clip(samples.mean(axis=1), rate)


def scorer_of(given: Any, device: Any = AUTO) -> Any:
    """A scorer from its name, or the object itself. Raises RecipeError for an object without `name` and `score`."""
    if isinstance(given, str):
        return scorers.scorer(given, device)
    if not (isinstance(getattr(given, "name", None), str) and callable(getattr(given, "score", None))):
        raise RecipeError(f"{given!r} is no scorer: give a name, or an object with `name` and `score(clips, texts)`")
    return given


def is_clap(scorer: Any) -> bool:
    """Whether a scorer embeds clips and texts from weights on disk, so that its clip embeddings can be cached."""
    return isinstance(scorer, Embedder) and hasattr(scorer, "mel")


# -- computation


def extract_columns(
    clips: Mapping[str, AudioRef],
    extractors: Sequence[Extractor],
    cache: ArrayCache | None,
    advance: Advance,
    seconds: float | None = None,
) -> dict[str, dict[str, Any]]:
    """All extractors' columns of the first `seconds` of a system's clips; each clip is decoded at most once, and only
    where no cache helps.

    Raises AudioError naming a clip that cannot be decoded.
    """
    columns: dict[str, dict[str, Any]] = {}
    keys = sorted(clips)
    for first in range(0, len(keys), BATCH):
        part = keys[first : first + BATCH]
        hashes = {key: clips[key].hash() for key in part} if cache else {}
        decoded: dict[str, Decoded] = {}
        for extractor in extractors:
            store = cache if extractor.cached else None
            names = {key: f"{extractor.key}/{seconds}/{hashes[key]}" for key in part} if store else {}
            cached = store.get(list(names.values())) if store else {}
            rows = {
                key: cached[name]
                for key, name in names.items()
                if set(extractor.columns) <= cached.get(name, {}).keys()
            }
            fresh = [key for key in part if key not in rows]
            decoded |= {key: clips[key].samples(seconds) for key in fresh if key not in decoded}
            extracted = extractor.extract(fresh, [decoded[key] for key in fresh]) if fresh else {}
            rows |= {key: {name: cells[n] for name, cells in extracted.items()} for n, key in enumerate(fresh)}
            if store and fresh:
                store.put({names[key]: rows[key] for key in fresh})
            for column in extractor.columns:
                columns.setdefault(column, {}).update((key, rows[key][column]) for key in part)
        advance(len(part))
    return columns


def named_events(places: np.ndarray, classes: Sequence[str]) -> tuple[Event, ...]:
    """Rows of (class, onset, offset) as events."""
    return tuple(Event(label=classes[int(label)], onset=float(on), offset=float(off)) for label, on, off in places)


def reconstruction_values(own: Decoded, real: Decoded, loading: Loading) -> dict[str, float]:
    """PSNR, SSIM and LSD of a clip against its original; a clip that is silent or too short lacks some of them."""
    waves = loading.image(*own), loading.image(*real)
    images = [reconstruction.mel_image(wave) for wave in waves]
    frames = min(map(len, images))
    first, second = (image[:frames] for image in images)
    values = {"psnr": reconstruction.psnr(first, second)}
    if frames >= reconstruction.WINDOW:
        values["ssim"] = reconstruction.ssim(first, second, loading.ssim_span)
    try:
        spectra = reconstruction.spectra(waves[0], waves[1], loading.generated_offset)
    except DataError:  # silent: not measured, and its n says so
        return values
    values["lsd"] = reconstruction.lsd(*spectra)
    if len(spectra[0]) >= reconstruction.WINDOW:
        values["ssim_stft"] = reconstruction.ssim(*spectra)
    return values


# -- weights


def weights_file(source: str, fetch: bool) -> Path:
    """The file of some weights: a path, OWNER/NAME:FILE of the Hub, or a published address (`PUBLISHED`).

    Nothing is downloaded unless `fetch` allows it. Raises CheckpointError where it is not on this machine, RecipeError
    for what is none of these.
    """
    with offline(not fetch):
        return fetch_file(source, cache_folder("weights"), DIGESTS.get(source, ""))
