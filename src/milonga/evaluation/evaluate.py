"""The command `milonga evaluate`: systems' clips are heard once, and become Tables 3 to 5 with intervals and stamps."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path

import numpy as np

from milonga.core.errors import DataError, RecipeError
from milonga.core.hub import offline
from milonga.core.progress import tracked
from milonga.core.records import Comparison, Event, Summary
from milonga.evaluation import features as extractors
from milonga.evaluation import measure
from milonga.evaluation.inputs import REFERENCE, Gathered, Sound, agreement, gather
from milonga.evaluation.measure import Metric, Performance, Question
from milonga.maths import metrics as of_scenes
from milonga.maths import reconstruction
from milonga.scorers import load as registry
from milonga.scorers.waveform import Loading, of_protocol

# Events in a clip whose scene is known: by name, whether it is a share of yes, and whether more is better.
SCENES = {
    "all_present": (True, True), "presence": (False, True), "extra": (False, False), "order": (True, True),
    "correct": (True, True),
}  # fmt: skip
REBUILT = {"psnr": True, "ssim": True, "ssim_stft": True, "lsd": False}
VERSIONS = ("milonga", "torch", "numpy", "scipy", "soxr", "soundfile")


@dataclass(frozen=True)
class Asked:
    """What `milonga evaluate` was asked, but for the clips: listeners, protocol, splits, and how chance is drawn."""

    panns: str | None = None
    vggish: str | None = None
    claps: tuple[str, ...] = ()
    tagger: str | None = None
    protocol: str = "milonga"
    splits: tuple[str, ...] = ()
    labels: str | None = None
    sigmoid: bool = False
    reconstruction: bool = False
    resamples: int = 1000
    seed: int = 0
    force: bool = False
    fetch: bool = False
    cache: Path | None = field(default_factory=extractors.cache_folder)


@dataclass(frozen=True)
class Evaluation:
    """What came out: the numbers, what must be said with them, and what they are of."""

    gathered: Gathered
    performances: list[Performance]
    summaries: list[Summary]
    comparisons: list[Comparison]
    warnings: list[str]
    splits: dict[str, list[str]]
    classes: tuple[str, ...]


def evaluate(sources: Sequence[str], reference: Path | None, captions: Path | None, asked: Asked) -> Evaluation:
    """Hears and measures what `sources` hold (`gather`). Raises in one line for anything that cannot be."""
    with offline(not asked.fetch):
        return _evaluated(sources, reference, captions, asked)


def _evaluated(sources: Sequence[str], reference: Path | None, captions: Path | None, asked: Asked) -> Evaluation:
    loading = of_protocol(asked.protocol)
    given = gather(sources, reference, captions)
    gathered = alike(given, asked.force)
    asked, splits = with_listeners(asked, gathered), gathered.splits(asked.splits, asked.labels)
    listeners = listeners_of(asked, loading)
    performances = heard(gathered, listeners, asked, loading)
    real = next((one for one in performances if one.name == REFERENCE), None)
    systems = [one for one in performances if one is not real]
    listed = metrics_of(gathered, listeners, asked, loading)
    question = Question(splits, real, paired(gathered), asked.resamples, asked.seed)
    with tracked("measure", measure.count(systems, listed, question)) as advance:
        rows = measure.summaries(systems, listed, question, advance)
        found = measure.comparisons(systems, listed, question, advance)
    told = [*left_out(given, gathered), *agreement(splits), *measure.warnings(systems, listed, question)]
    return Evaluation(gathered, performances, rows, found, told, splits, classes_of(asked))


def classes_of(asked: Asked) -> tuple[str, ...]:
    """The classes that the tagger knows; none where none listens."""
    return registry.tagger(asked.tagger).classes if asked.tagger else ()


def paired(gathered: Gathered) -> bool:
    """Whether real clips are those of the systems' own prompts, by their names."""
    return any(set(own) & set(gathered.reference) for own in gathered.systems.values())


