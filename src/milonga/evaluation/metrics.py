"""The metric registry: one row per metric, which the run, the command, the report, the leaderboard and the docs read.

A metric of a clip is a number for each clip, averaged; a metric of a set is one number for all clips of a system.
Adding one is one function and one row, here or, by `register`, in a file outside the package.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from milonga.core.errors import RecipeError
from milonga.core.records import Prompt
from milonga.maths import bootstrap, distances, metrics, statistics

CEILING = "ceiling"  # the row of what a perfect metric's agreement with people would be
MINUS = "−"
IS_SPLITS = 10
SMALLEST_SET = 20  # clips below which the spread of a set metric over draws says nothing
Caution = Callable[[int, int, int], str]  # clips, rows and dimensions of a system → what a reader must know, or ""


@dataclass(frozen=True)
class Rows:
    """Feature rows of N captions' clips: `values` (M, D), and `clip` (M,), the place in 0…N−1 of each row's caption.

    Where every caption has one clip they are the clips' places. `seed` is for metrics that draw parts of the set.
    """

    values: np.ndarray
    clip: np.ndarray
    seed: int = 0

    @classmethod
    def of(
        cls, features: Mapping[str, np.ndarray], keys: Sequence[str], seed: int = 0, owners: Sequence[str] = ()
    ) -> "Rows":
        """The rows of the clips named `keys`, each of shape (D,) or (rows, D); `owners` are the clips' captions."""
        parts = [np.atleast_2d(features[key]) for key in keys]
        captions = {caption: place for place, caption in enumerate(dict.fromkeys(owners or keys))}
        places = [captions[caption] for caption in owners or keys]
        return cls(np.concatenate(parts), np.repeat(places, [len(part) for part in parts]), seed)

    def counts(self, draws: np.ndarray) -> np.ndarray:
        """How often each row is in each draw of clips: (R, N) places → (R, M)."""
        return bootstrap.counts(draws, int(self.clip.max()) + 1)[:, self.clip]


def read_number(feature: Any, reference: Any, prompt: Prompt | None) -> float:
    """The value of a feature that is a number already."""
    return float(feature)


@dataclass(frozen=True)
class Metric:
    """One metric: how it is computed, shown and compared.

    - `needs`: the feature that it is computed from: `clap`, `events`, `embedding`, `logits`, `vggish`, a column of
      another extractor, or `audio`, the clip itself as `Clip` (mono float32).
    - `kind="clip"`: `value(feature, reference, prompt) -> float` of one clip, NaN where it does not apply. `reference`
      is the real clip's feature (None unless `reference=True`). The prompt's scene has at least `scene` groups.
      `binary` values are 0 or 1: their mean gets Wilson's interval.
    - `kind="set"`: `value(rows, reference) -> float` of `Rows`, of at least `least` clips; `draws(rows, reference,
      own, real) -> (R,)` is its value in each bootstrap draw, given the places of the clips drawn (R, N) and (R, N');
      without `draws`, each draw is computed by `value`. `most` bounds the draws; no interval begins below `floor`.
    - shown by `title`, `unit` ("%" for shares), `digits`, `higher` (is better) and `meaning`; both texts may name the
      feature's source, as in "{classifier}". `stamp` is its part of the protocol, `detail(rows)` what it adds to it.
    - `headline` metrics are in the table that `milonga run` prints; metrics that are not `default` need asking for.
    """

    name: str
    title: str
    value: Callable[..., float] = read_number
    needs: str = ""
    kind: Literal["clip", "set"] = "clip"
    meaning: str = ""
    higher: bool = True
    unit: str = ""
    digits: int = 3
    binary: bool = False
    scene: int = 0
    reference: bool = False
    draws: Callable[[Rows, Any, np.ndarray, np.ndarray], np.ndarray] | None = None
    least: int = 2
    floor: float = -math.inf
    most: int = 500
    stamp: str = ""
    detail: Callable[[Rows], str] | None = None
    caution: Caution | None = None
    headline: bool = False
    default: bool = True

    def __post_init__(self) -> None:
        if self.kind == "set" and self.needs == "audio":
            raise RecipeError(f"metric {self.name}: a metric of a set needs a feature, not the audio itself")

    @property
    def arrow(self) -> str:
        """The direction in which the metric improves."""
        return "↑" if self.higher else "↓"

    @property
    def feature(self) -> str:
        """The feature that it needs; its own name where it names none."""
        return self.needs or self.name

    def format_value(self, number: float) -> str:
        """A value for a table: shares in per cent, the rest with this metric's decimals; an en dash if undefined."""
        if not math.isfinite(number):
            return "–"
        text = f"{100 * number:z.1f} %" if self.unit == "%" else f"{number:z.{self.digits}f}"
        return text.replace("-", MINUS)

    def format_change(self, number: float) -> str:
        """A signed difference: percentage points for shares, else in the metric's own unit."""
        if not math.isfinite(number):
            return "–"
        text = f"{100 * number:+.1f} points" if self.unit == "%" else f"{number:+.{self.digits}f}"
        return text.replace("-", MINUS)

    def format_interval(self, low: float, high: float, signed: bool = False) -> str:
        """`[low, high]` in the metric's unit; empty where there is no interval."""
        if not (math.isfinite(low) and math.isfinite(high)):
            return ""
        scale, digits, sign = (
            100 if self.unit == "%" else 1,
            1 if self.unit == "%" else self.digits,
            "+" if signed else "z",
        )
        return f"[{scale * low:{sign}.{digits}f}, {scale * high:{sign}.{digits}f}]".replace("-", MINUS)


