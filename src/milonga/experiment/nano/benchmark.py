"""`milonga nano benchmark`: nano's weights measured on captions and clips that no training used.

Scorers first, on real clips of the world, since their errors there limit every other number; then rankers on clips
that the base generates, where they are used. Then the base model by itself: what alignment starts from.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import TypeVar

import numpy as np

from milonga.core.errors import DataError
from milonga.core.ids import derive_seed
from milonga.core.progress import tracked
from milonga.core.records import Clip, Prompt, Request
from milonga.core.weights import RANKERS
from milonga.data.captions import world_prompts
from milonga.evaluation.features import extract_features, system_features
from milonga.evaluation.metrics import all_metrics, clip_interval, clip_values, get_metric
from milonga.experiment.registry import DEFAULT as registry
from milonga.maths.statistics import Interval, draw_clips, proportion
from milonga.models.generator import TangoModel
from milonga.models.load import load_denoiser
from milonga.nano.build.text import replaced, swapped
from milonga.nano.captions import caption_in
from milonga.preference.candidates import generate_clips
from milonga.scorers.clap import ClapScorer

Intervals = dict[str, Interval]
EACH = 8  # clips of a caption among which rankers choose
RESAMPLES = 2000
Item = TypeVar("Item")
BATCH = 16
# The least and the most that is wanted of a measurement. The base must leave alignment something to mend.
TARGETS = {
    r"tagger(-b)? decisions right": (0.98, 1.0),
    r"round trip keeps decisions": (0.97, 1.0),
    r".+ against a wrong \w+": (0.95, 1.0),
    r"rankers and events on generated clips: .+": (0.75, 1.0),
    r"base presence on single events": (0.95, 1.0),
    r"base full_recall": (0.8, 1.0),
    r"base order_accuracy": (0.65, 0.9),
}


def benchmark(clips: int, captions: int, seed: int = 0, ranked: int = 160) -> Intervals:
    """Every measurement by name: scorers on `clips` real clips, rankers on `EACH` generated clips of `ranked` captions,
    the base on `captions` captions; all captions are held out.
    """
    prompts = world_prompts("test", max(clips, captions))
    real = [registry.reference(prompt) for part in _batches("real clips", prompts[:clips]) for prompt in part]
    intervals = measure_tagger(prompts[:clips], real) | measure_round_trip(real)
    second = measure_tagger(prompts[:clips], real, "nano-tagger-b")
    intervals |= {name.replace("tagger", "tagger-b"): interval for name, interval in second.items()}
    for name in ("nano-clap-a", "nano-clap-b", "nano-judge"):
        intervals |= measure_clap(registry.scorer(name), prompts[:clips], real)
    several = [prompt for prompt in world_prompts("test", 4 * ranked) if sum(map(len, prompt.scene or ())) > 1]
    if ranked:
        intervals |= measure_rankers(several[:ranked], seed)
    return intervals | measure_base(prompts[:captions], seed)


def target(name: str) -> tuple[float, float] | None:
    """The least and the most that is wanted of a measurement; None where nothing is."""
    return next((limits for pattern, limits in TARGETS.items() if re.fullmatch(pattern, name)), None)


def decisions(clips: Sequence[Clip], name: str = "nano-tagger") -> np.ndarray:
    """A tagger's yes or no for every clip and class, shape (N, classes), bool."""
    tagger = registry.tagger(name)
    detected = [
        {event.label for event in events} for part in _batches("tagger", clips) for events in tagger.detect(part)
    ]
    return np.array([[label in labels for label in tagger.classes] for labels in detected])


def measure_tagger(prompts: Sequence[Prompt], clips: Sequence[Clip], name: str = "nano-tagger") -> Intervals:
    """A tagger's accuracy over all classes, its recall and its precision."""
    classes = registry.tagger(name).classes
    truth = np.array([[label in sum(prompt.scene or (), ()) for label in classes] for prompt in prompts])
    detected = decisions(clips, name)
    return {
        "tagger decisions right": _share(detected == truth),
        "tagger recall": _share(detected[truth]),
        "tagger precision": _share(truth[detected]),
    }


def measure_round_trip(clips: Sequence[Clip]) -> Intervals:
    """How many of the tagger's decisions on real clips survive VAE and vocoder."""
    denoiser, rebuilt = load_denoiser("nano"), []
    for part in _batches("round trip", clips):
        posterior = denoiser.encode_audio([denoiser.prepare_waveform(clip) for clip in part])
        waves = denoiser.decode(posterior.mean * posterior.scale).detach().numpy()
        rebuilt += [Clip(wave, denoiser.sampling_rate) for wave in waves]
    before, after = decisions(clips), decisions(rebuilt)
    return {"round trip keeps decisions": _share(before == after), "round trip keeps events": _share(after[before])}