def alike(gathered: Gathered, force: bool) -> Gathered:
    """The same with clips of the same prompts in every system; real clips of other prompts altogether may differ.

    Raises DataError where they differ and `force` does not ask for those that all have.
    """
    sides = dict(gathered.systems)
    if paired(gathered):
        sides[REFERENCE] = gathered.reference
    shared = set.intersection(*map(set, sides.values()))
    if all(len(own) == len(shared) for own in sides.values()):
        return gathered
    told = ", ".join(f"{name} has {len(own)}" for name, own in sides.items())
    if not shared:
        raise DataError(f"no clip is in all of them: {told}; clips pair by file name without suffix")
    if not force:
        raise DataError(f"{told} clips, all have {len(shared)} in common: --force evaluates those, on equal terms")

    def kept(own: Mapping[str, Sound]) -> dict[str, Sound]:
        return {key: own[key] for key in sorted(shared)}

    real = kept(gathered.reference) if paired(gathered) else gathered.reference
    return replace(gathered, systems={name: kept(own) for name, own in gathered.systems.items()}, reference=real)


def left_out(given: Gathered, evaluated: Gathered) -> list[str]:
    """What was forced: of which sides how many clips are not evaluated, because others have none of that name."""
    sides = [(name, own, evaluated.systems[name]) for name, own in given.systems.items()]
    sides.append((REFERENCE, given.reference, evaluated.reference))
    lost = [f"{len(own) - len(kept)} of {len(own)} of {name}" for name, own, kept in sides if len(kept) < len(own)]
    return [f"forced onto the clips that all have: left out are {', '.join(lost)}"] if lost else []


def with_listeners(asked: Asked, gathered: Gathered) -> Asked:
    """The same with nano's own listeners where none is named: they know the small world's sounds and no others.

    Raises RecipeError for a CLAP without captions, or options that need clips which are not there.
    """
    if not (asked.panns or asked.vggish or asked.claps or asked.tagger):
        asked = replace(asked, claps=("nano-judge",) if gathered.prompts else (), tagger="nano-tagger")
    if asked.claps and not gathered.prompts:
        raise RecipeError("CLAP judges by captions: give --captions CSV with the columns clip and caption")
    if asked.reconstruction and not paired(gathered):
        raise RecipeError("--reconstruction compares clips with their originals: give a reference of the same names")
    if asked.protocol != Asked.protocol and not (asked.panns or asked.vggish or asked.reconstruction):
        raise RecipeError(
            f"--protocol {asked.protocol} is how PANNs, VGGish and --reconstruction are given clips: ask for one"
        )
    return asked


def listeners_of(asked: Asked, loading: Loading) -> list[extractors.Extractor]:
    """The listeners that were named. Raises CheckpointError or RecipeError for weights that are missing or broken."""
    found = [extractors.plain()]
    if asked.panns:
        found.append(extractors.panns(asked.panns, loading, asked.fetch))
    if asked.vggish:
        found.append(extractors.vggish(asked.vggish, loading, asked.fetch))
    if asked.tagger:
        found.append(extractors.tagger(asked.tagger))
    return found + [extractors.clap(name) for name in asked.claps]


def heard(
    gathered: Gathered, listeners: Sequence[extractors.Extractor], asked: Asked, loading: Loading
) -> list[Performance]:
    """All systems and the real clips as heard, with what follows from captions, scenes and real clips."""
    sides = gathered.systems | ({REFERENCE: gathered.reference} if gathered.reference else {})
    with tracked("listen", sum(map(len, sides.values()))) as advance:
        found = [extractors.perform(name, own, listeners, asked.cache, advance) for name, own in sides.items()]
    classes = classes_of(asked)
    found = [Performance(one.name, {**one.columns, **captioned(one, gathered, classes)}) for one in found]
    if not asked.reconstruction:
        return found
    return [
        one if one.name == REFERENCE else Performance(one.name, {**one.columns, **rebuilt(one.name, gathered, loading)})
        for one in found
    ]


def captioned(one: Performance, gathered: Gathered, classes: Sequence[str]) -> dict[str, dict[str, np.ndarray]]:
    """Columns by clip of what captions decide: each CLAP's cosine, and the events that a scene asks for."""
    found: dict[str, dict[str, np.ndarray]] = {}
    prompts = gathered.prompts
    for column, rows in one.columns.items():
        keys = [key for key in rows if key in prompts]
        if column.startswith("clap ") and keys:
            texts = registry.scorer(column.removeprefix("clap ")).embed_texts([prompts[key].text for key in keys])
            cosines = (np.stack([rows[key] for key in keys]) * texts).sum(axis=1)
            found[f"score {column}"] = {key: np.array(c) for key, c in zip(keys, cosines.tolist(), strict=True)}
    for key, rows in one.columns.get("events", {}).items():
        scene = prompts[key].scene if key in prompts else None
        for name in SCENES if scene else ():
            if scene and (name != "order" or len(scene) > 1):
                rule = of_scenes.in_order if name == "order" else getattr(of_scenes, name)
                found.setdefault(name, {})[key] = np.array(float(rule(scene, events_of(rows, classes))))
    return found


