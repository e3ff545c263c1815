"""What is known of a policy's clips for the judge, and the signs that it learns its scorers and not the sound."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from milonga.core.audio import clips_of
from milonga.core.protocols import Embedder
from milonga.core.records import Prompt, Record, Round
from milonga.core.store import Run
from milonga.evaluation.features import load_features
from milonga.evaluation.metrics import caption_means, clip_values, get_metric
from milonga.experiment.registry import Context
from milonga.preference.build import needed
from milonga.preference.candidates import score_clips

QUIETEST = -100.0  # dB of full scale that stand for silence
# What is reported as a sign of hacking, against the base: a share of diversity lost, a share of all clips that became
# silent or clipped, and dB of loudness gained or lost.
LOST_DIVERSITY, BROKEN_CLIPS, LOUDNESS_DRIFT = 0.2, 0.02, 3.0


class JudgedClip(Record):
    """A clip for the judge: what the scorers that give the rewards say of it, its loudness (RMS, dB), and the judge's
    embedding of it (empty where the judge has none).
    """

    id: str
    prompt_id: str
    scores: dict[str, float]
    loudness: float
    embedding: tuple[float, ...]


def store_scores(context: Context, name: str, prompts: Sequence[Prompt]) -> None:
    """The rewarding scorers' scores, and the loudness, of the clips that the judge scores."""
    shards, known = context.run.stage(f"evaluate/{name}"), {prompt.id: prompt for prompt in prompts}
    features = needed(context.run, f"features/{name}")

    def work(shard: str) -> int:
        owners = features.read_table(shard, ["id", "prompt_id"])
        prompt_of = dict(zip(owners["id"].to_pylist(), owners["prompt_id"].to_pylist(), strict=True))
        clips = clips_of(shards.read_table(shard, ["id", "audio"]))
        scorers = [context.parts.scorer(scorer) for scorer in context.recipe.models.scorers]
        texts = [known[prompt_of[clip]].text for clip in clips]
        scores = score_clips(list(clips.values()), texts, scorers, context.recipe.score.batch_size)
        judge = context.parts.scorer(context.recipe.models.judge)
        places = [()] * len(clips)
        if isinstance(judge, Embedder):
            places = [tuple(map(float, row)) for row in judge.embed_clips(list(clips.values()))]
        rows = [
            JudgedClip(id=clip, prompt_id=prompt_of[clip], scores=row, loudness=loudness(own.waveform), embedding=place)
            for (clip, own), row, place in zip(clips.items(), scores, places, strict=True)
        ]
        context.run.stage(f"scores/{name}").write_records(shard, rows, JudgedClip)
        return len(rows)

    context.over_shards(f"scores/{name}", {shard: shards.rows(shard) for shard in shards.names()}, work)


