"""`milonga listen fit`: a scorer learnt from people's ratings and choices, measured on people and captions held out.

Ratings of single clips are z-scored per rater; raters who contradict the others are left out. A linear head on frozen
features is fitted (`maths.preference_head`), its decay chosen by cross-validation over captions. Pairs, such as those
of a studio, a listening test or a corrected run, count as choices.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from milonga.core.errors import DataError, RecipeError
from milonga.core.ids import content_id, derive_seed
from milonga.core.progress import tracked
from milonga.core.records import Clip
from milonga.core.store import atomic_dir
from milonga.data.pairs import read_pairs
from milonga.data.ratings import PREFERENCE
from milonga.evaluation.against import place_ratings
from milonga.evaluation.features import mono_clip
from milonga.evaluation.formatting import format_p
from milonga.evaluation.inputs import REFERENCE, load_inputs
from milonga.maths.agreement import LEAST_CLIPS, Opinions, clip_agreement, correlations, ordered_alike
from milonga.maths.preference_head import Choices, LinearHead, fit_head, z_scores
from milonga.maths.statistics import Interval
from milonga.scorers.fitted import cosine_features, feature_rows, save_fitted
from milonga.scorers.load import fingerprint, scorer

LEAST_JUDGEMENTS, LEAST_CAPTIONS = 100, 30  # rated clips and choices; below, a head is noise
LEAST_SHARED = 6  # clips that a rater shares with others before being screened
LEAST_RATERS = 8  # below which no rater is held out
HELD_OUT = 0.25  # of captions and of raters
FOLDS = 4
DECAYS = (0.03, 0.3, 3.0, 30.0, 300.0, 3000.0, 30000.0)  # the last leave little but a mix of the cosines
BATCH = 16


@dataclass
class Judgements:
    """People's judgements of C clips: embeddings of clips and of their captions by embedder, ratings, choices.

    `ratings` are rows (clip, rater, number), `choices` rows (first, second, rater, points).
    """

    captions: list[str] = field(default_factory=list)
    audio: list[np.ndarray] = field(default_factory=list)
    words: list[np.ndarray] = field(default_factory=list)
    ratings: list[tuple[int, str, float]] = field(default_factory=list)
    choices: list[tuple[int, int, str, float]] = field(default_factory=list)


@dataclass(frozen=True)
class FitReport:
    """What a fit learnt from and how well it predicts people and captions held out, beside each embedder's cosine.

    `held_out` maps `fitted` and every embedder to its SRCC with held-out ratings, or where there are choices alone to
    the share of pairs it orders as people did; `behind` are p (Holm) of agreeing as well as the best of them.
    """

    clips: int
    captions: int
    raters: int
    choices: int
    screened: tuple[str, ...]
    statistic: str
    held_out: dict[str, Interval]
    behind: dict[str, float]
    decay: float
    held_raters: bool

    def __str__(self) -> str:
        lines = [
            f"fitted on {self.clips} clips of {self.captions} captions, {self.raters} raters, {self.choices} choices"
        ]
        if self.screened:
            lines.append(f"left out, as they contradict the others: {', '.join(self.screened)}")
        title = "SRCC" if self.statistic == "srcc" else "pairs"
        out = "captions and raters" if self.held_raters else "captions"
        lines.append(f"{title} with {out} held out, 95 % intervals")
        for name, one in self.held_out.items():
            p = self.behind.get(name, np.nan)
            note = "" if np.isnan(p) else f"  p {format_p(p)} of agreeing as well as the best"
            lines.append(f"  {name:<32} {one.value:.3f} [{one.low:.3f}, {one.high:.3f}] (n {one.n}){note}")
        best = max((one.value for name, one in self.held_out.items() if name != "fitted"), default=-1.0)
        if not self.held_out["fitted"].value > best:
            lines.append("it is no better than an embedder alone: collect more ratings before using it")
        return "\n".join(lines)


def fit(
    sources: Sequence[str], out: Path, features: Sequence[str], ratings: Path | None = None,
    captions: Path | None = None, scale: str | None = None, pairs: Sequence[Any] = (), seed: int = 0,
) -> FitReport:  # fmt: skip
    """Fits a scorer and writes it to the folder `out`; `fit:OUT` is its name.

    `sources` and `captions` are clips as `milonga evaluate` takes them, `ratings` a table of ratings of them
    (`data.ratings`), of which `scale` counts (else `rel`, or the first) and every comparison. `pairs` are run folders,
    studio exports or data sets of pairs. `features` name embedders. Raises DataError, with the numbers, where there are
    too few judgements, RecipeError for a feature that is no embedder or where nothing was given to learn from, and
    StoreError, before anything is computed, where `out` cannot be written.
    """
    if out.exists():
        raise RecipeError(f"{out} exists already: name a new folder")
    if not (ratings or pairs):
        raise RecipeError("nothing to learn from: give --ratings TABLE with clips, or --pairs RUN")
    with atomic_dir(out, replace=False) as part:  # first of all: nothing is computed for a folder that cannot be
        embedders = [scorer(name) for name in features]
        for name, one in zip(features, embedders, strict=True):
            if not hasattr(one, "embed_clips"):
                raise RecipeError(f"{name} embeds no clips: give CLAPs as features")
        judgements = Judgements(audio=[np.empty((0, 0))] * len(embedders), words=[np.empty((0, 0))] * len(embedders))
        if ratings:
            _add_ratings(judgements, embedders, sources, ratings, captions, scale)
        for source in pairs:
            _add_pairs(judgements, embedders, source)
        head, report = learn(judgements, features, seed)
        facts = {"embedders": {name: fingerprint(name) for name in features}, "seed": seed, "decay": report.decay,
                 "clips": report.clips, "captions": report.captions, "raters": report.raters, "choices": report.choices,
                 report.statistic: {name: vars(one) for name, one in report.held_out.items()}}  # fmt: skip
        save_fitted(part, head, facts)
    return report


def _add_ratings(
    judgements: Judgements, embedders: Sequence[Any], sources: Sequence[str], ratings: Path, captions: Path | None,
    scale: str | None,
) -> None:  # fmt: skip
    inputs = load_inputs(sources, None, captions)
    if not inputs.prompts:
        raise RecipeError("a scorer learns from captions too: give --captions CSV with the columns clip and caption")
    placed = place_ratings(ratings, [scale] if scale else (), inputs)
    scales = [name for name in placed.scales if name != PREFERENCE]
    chosen = next((name for name in scales if name in (scale, "rel")), scales[0] if scales else None)
    used = [(opinion, sides) for opinion, sides in placed.placed if opinion.scale in (chosen, PREFERENCE)]
    clips = sorted({side for _, sides in used for side in sides})
    audio = inputs.systems | {REFERENCE: inputs.reference}
    place = {clip: len(judgements.captions) + number for number, clip in enumerate(clips)}
    decoded = (mono_clip(audio[system][key].samples()) for system, key in clips)
    _embed(judgements, embedders, decoded, [placed.captions[clip] for clip in clips])
    for opinion, sides in used:
        if opinion.other:
            judgements.choices.append((place[sides[0]], place[sides[1]], opinion.rater, opinion.value))
        else:
            judgements.ratings.append((place[sides[0]], opinion.rater, opinion.value))


def _add_pairs(judgements: Judgements, embedders: Sequence[Any], source: Any) -> None:
    """Pairs as choices for the winner; people's carry their share of votes as `human_preference`."""
    rows, first = read_pairs(source), len(judgements.captions)
    pairs = [row.pair for row in rows]
    _embed(judgements, embedders, (clip for row in rows for clip in (row.chosen, row.rejected)),
           [pair.prompt for pair in pairs for _ in range(2)])  # fmt: skip
    for number, pair in enumerate(pairs):
        share = pair.chosen_scores.get("human_preference", 1.0)
        share = max(share, 1 - share)  # a correction that swapped the two is the last word
        judgements.choices.append((first + 2 * number, first + 2 * number + 1, "", share))