def events_of(rows: np.ndarray, classes: Sequence[str]) -> tuple[Event, ...]:
    """The events in rows of (class, onset, offset), named."""
    return tuple(Event(label=classes[int(label)], onset=float(on), offset=float(off)) for label, on, off in rows)


def rebuilt(name: str, gathered: Gathered, loading: Loading) -> dict[str, dict[str, np.ndarray]]:
    """PSNR, SSIM and LSD of every clip against its original; a clip that is silent or too short has none."""
    found: dict[str, dict[str, np.ndarray]] = {metric: {} for metric in REBUILT}
    with tracked("compare", len(gathered.systems[name])) as advance:
        for key, sound in sorted(gathered.systems[name].items()):
            own, real = (loading.image(*one.samples()) for one in (sound, gathered.reference[key]))
            for metric, value in _closeness(own, real, loading).items():
                found[metric][key] = np.array(value)
            advance(1)
    return found


def _closeness(own: np.ndarray, real: np.ndarray, loading: Loading) -> dict[str, float]:
    images = [reconstruction.mel_image(wave) for wave in (own, real)]
    frames = min(map(len, images))
    first, second = (image[:frames] for image in images)
    found = {"psnr": reconstruction.psnr(first, second)}
    if frames >= reconstruction.WINDOW:
        found["ssim"] = reconstruction.ssim(first, second, loading.ssim_span)
    try:
        spectra = reconstruction.spectra(own, real, loading.generated_offset)
    except DataError:  # silent: not measured, and counted so
        return found
    found["lsd"] = reconstruction.lsd(*spectra)
    if len(spectra[0]) >= reconstruction.WINDOW:
        found["ssim_stft"] = reconstruction.ssim(*spectra)
    return found


def metrics_of(
    gathered: Gathered, listeners: Sequence[extractors.Extractor], asked: Asked, loading: Loading
) -> list[Metric]:
    """Every metric that these listeners allow, each with its stamp."""
    told = {one.name: one.told for one in listeners}
    scenes = any(prompt.scene for prompt in gathered.prompts.values())
    found = [
        Metric(one.name if place else "clap", "mean", f"score {one.name}", one.told)
        for place, one in enumerate(one for one in listeners if one.name.startswith("clap "))
    ]
    if "tagger" in told and scenes:
        found += [
            Metric(name, "share" if share else "mean", name, told["tagger"], up) for name, (share, up) in SCENES.items()
        ]
    if "vggish" in told:
        rows = f"{told['vggish']}; rows of 0.96 s, drawn by clip"
        found += [Metric("fad", "frechet", "vggish", rows, False), Metric("fad_inf", "endless", "vggish", rows, False)]
    by = "panns" if "panns" in told else "tagger"
    if by in told:
        found += _of_classifier(by, told[by], asked.sigmoid)
    if asked.reconstruction:
        found += [Metric(name, "mean", name, loading.told, up) for name, up in REBUILT.items()]
    found += [Metric(name, "share", name, told["file"], False) for name in ("silent", "clipped")]
    return [replace(metric, stamp=f"{metric.stamp}; {stamp_of(asked)}") for metric in found]


def stamp_of(asked: Asked) -> str:
    """What the stamps of all numbers share: the protocol, the bootstrap, and versions."""
    versions = ", ".join(f"{name} {version(name)}" for name in VERSIONS)
    return f"protocol {asked.protocol}; {asked.resamples} resamples; {versions}"


def _of_classifier(by: str, told: str, sigmoid: bool) -> list[Metric]:
    """What a network with features and class logits allows."""
    logits = "logits" if by == "panns" else "tagger_logits"
    splits = f"mean of {measure.IS_SPLITS} splits, order by RandomState(2020)"
    found = [
        Metric("fd", "frechet", by, told, False),
        Metric("fd_inf", "endless", by, told, False),
        Metric("kad", "kernel", by, f"{told}; Gaussian, median of the reference, ×100", False),
        Metric("kl", "kl", logits, f"{told}; softmax, reference ‖ generated", False),
        Metric("is", "inception", logits, f"{told}; {splits}"),
    ]
    if sigmoid:
        found.append(Metric("kl_sigmoid", "kl_sigmoid", logits, f"{told}; no divergence: (1−p) left out", False))
    return found
