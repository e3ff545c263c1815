"""The evaluator of `milonga run`, `milonga evaluate` and `milonga.evaluate`: features once, then every metric by split.

A run is evaluated with the features that it stores; of other audio they are extracted with the weights that are named.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from milonga.core.cache import feature_cache
from milonga.core.errors import DataError, RecipeError
from milonga.core.hub import offline
from milonga.core.progress import tracked
from milonga.evaluation import EvalConfig
from milonga.evaluation import features as extract
from milonga.evaluation.against import agreement, place_ratings
from milonga.evaluation.compute import EvalPlan, Numbers
from milonga.evaluation.features import SystemFeatures, load_features
from milonga.evaluation.formatting import OVERALL, Evaluation
from milonga.evaluation.inputs import REFERENCE, AudioRef, EvalInputs, label_agreement, load_inputs
from milonga.evaluation.metrics import Metric, all_metrics, get_metric, read_number, register, scorer_metric
from milonga.scorers.packaged import PASST
from milonga.scorers.waveform import of_protocol

VERSIONS = ("milonga", "torch", "numpy", "scipy", "soxr", "soundfile")
NANO = {"scorers": ("nano-judge",), "tagger": "nano-tagger"}
NEEDS = {
    "clap": "a CLAP (--clap) and captions (--captions)",
    "clap embedding": "a CLAP that is named (--clap)",
    "events": "a tagger (--tagger)",
    "embedding": "PANNs (--panns) or a tagger (--tagger)",
    "logits": "PANNs (--panns) or a tagger (--tagger)",
    "vggish": "VGGish (--vggish)",
} | dict.fromkeys(extract.RECONSTRUCTION, "--reconstruction")


def evaluate(sources: Sequence[str], reference: Path | None, captions: Path | None, config: EvalConfig) -> Evaluation:
    """Computes every metric that the inputs (`load_inputs`) and the weights of `config` allow.

    Raises a MilongaError in one line for inputs or options that cannot be used.
    """
    with offline(not config.fetch):
        given = load_inputs(sources, reference, captions)
        inputs = on_shared_clips(given, config.force)
        config = with_weights(config, inputs)
        splits = inputs.splits(config.splits, config.labels)
        ratings = place_ratings(Path(config.against), config.scales, inputs) if config.against else None
        features = Features(inputs, config)
        cache = feature_cache() if config.cache else None
        with tracked("features", sum(map(len, features.sides.values()))) as advance:
            for name, clips in features.sides.items() if features.extractors else ():
                features.add(name, extract.extract_columns(clips, features.extractors, cache, advance, config.seconds))
    systems = [features.systems[name] for name in inputs.systems]
    real = features.systems.get(REFERENCE)
    recipe = inputs.manifest.get("recipe", {})
    resamples = config.resamples or recipe.get("evaluate", {}).get("resamples", 1000)
    seed = recipe.get("seed", 0) if config.seed is None else config.seed
    plan = EvalPlan(splits, real, inputs.prompts, inputs.paired, resamples, seed)
    numbers = Numbers(systems, features.metrics, plan, features.stamp)
    with tracked("metrics", numbers.count) as advance:
        summaries, comparisons = numbers.summaries(advance), numbers.comparisons(advance)
    if not summaries:
        titles = ", ".join(metric.name for metric in features.metrics)
        raise DataError(f"no clip has a value of {titles}: give clips, captions or a reference that they apply to")
    agreements, notes = [], []
    if ratings is not None:
        sets = {metric.name for metric in features.metrics if metric.kind == "set"}
        fixed = {(s.system, s.metric): s.value for s in summaries if s.split == OVERALL and s.metric in sets}
        with tracked("agreement", len(ratings.scales)) as advance:
            agreements, notes = agreement(ratings, numbers, fixed, advance)
    warnings = [
        *left_out(given, inputs),
        *features.cut(),
        *(scorer.spent_text() for scorer in features.scorers if hasattr(scorer, "spent_text")),
        *label_agreement(splits),
        *numbers.warnings(),
        *dict.fromkeys(numbers.failures),
    ]
    return Evaluation(
        inputs, list(features.systems.values()), summaries, comparisons, warnings, splits, features.sources,
        agreements, notes,
    )  # fmt: skip


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
    metrics = _named_metrics(config)
    features = {row.feature for row in metrics or all_metrics()}
    if config.weights == "published":
        if features & {"clap", "clap embedding"} and inputs.prompts and not config.scorers:
            clap = extract.weights_file(extract.PUBLISHED["clap"], config.fetch)
            config = replace(config, scorers=(f"laion-clap:{clap}",))
        if features & {"embedding", "logits"}:
            config = replace(config, panns=config.panns or extract.PUBLISHED["panns"])
        if "vggish" in features:
            config = replace(config, vggish=config.vggish or extract.PUBLISHED["vggish"])
    elif config.weights == "nano":
        scorers = config.scorers or (NANO["scorers"] if inputs.prompts else ())
        config = replace(config, scorers=scorers, tagger=config.tagger or NANO["tagger"])
    elif config.weights is not None:
        raise RecipeError(f"no weights {config.weights!r}: there are published (LAION-CLAP, PANNs, VGGish) and nano")
    named = config.panns or config.vggish or config.scorers or config.tagger or config.reconstruction
    if not (named or inputs.run or (metrics and features <= {"audio", "silent", "clipped"})):
        raise RecipeError(
            "no weights are named: --weights published takes LAION-CLAP, PANNs and VGGish (--fetch downloads them), "
            "--weights nano takes nano's (--clap nano-judge --tagger nano-tagger), which know 26 classes of sound only"
        )
    if config.seconds < 1:
        raise RecipeError(f"seconds must be at least 1, not {config.seconds:g}: networks need that much of a clip")
    if config.scorers and not inputs.prompts:
        raise RecipeError("a scorer needs captions: give --captions CSV with the columns clip and caption")
    if config.reconstruction and not inputs.paired:
        raise RecipeError("--reconstruction compares clips with their originals: give a reference of the same names")
    if config.protocol != EvalConfig.protocol and not (config.panns or config.vggish or config.reconstruction):
        raise RecipeError(
            f"--protocol {config.protocol} is how PANNs, VGGish and --reconstruction load files: name one of them"
        )
    return config


class Features:
    """The features of all systems and the real clips by column, how each column was made, and the names of its source.

    A run's stored features come first; weights that are named beside it add columns or replace them. `extractors` are
    those that still have to run over the clips of `sides`; their columns are given to `add`.
    """

    def __init__(self, inputs: EvalInputs, config: EvalConfig) -> None:
        self.inputs, self.config = inputs, config
        self.sides = inputs.systems | ({REFERENCE: inputs.reference} if inputs.reference else {})
        self.columns: dict[str, dict[str, dict[str, Any]]] = {name: {} for name in self.sides}
        self.stamps: dict[str, str] = {}
        self.sources: dict[str, str] = {}
        names, tagger = self._stored()
        self.scorers = scorers = [extract.scorer_of(given, config.device) for given in names]
        self.extractors = self._extractors(scorers, tagger)
        self.stamps |= {column: one.description for one in self.extractors for column in one.columns}
        self.classes = extract.scorers.tagger(tagger, config.device).classes if tagger else ()
        self.claps = self._name_stamps(scorers)
        self.metrics = self._allowed_metrics()
        self.limit = f"at most {config.seconds:g} s of a clip" if self.extractors else ""

    def add(self, name: str, columns: dict[str, dict[str, Any]]) -> None:
        """Adds the extracted columns of a system: events get their names, CLAPs' rows become scores with captions."""
        if "event places" in columns:
            places = columns.pop("event places")
            columns["events"] = {key: extract.named_events(rows, self.classes) for key, rows in places.items()}
        for column, scorer in self.claps.items():
            rows = columns.pop(f"rows {scorer.name}")
            columns[column] = self._cosines(scorer, rows)
            if column == "clap":
                columns["clap embedding"] = rows
        for column in extract.RECONSTRUCTION if name == REFERENCE else ():  # originals with themselves: meaningless
            columns.pop(column, None)
        self.columns[name] |= columns

    def cut(self) -> list[str]:
        """A warning with the number of clips of each side that are longer than what is measured of them."""
        counts = {name: int(sum(columns.get("cut", {}).values())) for name, columns in self.columns.items()}
        parts = [f"{count} of {name}" for name, count in counts.items() if count]
        text = f"only the first {self.config.seconds:g} s are measured (--seconds) of"
        return [f"{text} {', '.join(parts)}"] if parts else []

    @property
    def systems(self) -> dict[str, SystemFeatures]:
        """Features by system; the real clips are called `reference`."""
        return {name: SystemFeatures(name, columns) for name, columns in self.columns.items()}

    def stamp(self, metric: Metric) -> str:
        """The protocol of a metric's feature and of the metric itself."""
        recipe, sampling = self.inputs.manifest.get("recipe"), ""
        if recipe:
            steps, guidance, noises = (recipe["evaluate"].get(key, 1) for key in ("steps", "guidance", "noises"))
            clips = "one clip a prompt" if noises == 1 else f"{noises} clips a prompt and their mean"
            sampling = f"steps {steps}, guidance {guidance:g}, seed {recipe['seed']}, {clips}"
            precision = recipe["models"].get("precision", "fp32")
            sampling += "" if precision == "fp32" else f", sampled in {precision}"
        versions = ", ".join(f"{name} {version(name)}" for name in VERSIONS)
        parts = (
            self.stamps[metric.feature],
            metric.stamp,
            sampling,
            f"protocol {self.config.protocol}",
            self.limit,
            versions,
        )
        return "; ".join(part for part in parts if part)

    def _allowed_metrics(self) -> list[Metric]:
        """The metrics that were named, or all that the features allow.

        Raises RecipeError for a metric that is unknown or whose feature is missing.
        """
        rows = [  # a metric of audio reads the column of its values
            replace(row, value=read_number, needs=f"audio {row.name}") if row.feature == "audio" else row
            for row in _named_metrics(self.config) or all_metrics()
        ]
        if self.config.metrics:
            for row in rows:
                if row.feature not in self.stamps:
                    raise RecipeError(f"{row.name} needs {NEEDS.get(row.feature, f'the feature {row.feature!r}')}")
            return rows
        rows = [row for row in rows if row.feature in self.stamps]
        rows = [row for row in rows if row.default or (row.name == "kl_sigmoid" and self.config.sigmoid)]
        others = [
            scorer_metric(column)
            for column in self.stamps
            if column.startswith(("clap ", "score ")) and column != "clap embedding"
        ]
        place = next((number + 1 for number, row in enumerate(rows) if row.name == "clap"), 0)
        return rows[:place] + others + rows[place:]

    def _stored(self) -> tuple[list[Any], str | None]:
        """Takes a run's stored features, where it has them; gives the scorers and the tagger that are left to run."""
        run, config = self.inputs.run, self.config
        if run is None:
            return list(config.scorers), config.tagger
        names, hashes = (self.inputs.manifest[table]["models"] for table in ("recipe", "fingerprints"))
        judge, tagger = names["judge"], names["tagger"]
        is_class = ":" in judge and not judge.startswith("laion-clap:")
        self.sources = {"clap_title": f"Judge {judge}" if is_class else "Judge CLAP", "clap": judge}
        others = [given for given in config.scorers if given != judge]
        if not all((run.path / "features" / name).is_dir() for name in self.sides):
            return [judge, *others], config.tagger or tagger
        for name in self.sides:
            self.columns[name] = {column: dict(cells) for column, cells in load_features(run, name).columns.items()}
        by_tagger = f"{tagger}@{hashes['tagger'][:8]} at 16 kHz mono"
        self.stamps = {"clap": f"judge {judge}@{hashes['judge'][:8]}"}
        self.stamps |= dict.fromkeys(("events", "embedding", "logits"), by_tagger)
        self.stamps |= dict.fromkeys(("silent", "clipped"), extract.FILE_DESCRIPTION)
        self.sources |= {"tagger": tagger, "classifier": f"{tagger}’s"}
        return others, config.tagger if config.tagger != tagger else None

    def _extractors(self, scorers: Sequence[Any], tagger: str | None) -> list[extract.Extractor]:
        """The extractors of all weights that are named and of the metrics of audio."""
        config, inputs, loading = self.config, self.inputs, of_protocol(self.config.protocol)
        extractors = [] if "silent" in self.stamps else [extract.file_extractor(config.seconds)]
        if config.panns:
            extractors.append(extract.classifier_extractor(config.panns, loading, config.fetch, config.device))
            self.sources["classifier"] = "PaSST" if config.panns == PASST else "PANNs"
        if config.vggish:
            extractors.append(extract.vggish_extractor(config.vggish, loading, config.fetch, config.device))
        if tagger:
            extractors.append(extract.tagger_extractor(tagger, not config.panns, config.device))
            self.sources["tagger"] = tagger
            if not config.panns:
                self.sources["classifier"] = f"{tagger}’s"
        for scorer in scorers:
            of_text = not extract.is_clap(scorer)
            one = extract.text_scorer_extractor(scorer, inputs.prompts) if of_text else extract.clap_extractor(scorer)
            extractors.append(one)
        if config.reconstruction:
            extractors.append(extract.reconstruction_extractor(inputs.reference, loading, config.seconds))
        for row in _named_metrics(config) or all_metrics():
            if row.feature == "audio" and (row.default or config.metrics):
                of_audio = extract.audio_metric_extractor(row, inputs.prompts, inputs.reference, config.seconds)
                extractors.append(of_audio)
        return extractors

    def _name_stamps(self, scorers: Sequence[Any]) -> dict[str, Any]:
        """Renames extracted columns to those that metrics read; gives each CLAP by its column, the first by `clap`."""
        claps: dict[str, Any] = {}
        if "event places" in self.stamps:
            self.stamps["events"] = self.stamps.pop("event places")
        for scorer in scorers:
            if f"rows {scorer.name}" in self.stamps:
                column = f"clap {scorer.name}" if "clap" in self.stamps else "clap"
                claps[column], self.stamps[column] = scorer, self.stamps.pop(f"rows {scorer.name}")
        if "clap" in claps:
            self.sources.setdefault("clap", claps["clap"].name)
            self.stamps["clap embedding"] = self.stamps["clap"]
        return claps

    def _cosines(self, scorer: Any, rows: Mapping[str, np.ndarray]) -> dict[str, float]:
        """The cosine of a CLAP's row of each clip with its caption's."""
        keys = [key for key in rows if key in self.inputs.prompts]
        if not keys:
            return {}
        texts = scorer.embed_texts([self.inputs.prompts[key].text for key in keys])
        cosines = (np.stack([rows[key] for key in keys]) * texts).sum(axis=1)
        return dict(zip(keys, cosines.tolist(), strict=True))


def _named_metrics(config: EvalConfig) -> list[Metric]:
    """The metrics that are named. One that comes as an object is registered, but computed only where it is named."""
    return [
        register(replace(one, default=False)) if isinstance(one, Metric) else get_metric(one) for one in config.metrics
    ]