def _embed(judgements: Judgements, embedders: Sequence[Any], clips: Any, texts: Sequence[str]) -> None:
    """Adds the embeddings of clips and of their captions, a batch at a time."""
    parts: list[list[np.ndarray]] = [[] for _ in embedders]
    batch: list[Clip] = []
    with tracked("embeddings", len(texts)) as advance:
        for number, clip in enumerate(clips, start=1):
            batch.append(clip)
            if len(batch) == BATCH or number == len(texts):
                for place, one in enumerate(embedders):
                    parts[place].append(one.embed_clips(batch))
                advance(len(batch))
                batch = []
    unique = list(dict.fromkeys(texts))
    places = [unique.index(text) for text in texts]
    for place, one in enumerate(embedders):
        for side, rows in (
            (judgements.audio, np.concatenate(parts[place])),
            (judgements.words, one.embed_texts(unique)[places]),
        ):
            side[place] = np.concatenate([side[place], rows]) if side[place].size else rows
    judgements.captions += texts


def learn(judgements: Judgements, names: Sequence[str], seed: int) -> tuple[LinearHead, FitReport]:
    """The head of all judgements, and the report of one that did not know the captions and raters held out.

    Raises DataError below LEAST_JUDGEMENTS rated clips and choices, or LEAST_CAPTIONS captions.
    """
    used = {clip for clip, *_ in judgements.ratings} | {clip for a, b, *_ in judgements.choices for clip in (a, b)}
    texts = sorted({judgements.captions[clip] for clip in used})
    judged = len({clip for clip, *_ in judgements.ratings}) + len(judgements.choices)
    if judged < LEAST_JUDGEMENTS or len(texts) < LEAST_CAPTIONS:
        raise DataError(
            f"too few judgements: {judged} rated clips and choices of {len(texts)} captions; a scorer needs "
            f"{LEAST_JUDGEMENTS} of {LEAST_CAPTIONS} captions"
        )
    screened = _contradicting(judgements)
    ratings = [row for row in judgements.ratings if row[1] not in screened]
    choices = [row for row in judgements.choices if not row[2] or row[2] not in screened]
    rows, trusted = feature_rows(judgements.audio, judgements.words), cosine_features(judgements.words)
    raters = sorted({row[1] for row in ratings} - {""})
    held_captions = set(
        sorted(texts, key=lambda text: content_id(seed, "held out", text))[: round(HELD_OUT * len(texts))]
    )
    held_raters = set(
        sorted(raters, key=lambda name: content_id(seed, "held out", name))[: round(HELD_OUT * len(raters))]
    )
    held_raters = held_raters if len(raters) >= LEAST_RATERS else set()

    def part(captions_out: set[str], raters_out: set[str], held: bool) -> tuple[list, list]:
        """The ratings and choices on held-out captions by held-out raters, or on the others by the others."""

        def belongs(clip: int, rater: str) -> bool:
            in_text = (judgements.captions[clip] in captions_out) == held
            return in_text and (not raters_out or (rater in raters_out) == held)

        own = [row for row in choices if (judgements.captions[row[0]] in captions_out) == held]
        return [row for row in ratings if belongs(row[0], row[1])], own

    known, unknown = part(held_captions, held_raters, held=False), part(held_captions, held_raters, held=True)
    if len(unknown[1]) <= len({row[0] for row in unknown[0]}) < LEAST_CLIPS:
        held_raters = set()
        known, unknown = part(held_captions, held_raters, held=False), part(held_captions, held_raters, held=True)
    decay = _choose_decay(judgements, rows, trusted, known, [text for text in texts if text not in held_captions], seed)
    trial = _fit_rows(rows, trusted, *known, decay, seed)
    scores = np.stack(
        [trial.predict(rows), *((a * t).sum(axis=1) for a, t in zip(judgements.audio, judgements.words, strict=True))]
    )
    statistic = "srcc" if len({row[0] for row in unknown[0]}) >= len(unknown[1]) else "pairs"
    opinions, clips = _opinions(judgements, unknown, statistic)
    agreement = clip_agreement(scores[:, clips], opinions, derive_seed(seed, "fit"), 200)
    labels = ["fitted", *names]
    report = FitReport(
        len(used), len(texts), len(raters), len(choices), tuple(sorted(screened)), statistic,
        {name: row[statistic] for name, row in zip(labels, agreement.rows, strict=True)},
        dict(zip(labels, agreement.behind.tolist(), strict=True)), decay,
        bool(held_raters) and statistic == "srcc",
    )  # fmt: skip
    return _fit_rows(rows, trusted, ratings, choices, decay, seed), report