def measure_clap(scorer: ClapScorer, prompts: Sequence[Prompt], clips: Sequence[Clip]) -> Intervals:
    """How often a clip scores higher with its caption than with one of a wrong order, and one of a replaced sound."""
    own = np.concatenate([scorer.embed_clips(part) for part in _batches(scorer.name, clips)])
    right = scorer.compare(own, scorer.embed_texts([prompt.text for prompt in prompts]))
    rng = np.random.default_rng(derive_seed(0, "hard negatives"))
    kinds: dict[str, Callable] = {"order": swapped, "sound": lambda scene: replaced(scene, rng)}
    intervals = {}
    for kind, change in kinds.items():
        wrong, texts = [change(prompt.scene) for prompt in prompts], {}
        for place, scene in enumerate(wrong):
            with suppress(DataError):  # some scenes have no caption in the split `test`
                if scene is not None:
                    texts[place] = caption_in("test", scene, {}, rng)
        places = list(texts)
        scores = scorer.compare(own[places], scorer.embed_texts(list(texts.values())))
        intervals[f"{scorer.name} against a wrong {kind}"] = _share(right[places] > scores)
    return intervals


def measure_rankers(prompts: Sequence[Prompt], seed: int) -> Intervals:
    """How often each ranker, and their mean, puts a right clip above a wrong one of the same caption.

    Of each caption the base makes `EACH` clips; the first tagger, which never ranks, says which of them are right in
    each of four ways. `n` counts the captions that have both kinds.
    """
    clips = _generated([(prompt, number) for prompt in prompts for number in range(EACH)], seed)
    owners = [prompt for prompt in prompts for _ in range(EACH)]
    tagger = registry.tagger("nano-tagger")
    detected = [events for part in _batches("tagger", clips) for events in tagger.detect(part)]
    scores = {
        name: registry.scorer(name).score(clips, [owner.text for owner in owners]).reshape(-1, EACH)
        for name in (*RANKERS, "nano-events")
    }
    scores["rankers and events"] = np.mean(list(scores.values()), axis=0)
    intervals = {}
    for rule in ("exact_match", "full_recall", "extra_events", "order_accuracy"):
        metric = get_metric(rule)
        values = np.array([metric.value(events, None, owner) for events, owner in zip(detected, owners, strict=True)])
        right = (values == 0 if rule == "extra_events" else values == 1).reshape(-1, EACH)
        if metric.scene > 1:
            right = right[[len(prompt.scene or ()) > 1 for prompt in prompts]]
        for name, table in scores.items():
            own = table[[len(prompt.scene or ()) >= metric.scene for prompt in prompts]]
            interval = within_captions(own, right, seed)
            if interval is not None:
                intervals[f"{name} on generated clips: {'no extra' if rule == 'extra_events' else rule}"] = interval
    return intervals


def within_captions(scores: np.ndarray, right: np.ndarray, seed: int) -> Interval | None:
    """The share of couples of one caption, right and wrong, in which the right clip scores higher; ties count half.

    `scores` and `right` are (captions, clips). The interval is over captions; None where fewer than two have couples.
    """
    above = scores[:, :, None] - scores[:, None, :]
    couples = right[:, :, None] & ~right[:, None, :]
    wins = (couples * (np.sign(above) + 1) / 2).sum(axis=(1, 2))
    counts = couples.sum(axis=(1, 2))
    wins, counts = wins[counts > 0], counts[counts > 0]
    if len(wins) < 2:
        return None
    draws = draw_clips(len(wins), seed, RESAMPLES)
    low, high = np.quantile(wins[draws].sum(axis=1) / counts[draws].sum(axis=1), [0.025, 0.975])
    return Interval(float(wins.sum() / counts.sum()), float(low), float(high), len(wins))


def measure_base(prompts: Sequence[Prompt], seed: int) -> Intervals:
    """Metrics of the base's clips of held-out captions; the recall of captions with one event apart."""
    clips = _generated([(prompt, 0) for prompt in prompts], seed)
    rows = extract_features(
        [prompt.id for prompt in prompts], prompts, clips,
        registry.scorer("nano-judge"), registry.tagger("nano-tagger"), BATCH,
    )  # fmt: skip
    columns, known = system_features("base", rows).columns, {prompt.id: prompt for prompt in prompts}
    single = [prompt.id for prompt in prompts if prompt.scene and sum(map(len, prompt.scene)) == 1]
    recalls = clip_values(get_metric("event_recall"), columns["events"], known, single)
    intervals = {"base presence on single events": _share(recalls == 1.0)} if single else {}
    for row in all_metrics():
        if row.feature in ("clap", "events"):
            interval = clip_interval(row, clip_values(row, columns[row.feature], known, list(known)), seed, RESAMPLES)
            if interval is not None:  # a poor base may give no clip with all events of its caption
                intervals[f"base {row.name}"] = interval
    return intervals


def _generated(wanted: Sequence[tuple[Prompt, int]], seed: int) -> list[Clip]:
    """The base's clip of each prompt and number, by its default sampling."""
    steps, guidance = registry.sampling("nano")
    model = registry.load("nano")
    assert isinstance(model, TangoModel)
    requests = [Request.of(seed, prompt, prompt.text, steps, guidance, number) for prompt, number in wanted]
    generated = {}
    with tracked("base", len(requests)) as advance:
        for request, clip in generate_clips(requests, model.generate, BATCH):
            generated[request.id] = clip
            advance(1)
    return [generated[request.id] for request in requests]


def _batches(stage: str, items: Sequence[Item]) -> Iterator[Sequence[Item]]:
    """`BATCH` at a time, with progress."""
    with tracked(stage, len(items)) as advance:
        for first in range(0, len(items), BATCH):
            part = items[first : first + BATCH]
            yield part
            advance(len(part))


def _share(yes: np.ndarray) -> Interval:
    return proportion(np.asarray(yes, dtype=np.float64).ravel())
