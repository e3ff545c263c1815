"""The evaluator of `milonga run`, `milonga evaluate` and `milonga.evaluate`: features once, then every metric by split.

A run is evaluated with the features that it stores; of other audio they are extracted with the weights that are named.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from milonga.core.cache import feature_cache
from milonga.core.errors import DataError, RecipeError
from milonga.core.hub import offline
from milonga.core.progress import tracked
from milonga.core.records import Clip, Comparison, Summary
from milonga.evaluation import EvalConfig
from milonga.evaluation import features as extract
from milonga.evaluation.compute import EvalPlan, Numbers
from milonga.evaluation.features import SystemFeatures, load_features
from milonga.evaluation.inputs import REFERENCE, AudioRef, EvalInputs, agreement, load_inputs
from milonga.evaluation.metrics import Metric, all_metrics, get_metric, read_number, register, scorer_metric
from milonga.scorers.waveform import of_protocol

VERSIONS = ("milonga", "torch", "numpy", "scipy", "soxr", "soundfile")
RECONSTRUCTION = ("psnr", "ssim", "ssim_stft", "lsd")
NANO = {"scorers": ("nano-judge",), "tagger": "nano-tagger"}
NEEDS = {
    "clap": "a CLAP (--clap) and captions (--captions)",
    "events": "a tagger (--tagger)",
    "embedding": "PANNs (--panns) or a tagger (--tagger)",
    "logits": "PANNs (--panns) or a tagger (--tagger)",
    "vggish": "VGGish (--vggish)",
} | dict.fromkeys(RECONSTRUCTION, "--reconstruction")


@dataclass(frozen=True)
class Evaluation:
    """The numbers of an evaluation, the warnings that belong to them, and what they are of.

    `sources` names where features come from, for titles and meanings of metrics (`metrics.metrics_named`).
    """

    inputs: EvalInputs
    systems: list[SystemFeatures]
    summaries: list[Summary]
    comparisons: list[Comparison]
    warnings: list[str]
    splits: dict[str, list[str]]
    sources: dict[str, str]

    def __str__(self) -> str:
        from milonga.evaluation.formatting import as_text

        return as_text(self)

    def to_frame(self) -> Any:
        """The summaries as a pandas DataFrame. Raises RecipeError where pandas is not installed."""
        try:
            import pandas
        except ImportError:
            raise RecipeError("to_frame needs pandas: pip install pandas, or take `summaries`") from None
        return pandas.DataFrame([row.model_dump() for row in self.summaries])


def evaluate(sources: Sequence[str], reference: Path | None, captions: Path | None, config: EvalConfig) -> Evaluation:
    """Computes every metric that the inputs (`load_inputs`) and the weights of `config` allow.

    Raises a MilongaError in one line for inputs or options that cannot be used.
    """
    with offline(not config.fetch):
        given = load_inputs(sources, reference, captions)
        inputs = on_shared_clips(given, config.force)
        config = with_weights(config, inputs)
        splits = inputs.splits(config.splits, config.labels)
        features = Features(inputs, config)
    metrics = features.allowed_metrics()
    systems = [features.systems[name] for name in inputs.systems]
    real = features.systems.get(REFERENCE)
    recipe = inputs.manifest.get("recipe", {})
    resamples = config.resamples or recipe.get("evaluate", {}).get("resamples", 1000)
    seed = recipe.get("seed", 0) if config.seed is None else config.seed
    plan = EvalPlan(splits, real, inputs.prompts, inputs.paired, resamples, seed)
    numbers = Numbers(systems, metrics, plan, features.stamp)
    with tracked("metrics", numbers.count) as advance:
        summaries, comparisons = numbers.summaries(advance), numbers.comparisons(advance)
    warnings = [*left_out(given, inputs), *agreement(splits), *numbers.warnings(), *dict.fromkeys(numbers.failures)]
    return Evaluation(
        inputs, list(features.systems.values()), summaries, comparisons, warnings, splits, features.sources
    )


def on_shared_clips(inputs: EvalInputs, force: bool) -> EvalInputs:
    """The same with clips of the same prompts in every system; real clips of other prompts altogether may differ.

    A run's systems share their prompts; where a clip was refused, its prompt is left out pair by pair. Raises
    DataError where systems of other inputs differ and `force` does not ask for the clips that all have.
    """
    sides = dict(inputs.systems)
    if inputs.paired:
        sides[REFERENCE] = inputs.reference
    shared = set.intersection(*map(set, sides.values()))
    if inputs.run or all(len(clips) == len(shared) for clips in sides.values()):
        return inputs
    sizes = ", ".join(f"{name} has {len(clips)}" for name, clips in sides.items())
    if not shared:
        raise DataError(f"no clip is in all of them: {sizes}; clips pair by file name without suffix")
    if not force:
        raise DataError(f"{sizes} clips, all have {len(shared)} in common: --force evaluates those, on equal terms")

    def only_shared(clips: Mapping[str, AudioRef]) -> dict[str, AudioRef]:
        return {key: clips[key] for key in sorted(shared)}

    real = only_shared(inputs.reference) if inputs.paired else inputs.reference
    systems = {name: only_shared(clips) for name, clips in inputs.systems.items()}
    return replace(inputs, systems=systems, reference=real)


def left_out(given: EvalInputs, evaluated: EvalInputs) -> list[str]:
    """A warning with the number of clips of each side that `force` left out."""
    sides = [(name, clips, evaluated.systems[name]) for name, clips in given.systems.items()]
    sides.append((REFERENCE, given.reference, evaluated.reference))
    parts = [f"{len(all) - len(some)} of {len(all)} of {name}" for name, all, some in sides if len(some) < len(all)]
    return [f"forced onto the clips that all have: left out are {', '.join(parts)}"] if parts else []


def with_weights(config: EvalConfig, inputs: EvalInputs) -> EvalConfig:
    """The same with the weights of a named set in place. Raises RecipeError where audio comes without weights, for a
    CLAP without captions, and for options that need clips or weights which are not there.
    """
    if config.weights == "published":
        clap = f"laion-clap:{extract.weights_file(extract.PUBLISHED['clap'], config.fetch)}"
        config = replace(
            config, scorers=config.scorers or ((clap,) if inputs.prompts else ()),
            panns=config.panns or extract.PUBLISHED["panns"], vggish=config.vggish or extract.PUBLISHED["vggish"],
        )  # fmt: skip
    elif config.weights == "nano":
        scorers = config.scorers or (NANO["scorers"] if inputs.prompts else ())
        config = replace(config, scorers=scorers, tagger=config.tagger or NANO["tagger"])
    elif config.weights is not None:
        raise RecipeError(f"no weights {config.weights!r}: there are published (LAION-CLAP, PANNs, VGGish) and nano")
    named = config.panns or config.vggish or config.scorers or config.tagger
    if not (named or inputs.run or config.reconstruction or _needs_audio_only(config)):
        raise RecipeError(
            "no weights are named: --weights published takes LAION-CLAP, PANNs and VGGish (--fetch downloads them), "
            "--weights nano takes nano's (--clap nano-judge --tagger nano-tagger), which know 26 classes of sound only"
        )
    if config.scorers and not inputs.prompts:
        raise RecipeError("a scorer needs captions: give --captions CSV with the columns clip and caption")
    if config.reconstruction and not inputs.paired:
        raise RecipeError("--reconstruction compares clips with their originals: give a reference of the same names")
    if config.protocol != EvalConfig.protocol and not (config.panns or config.vggish or config.reconstruction):
        raise RecipeError(
            f"--protocol {config.protocol} is how PANNs, VGGish and --reconstruction load files: name one of them"
        )
    return config


def _needs_audio_only(config: EvalConfig) -> bool:
    """Whether metrics are named and all of them are computed from the audio itself."""
    rows = [one if isinstance(one, Metric) else get_metric(one) for one in config.metrics]
    return bool(rows) and all(row.feature in ("audio", "silent", "clipped") for row in rows)


class Features:
    """The features of all systems and the real clips, the protocol of each column, and the names of its source.

    A run's stored features come first; weights that are named beside it add columns or replace them.
    """

    def __init__(self, inputs: EvalInputs, config: EvalConfig) -> None:
        self.inputs, self.config, self.loading = inputs, config, of_protocol(config.protocol)
        self.stamps: dict[str, str] = {}  # column → how it was made
        self.sources: dict[str, str] = {}
        self.sides = inputs.systems | ({REFERENCE: inputs.reference} if inputs.reference else {})
        self.columns: dict[str, dict[str, dict[str, Any]]] = {name: {} for name in self.sides}
        self.scorers = self._stored()
        self._extract()
        for place, scorer in enumerate(self.scorers):
            self._score(scorer, "clap" if place == 0 and "clap" not in self.stamps else "")
        if config.reconstruction:
            self._reconstruct()
        self._measure_audio()

    @property
    def systems(self) -> dict[str, SystemFeatures]:
        """Features by system; the real clips are called `reference`."""
        return {name: SystemFeatures(name, columns) for name, columns in self.columns.items()}

    def stamp(self, metric: Metric) -> str:
        """The protocol of a metric's feature and of the metric itself."""
        column = self.stamps.get(metric.feature, "mean of channels")
        recipe = self.inputs.manifest.get("recipe")
        sampling = ""
        if recipe:
            table = recipe["evaluate"]
            sampling = (
                f"steps {table['steps']}, guidance {table['guidance']:g}, seed {recipe['seed']}, one clip a prompt"
            )
        versions = ", ".join(f"{name} {version(name)}" for name in VERSIONS)
        parts = (column, metric.stamp, sampling, f"protocol {self.config.protocol}", versions)
        return "; ".join(part for part in parts if part)

    def allowed_metrics(self) -> list[Metric]:
        """The metrics that were named, or all that the features allow.

        Raises RecipeError for a metric that is unknown or whose feature is missing.
        """
        if self.config.metrics:
            # A metric that comes as an object is known from here on, but computed only where it is named.
            objects = [register(replace(one, default=False)) for one in self.config.metrics if isinstance(one, Metric)]
            rows = [get_metric(one) for one in self.config.metrics if not isinstance(one, Metric)] + objects
            for row in map(_from_column, rows):
                if row.feature not in self.stamps:
                    raise RecipeError(f"{row.name} needs {NEEDS.get(row.feature, f'the feature {row.feature!r}')}")
            return [_from_column(row) for row in rows]
        rows = [_from_column(row) for row in all_metrics()]
        rows = [row for row in rows if row.feature in self.stamps]
        rows = [row for row in rows if row.default or (row.name == "kl_sigmoid" and self.config.sigmoid)]
        others = [scorer_metric(column) for column in self.stamps if column.startswith(("clap ", "score "))]
        place = sum(row.name == "clap" for row in rows)
        return rows[:place] + others + rows[place:]

    def _stored(self) -> list[Any]:
        """Takes a run's stored features, where it has them; gives the scorers that are left to be computed."""
        run, config = self.inputs.run, self.config
        if run is None:
            return [extract.scorer_of(given) for given in config.scorers]
        manifest = self.inputs.manifest
        names, hashes = manifest["recipe"]["models"], manifest["fingerprints"]["models"]
        self.sources = {"clap_title": "Judge CLAP", "clap": names["judge"]}
        if ":" in names["judge"] and not names["judge"].startswith("laion-clap:"):
            self.sources["clap_title"] = f"Judge {names['judge']}"
        tagger = config.tagger or names["tagger"]
        if all((run.path / "features" / name).is_dir() for name in self.sides):
            for name in self.sides:
                self.columns[name] = {column: dict(cells) for column, cells in load_features(run, name).columns.items()}
            self.stamps["clap"] = f"judge {names['judge']}@{hashes['judge'][:8]}"
            by_tagger = f"{names['tagger']}@{hashes['tagger'][:8]} at 16 kHz mono"
            self.stamps |= dict.fromkeys(("events", "embedding", "logits"), by_tagger)
            self.stamps |= dict.fromkeys(("silent", "clipped"), extract.FILE_DESCRIPTION)
            self.sources |= {"tagger": names["tagger"], "classifier": f"{names['tagger']}’s"}
            scorers = [given for given in config.scorers if given != names["judge"]]
            tagger = tagger if tagger != names["tagger"] else None
        else:
            scorers = [names["judge"], *(given for given in config.scorers if given != names["judge"])]
        self.config = replace(config, tagger=tagger)
        return [extract.scorer_of(given) for given in scorers]

    def _extract(self) -> None:
        """Runs the extractors of the weights that are named over all clips, and takes their columns."""
        config, extractors = self.config, []
        if "silent" not in self.stamps:
            extractors.append(extract.file_extractor())
        if config.panns:
            extractors.append(extract.panns_extractor(config.panns, self.loading, config.fetch))
            self.sources["classifier"] = "PANNs"
        if config.vggish:
            extractors.append(extract.vggish_extractor(config.vggish, self.loading, config.fetch))
        if config.tagger:
            extractors.append(extract.tagger_extractor(config.tagger, classifies=not config.panns))
            self.sources["tagger"] = config.tagger
            if not config.panns:
                self.sources["classifier"] = f"{config.tagger}’s"
        if not extractors:
            return
        cache = feature_cache() if config.cache else None
        with tracked("features", sum(map(len, self.sides.values()))) as advance:
            for name, clips in self.sides.items():
                self.columns[name].update(extract.extract_columns(name, clips, extractors, cache, advance).columns)
        self.stamps |= {column: one.description for one in extractors for column in one.columns}
        if "event places" in self.stamps:
            self.stamps["events"] = self.stamps.pop("event places")
            classes = extract.scorers.tagger(config.tagger or "").classes
            for columns in self.columns.values():
                places = columns.pop("event places")
                columns["events"] = {key: extract.named_events(rows, classes) for key, rows in places.items()}

    def _score(self, scorer: Any, column: str) -> None:
        """The scores of all clips that have a caption; the first CLAP's are the column `clap`."""
        prompts = self.inputs.prompts
        if extract.is_clap(scorer):
            column = column or f"clap {scorer.name}"
            extractor = extract.clap_extractor(scorer)
            cache = feature_cache() if self.config.cache else None
            with tracked(f"features {scorer.name}", sum(map(len, self.sides.values()))) as advance:
                for name, clips in self.sides.items():
                    rows = extract.extract_columns(name, clips, [extractor], cache, advance).columns.get("rows", {})
                    keys = [key for key in rows if key in prompts]
                    if keys:
                        texts = scorer.embed_texts([prompts[key].text for key in keys])
                        cosines = (np.stack([rows[key] for key in keys]) * texts).sum(axis=1)
                        self.columns[name][column] = dict(zip(keys, cosines.tolist(), strict=True))
            self.stamps[column] = extractor.description
            if column == "clap":
                self.sources.setdefault("clap", scorer.name)
            return
        column = f"score {scorer.name}"

        def score(keys: Sequence[str], clips: Sequence[Clip]) -> dict[str, float]:
            values = scorer.score(clips, [prompts[key].text for key in keys])
            return dict(zip(keys, map(float, values), strict=True))

        self._from_audio(column, score, only=prompts)
        self.stamps[column] = f"{scorer.name}; mean of channels"

    def _measure_audio(self) -> None:
        """The values of the wanted metrics that are computed from the clips themselves, as columns `audio NAME`."""
        wanted = [one if isinstance(one, Metric) else get_metric(one) for one in self.config.metrics]
        for row in wanted or [one for one in all_metrics() if one.default]:
            if row.feature == "audio":
                self._from_audio(f"audio {row.name}", partial(self._audio_values, row))
                self.stamps[f"audio {row.name}"] = "the clip itself, mean of channels"

    def _audio_values(self, row: Metric, keys: Sequence[str], clips: Sequence[Clip]) -> dict[str, float]:
        """A metric of audio for each clip; of a clip without the real one or the scene that it needs there is none."""
        values = {}
        for key, clip in zip(keys, clips, strict=True):
            prompt, real = self.inputs.prompts.get(key), self.inputs.reference.get(key)
            if len((prompt and prompt.scene) or ()) >= row.scene and (real or not row.reference):
                reference = _clip(real) if real and row.reference else None
                values[key] = float(row.value(clip, reference, prompt))
        return values

    def _reconstruct(self) -> None:
        """PSNR, SSIM and LSD of every system's clips against their originals, as columns of numbers."""
        for name, clips in self.inputs.systems.items():
            with tracked(f"reconstruction {name}", len(clips)) as advance:
                for key in sorted(set(clips) & set(self.inputs.reference)):
                    real = self.inputs.reference[key].samples()
                    for column, value in extract.reconstruction_values(
                        clips[key].samples(), real, self.loading
                    ).items():
                        self.columns[name].setdefault(column, {})[key] = value
                    advance(1)
        self.stamps |= dict.fromkeys(RECONSTRUCTION, self.loading.told)

    def _from_audio(
        self, column: str, function: Callable[[Sequence[str], Sequence[Clip]], dict[str, Any]], only: Any = None
    ) -> None:
        """Fills a column from the decoded mono clips, batch by batch."""
        with tracked(column, sum(map(len, self.sides.values()))) as advance:
            for name, refs in self.sides.items():
                keys = [key for key in sorted(refs) if only is None or key in only]
                cells = self.columns[name].setdefault(column, {})
                for first in range(0, len(keys), extract.BATCH):
                    part = keys[first : first + extract.BATCH]
                    cells.update(function(part, [_clip(refs[key]) for key in part]))
                    advance(len(part))


def _clip(audio: AudioRef) -> Clip:
    """A decoded clip, the mean of its channels."""
    samples, rate = audio.samples()
    return Clip(samples.mean(axis=1), rate)


def _from_column(row: Metric) -> Metric:
    """A metric of audio as one that reads the column of its values; others as they are."""
    return replace(row, value=read_number, needs=f"audio {row.name}") if row.feature == "audio" else row