def _contradicting(judgements: Judgements) -> set[str]:
    """Raters whose ratings do not rise with the mean of the others' over at least LEAST_SHARED clips."""
    by_clip: dict[int, list[tuple[str, float]]] = {}
    for clip, rater, value in judgements.ratings:
        by_clip.setdefault(clip, []).append((rater, value))
    couples: dict[str, list[tuple[float, float]]] = {}
    for rows in by_clip.values():
        for rater, value in rows:
            others = [other for name, other in rows if name != rater]
            if rater and others:
                couples.setdefault(rater, []).append((value, float(np.mean(others))))
    return {
        rater for rater, rows in couples.items()
        if len(rows) >= LEAST_SHARED and not correlations(*np.array(rows).T)[2] > 0
    }  # fmt: skip


def _fit_rows(
    rows: np.ndarray, trusted: np.ndarray, ratings: Sequence, choices: Sequence, decay: float, seed: int
) -> LinearHead:
    """A head of the clips that these ratings and choices are of, each clip weighted by its number of ratings."""
    means, counts = np.full(len(rows), np.nan), np.zeros(len(rows))
    if ratings:
        clip, rater, value = (np.array(column) for column in zip(*ratings, strict=True))
        counts = np.bincount(clip, minlength=len(rows)).astype(float)
        sums = np.bincount(clip, z_scores(value, rater), len(rows))
        means = np.divide(sums, counts, out=means, where=counts > 0)
    clips = np.array(sorted(set(np.flatnonzero(counts)) | {clip for a, b, *_ in choices for clip in (a, b)}))
    place = {clip: number for number, clip in enumerate(clips.tolist())}
    first, second = (np.array([place[row[k]] for row in choices], dtype=np.int64) for k in range(2))
    points = np.array([row[3] for row in choices], dtype=np.float64)
    return fit_head(rows[clips], means[clips], counts[clips], Choices(first, second, points), decay, seed, trusted)