class JudgedClips:
    """What is known of one policy's clips for the judge: features, scores and loudness."""

    def __init__(self, run: Run, system: str, prompts: Sequence[Prompt]) -> None:
        self.columns = load_features(run, system).columns
        self.rows = run.stage(f"scores/{system}").read_records(JudgedClip)
        known = {prompt.id: prompt for prompt in prompts}
        self.prompts = {key: known[key.partition(".")[0]] for key in sorted(self.columns["clap"])}
        self.order = [prompt.id for prompt in prompts]

    def by_caption(self, metric: str) -> np.ndarray:
        """A metric's mean over each caption's clips, in the order of the captions; NaN where it does not apply."""
        row, keys = get_metric(metric), list(self.prompts)
        means = caption_means(clip_values(row, self.columns[row.feature], self.prompts, keys), keys, self.prompts)
        by_id = dict(zip(dict.fromkeys(prompt.id for prompt in self.prompts.values()), means.tolist(), strict=True))
        return np.array([by_id.get(caption, math.nan) for caption in self.order])

    def means(self) -> dict[str, float]:
        """The means of a row: events where scenes are known, the signs of broken clips, diversity."""
        metrics = {
            "present": "full_recall", "order": "order_accuracy", "order_detected": "order_accuracy_detected",
            "exact": "exact_match", "extra": "extra_events", "silent": "silent", "clipped": "clipped",
        }  # fmt: skip
        values = {name: self.by_caption(metric) for name, metric in metrics.items()}
        numbers = {name: float(np.nanmean(own)) if np.isfinite(own).any() else math.nan for name, own in values.items()}
        return numbers | {
            "diversity": self._diversity(),
            "loudness": float(np.mean([row.loudness for row in self.rows])) if self.rows else math.nan,
        }

    def reward(self, base: "JudgedClips") -> float:
        """The gain by the rewarding scorers over the base, in standard deviations of the base's clips: their mean."""
        gains = []
        for scorer in self.rows[0].scores if self.rows else ():
            own, before = (np.array([row.scores[scorer] for row in side.rows]) for side in (self, base))
            gains.append((np.nanmean(own) - np.nanmean(before)) / max(float(np.nanstd(before)), 1e-12))
        return float(np.mean(gains)) if gains else math.nan

    def _diversity(self) -> float:
        """1 − cosine of the judge's embeddings of two clips of one caption: the mean; NaN for one clip a caption."""
        clips: dict[str, list[tuple[float, ...]]] = {}
        for row in self.rows:
            clips.setdefault(row.prompt_id, []).append(row.embedding)
        several = [np.array(rows) for rows in clips.values() if len(rows) > 1 and rows[0]]
        apart = [1 - (rows @ rows.T)[np.triu_indices(len(rows), 1)].mean() for rows in several]
        return float(np.mean(apart)) if apart else math.nan


def hacking(numbers: dict[str, Any], base: Round, judge_fell: bool) -> str:
    """What a row says of reward hacking against the base, in one line; empty where there is no sign of it."""
    signs = []
    if judge_fell and numbers["reward"] > 0:
        signs.append(f"the scorers' reward rose by {numbers['reward']:.2f} deviations while the judge fell")
    if numbers["reward"] > 0 and numbers["diversity"] < (1 - LOST_DIVERSITY) * base.diversity:
        signs.append(f"clips of one caption differ less: diversity {base.diversity:.3f} → {numbers['diversity']:.3f}")
    for kind in ("silent", "clipped"):
        if numbers[kind] > getattr(base, kind) + BROKEN_CLIPS:
            signs.append(f"{kind} clips: {getattr(base, kind):.1%} → {numbers[kind]:.1%}")
    if abs(numbers["loudness"] - base.loudness) > LOUDNESS_DRIFT:
        signs.append(f"loudness: {base.loudness:.1f} → {numbers['loudness']:.1f} dB")
    return "; ".join(signs)


def progress_line(row: Round) -> str:
    """A row in one line for the terminal, with its alert in a second one."""
    clips = f"{row.system}: iteration {row.number}, {row.clips} clips, " + (
        f"{row.groups} groups" if row.groups else f"{row.pairs} pairs"
    )
    if not math.isfinite(row.judge):
        return clips + ", not judged"
    shares = ((row.exact, "exact match"), (row.order, "order"), (row.diversity, "diversity"))
    more = [f"{name} {value:.3f}" for value, name in shares if math.isfinite(value)]
    judged = f"judge {row.judge:.4f}, gain over the best {row.gain:+.4f} [{row.gain_low:+.4f}, {row.gain_high:+.4f}]"
    line = ", ".join([clips, judged, f"reward {row.reward:+.2f} sd", *more])
    return line + (f"\nmilonga: {row.system}: signs of reward hacking: {row.alert}" if row.alert else "")


def loudness(waveform: np.ndarray) -> float:
    """The RMS of a waveform in dB of full scale; silence is QUIETEST."""
    level = float(np.sqrt(np.mean(np.square(waveform, dtype=np.float64)))) if len(waveform) else 0.0
    return max(QUIETEST, 20 * math.log10(level)) if level > 0 else QUIETEST