def _of_scene(rule: Callable[..., float | None]) -> Callable[..., float]:
    """A rule on a scene and the detected events as the value of a clip; None becomes NaN."""

    def value(events: Any, reference: Any, prompt: Prompt) -> float:
        number = rule(prompt.scene, events)
        return math.nan if number is None else float(number)

    return value


def _divergence(rule: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> Callable[..., float]:
    """A divergence of (reference logits, generated logits) as the value of one clip."""
    return lambda logits, reference, prompt: float(rule(reference[None], logits[None])[0])


def _inception_draws(rows: Rows, real: Any, own: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Of each caption drawn as many rows as the poorest caption has, so that all draws have one size."""
    sizes = np.bincount(rows.clip)
    starts = np.cumsum(sizes) - sizes
    places = np.argsort(rows.clip, kind="stable")[starts[:, None] + np.arange(sizes.min())]
    return bootstrap.inception_draws(rows.values, places[own].reshape(len(own), -1), IS_SPLITS)


def _inception_deviation(rows: Rows) -> str:
    return f"sd of the splits {metrics.inception_score(rows.values, IS_SPLITS)[1]:.6g}"


def _small_frechet(clips: int, rows: int, width: int) -> str:
    if rows >= 2 * width:
        return ""
    return (
        f"{rows} rows of {width} dimensions a system; a Fréchet distance falls as N grows, so compare it with others "
        f"at N {clips} only"
    )


def _small_infinity(clips: int, rows: int, width: int) -> str:
    if distances.SMALLEST_SHARE * rows >= width:
        return ""
    return (
        f"the parts that it is extrapolated from have fewer rows than {width} dimensions, so it falls too low; below 0 "
        "it means no more than near"
    )


def _small_inception(clips: int, rows: int, width: int) -> str:
    if clips >= 100 * IS_SPLITS:
        return ""
    return f"with {clips} clips in {IS_SPLITS} splits it cannot exceed {clips / IS_SPLITS:g}"


def _set(name: str, title: str, needs: str, meaning: str, **more: Any) -> Metric:
    """A metric of a set with two decimals; a distance to the real clips unless `more` says otherwise."""
    settings: dict[str, Any] = {"reference": True, "higher": False, "digits": 2} | more
    return Metric(name, title, needs=needs, kind="set", meaning=meaning, **settings)


_FRECHET: dict[str, Any] = {
    "value": lambda rows, real: metrics.frechet_distance(rows.values, real.values),
    "draws": lambda rows, real, own, others: bootstrap.frechet_draws(
        rows.values, real.values, rows.counts(own), real.counts(others)),
    "caution": _small_frechet, "floor": 0.0,
}  # fmt: skip
_KERNEL: dict[str, Any] = {
    "value": lambda rows, real: distances.KernelDistance(rows.values, real.values).value,
    "draws": lambda rows, real, own, others: distances.KernelDistance(rows.values, real.values).of_draws(
        rows.counts(own), real.counts(others)),
    "stamp": "Gaussian, median of the reference, ×100",
}  # fmt: skip
_INFINITY: dict[str, Any] = {
    "value": lambda rows, real: distances.frechet_infinity(rows.values, real.values, rows.clip, rows.seed),
    "draws": lambda rows, real, own, others: distances.frechet_infinity_draws(
        rows.values, real.values, own, real.counts(others), rows.clip),
    "caution": _small_infinity, "least": 10, "most": 100,
}  # fmt: skip
_VGGISH = "rows of 0.96 s, drawn by clip"
BUILT_IN = (
    Metric("exact_match", "Exact match", _of_scene(metrics.exact_match), "events", unit="%", binary=True, scene=1,
           meaning="clips with every event of the caption, in its order, and no other, by {tagger}", headline=True),
    Metric("extra_events", "Extra events", _of_scene(metrics.extra_events), "events", higher=False, scene=1,
           meaning="classes detected per clip that the caption does not name, by {tagger}", headline=True),
    Metric("order_accuracy", "Order accuracy", _of_scene(metrics.order_accuracy), "events", unit="%", binary=True,
           scene=2, meaning="clips with every event of the caption, in its order, by {tagger}", headline=True),
    Metric("order_accuracy_detected", "Order accuracy (detected)", _of_scene(metrics.order_accuracy_detected), "events",
           unit="%", binary=True, scene=2, headline=True,
           meaning="of the clips with every event of the caption, those in its order, by {tagger}"),
    Metric("full_recall", "Full recall", _of_scene(metrics.full_recall), "events", unit="%", binary=True, scene=1,
           meaning="clips in which every event of the caption is detected, by {tagger}", headline=True),
    Metric("event_recall", "Event recall", _of_scene(metrics.event_recall), "events", unit="%", scene=1,
           meaning="events of the caption that are detected, by {tagger}"),
    Metric("clap", "{clap_title}", needs="clap", meaning="cosine similarity of caption and clip, by {clap}",
           headline=True),
    _set("kad", "KAD", "embedding", "kernel distance to the real clips on {classifier} features: unbiased,"
         " may be negative", headline=True, **_KERNEL),
    _set("fd", "FD", "embedding", "Fréchet distance to the real clips on {classifier} features", headline=True,
         **_FRECHET),
    _set("kad_clap", "KAD (CLAP)", "clap embedding", "kernel distance to the real clips on the audio embeddings of"
         " {clap}", **_KERNEL),
    _set("fd_clap", "FD (CLAP)", "clap embedding", "Fréchet distance to the real clips on the audio embeddings of"
         " {clap}", **_FRECHET),
    _set("fd_inf", "FD∞", "embedding", "FD extrapolated to infinite N", **_INFINITY),
    _set("fad", "FAD", "vggish", "Fréchet distance to the real clips on VGGish rows, for parity with papers: of the"
         " distances it follows people least", stamp=_VGGISH, **_FRECHET),
    _set("fad_inf", "FAD∞", "vggish", "FAD extrapolated to infinite N", stamp=_VGGISH, **_INFINITY),
    Metric("kl", "KL", _divergence(metrics.kl_softmax), "logits", higher=False, reference=True,
           meaning="divergence of the class probabilities from the real clip's, by {classifier}",
           stamp="softmax, reference ‖ generated"),
    Metric("kl_sigmoid", "KL sigmoid", _divergence(metrics.kl_sigmoid), "logits", higher=False, digits=2,
           reference=True, meaning="the AudioLDM toolkit's sum over independent classes, by {classifier}",
           stamp="no divergence: (1−p) left out", default=False),
    _set("is", "IS", "logits", "inception score on {classifier} classes: each clip certain, the set diverse",
         reference=False, higher=True, least=IS_SPLITS, floor=1.0, caution=_small_inception,
         detail=_inception_deviation,
         value=lambda rows, real: metrics.inception_score(rows.values, IS_SPLITS)[0],
         draws=_inception_draws,
         stamp=f"mean of {IS_SPLITS} splits, order by RandomState(2020)"),
    Metric("psnr", "PSNR", digits=2, meaning="signal-to-noise ratio of mel images against the original clip, in dB"),
    Metric("ssim", "SSIM", meaning="structural similarity of mel images with the original clip's"),
    Metric("ssim_stft", "SSIM STFT", meaning="structural similarity of magnitudes with the original clip's"),
    Metric("lsd", "LSD", higher=False, meaning="log-spectral distance from the original clip"),
    Metric("silent", "Silent", unit="%", binary=True, higher=False, meaning="clips without sound"),
    Metric("clipped", "Clipped", unit="%", binary=True, higher=False,
           meaning="clips with samples cut off at full scale"),
)  # fmt: skip
_REGISTRY: dict[str, Metric] = {metric.name: metric for metric in BUILT_IN}
# How a text names the source of a feature where nothing more is known.
UNKNOWN_SOURCES = {"clap_title": "CLAP", "clap": "a CLAP", "tagger": "the tagger", "classifier": "the classifier’s"}


def register(metric: Metric) -> Metric:
    """Adds a metric to the registry, after those that are there; one of the same name is replaced."""
    _REGISTRY[metric.name] = metric
    return metric


def all_metrics() -> list[Metric]:
    """Every registered metric, in the order of the tables."""
    return list(_REGISTRY.values())


def get_metric(name: str) -> Metric:
    """A registered metric. Raises RecipeError naming the nearest one for an unknown name."""
    from difflib import get_close_matches

    if name not in _REGISTRY:
        near = get_close_matches(name, _REGISTRY, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(_REGISTRY)}"
        raise RecipeError(f"unknown metric {name!r}: {hint}")
    return _REGISTRY[name]


def metrics_named(names: Sequence[str], sources: Mapping[str, str] | None = None) -> list[Metric]:
    """The metrics of a table's rows: registered ones first in their order, others after by name.

    `clap NAME` and `score NAME` are of further scorers. `sources` say what the features of this table come from
    (`clap_title`, `clap`, `tagger`, `classifier`): titles and meanings name it.
    """
    texts = {**UNKNOWN_SOURCES, **(sources or {})}
    rows = [metric for metric in _REGISTRY.values() if metric.name in names]
    rows += [scorer_metric(name) for name in sorted(set(names) - set(_REGISTRY))]
    return [
        replace(row, title=row.title.format_map(texts), meaning=row.meaning.format_map(texts)) if "{" in row.title
        + row.meaning else row
        for row in rows
    ]  # fmt: skip


def scorer_metric(column: str) -> Metric:
    """The metric of a further scorer's numbers, `clap NAME` or `score NAME`; also of a name that is not registered."""
    kind, _, name = column.partition(" ")
    if kind == "clap" and name:
        return Metric(column, f"CLAP {name}", meaning=f"cosine similarity of caption and clip, by {name}")
    if kind == "score" and name:
        return Metric(column, name, meaning=f"how well the clip fits its caption, by {name}")
    return Metric(column, column.replace("_", " "))


def clip_values(
    metric: Metric,
    features: Mapping[str, Any],
    prompts: Mapping[str, Prompt],
    keys: Sequence[str],
    reference: Mapping[str, Any] | None = None,
) -> np.ndarray:
    """A clip metric for each key, shape (N,), from its feature by key; NaN where it does not apply or is missing."""
    values = np.full(len(keys), np.nan)
    for place, key in enumerate(keys):
        prompt = prompts.get(key)
        groups = len(prompt.scene or ()) if prompt else 0
        if key in features and groups >= metric.scene and (not metric.reference or key in (reference or {})):
            real = reference[key] if metric.reference and reference else None
            values[place] = metric.value(features[key], real, prompt)
    return values


def caption_of(key: str, prompts: Mapping[str, Prompt]) -> str:
    """The caption of the clip `key`, by its prompt's id; a clip without a prompt stands for itself."""
    return prompts[key].id if key in prompts else key


def caption_means(values: np.ndarray, keys: Sequence[str], prompts: Mapping[str, Prompt]) -> np.ndarray:
    """The mean for each caption of its clips' values (N,), NaN left out; captions in the order of their first clip."""
    parts: dict[str, list[float]] = {}
    for key, value in zip(keys, values.tolist(), strict=True):
        measured = parts.setdefault(caption_of(key, prompts), [])
        measured += [value] if math.isfinite(value) else []
    return np.array([math.fsum(part) / len(part) if part else math.nan for part in parts.values()])


def clip_interval(metric: Metric, values: np.ndarray, seed: int, resamples: int) -> statistics.Interval | None:
    """The mean of a clip metric over the measured captions with its 95 % interval; none for one, None for none."""
    measured = values[np.isfinite(values)]
    if len(measured) < 2:
        return statistics.Interval(float(measured[0]), np.nan, np.nan, 1) if len(measured) else None
    shares = metric.binary and np.isin(measured, (0.0, 1.0)).all()  # several clips a caption have graded means
    return statistics.proportion(measured) if shares else statistics.bootstrap(measured, seed, resamples)


def set_draws(metric: Metric, rows: Rows, real: Rows | None, own: np.ndarray, others: np.ndarray) -> np.ndarray:
    """A set metric in each draw of clips, (R, N) places of its own and (R, N') of the real ones → (R,)."""
    if metric.draws is not None:
        return metric.draws(rows, real, own, others)

    def drawn(side: Rows, places: np.ndarray) -> Rows:
        parts = [np.flatnonzero(side.clip == place) for place in places]
        clip = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
        return Rows(side.values[np.concatenate(parts)], clip, side.seed)

    pairs = zip(own, others, strict=True)
    return np.array([metric.value(drawn(rows, a), drawn(real, b) if real else None) for a, b in pairs])