def _choose_decay(
    judgements: Judgements, rows: np.ndarray, trusted: np.ndarray, known: tuple, texts: Sequence[str], seed: int
) -> float:
    """The decay that predicts best in cross-validation over captions, the strongest of equals."""
    fold = {text: number % FOLDS for number, text in enumerate(sorted(texts, key=lambda one: content_id(seed, one)))}
    quality = dict.fromkeys(DECAYS, 0.0)
    for out in range(FOLDS):
        inside, outside = (
            tuple([row for row in part if (fold[judgements.captions[row[0]]] == out) == held] for part in known)
            for held in (False, True)
        )
        for decay in DECAYS if any(inside) and any(outside) else ():
            answers = _fit_rows(rows, trusted, inside[0], inside[1], decay, seed).predict(rows)
            if outside[0]:
                means: dict[int, list[float]] = {}
                for clip, _, value in outside[0]:
                    means.setdefault(clip, []).append(value)
                own = correlations(answers[list(means)], np.array([np.mean(values) for values in means.values()]))
                quality[decay] += float(np.nan_to_num(own[0]))
            if outside[1]:
                a, b, points = (np.array([row[k] for row in outside[1]]) for k in (0, 1, 3))
                quality[decay] += float(np.nan_to_num(ordered_alike(answers[a] - answers[b], points - 0.5)))
    return max(DECAYS, key=lambda decay: (quality[decay], decay))


def _opinions(judgements: Judgements, unknown: tuple, statistic: str) -> tuple[Opinions, np.ndarray]:
    """The held-out judgements as arrays, and the clips that they are of."""
    rows = unknown[0] if statistic == "srcc" else unknown[1]
    clips = np.array(
        sorted({clip for row in rows for clip in (row[:1] if statistic == "srcc" else row[:2])}), dtype=int
    )
    place = {clip: number for number, clip in enumerate(clips.tolist())}
    names = {name: number for number, name in enumerate(sorted({row[-2] for row in rows}))}
    texts = {text: number for number, text in enumerate(sorted({judgements.captions[clip] for clip in clips}))}
    caption = np.array([texts[judgements.captions[clip]] for clip in clips])
    values, rater = np.array([row[-1] for row in rows]), np.array([names[row[-2]] for row in rows])
    system = np.zeros(len(clips), dtype=int)
    if statistic == "srcc":
        return Opinions(values, np.array([place[row[0]] for row in rows]), rater, caption, system), clips
    first, second = (np.array([place[row[k]] for row in rows]) for k in range(2))
    return Opinions(values, np.arange(len(rows)), rater, caption, system, first, second), clips
