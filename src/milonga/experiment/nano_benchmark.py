"""`milonga nano benchmark`: nano's weights measured on captions and clips that no training used.

Scorers first, on real clips of the world, since their errors there limit every other number. Then the base model by
itself, on held-out captions: what alignment starts from.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import TypeVar

import numpy as np

from milonga.core.errors import DataError
from milonga.core.ids import derive_seed
from milonga.core.progress import tracked
from milonga.core.records import Clip, Prompt, Request
from milonga.data.captions import world_prompts
from milonga.evaluation.features import extract_features, system_features
from milonga.evaluation.metrics import all_metrics, clip_interval, clip_values, get_metric
from milonga.experiment.registry import DEFAULT as registry
from milonga.maths.statistics import Interval, proportion
from milonga.models.generator import TangoModel
from milonga.models.load import load_denoiser
from milonga.nano.build.text import replaced, swapped
from milonga.nano.captions import caption_in
from milonga.preference.candidates import generate_clips
from milonga.scorers.clap import ClapScorer

Intervals = dict[str, Interval]
Item = TypeVar("Item")
BATCH = 16


def benchmark(clips: int, captions: int, seed: int = 0) -> Intervals:
    """Every measurement by name: scorers on `clips` real clips, the base on `captions` held-out captions."""
    prompts = world_prompts("test", max(clips, captions))
    real = [registry.reference(prompt) for part in _batches("real clips", prompts[:clips]) for prompt in part]
    intervals = measure_tagger(prompts[:clips], real) | measure_round_trip(real)
    for name in ("nano-clap-a", "nano-clap-b", "nano-judge"):
        intervals |= measure_clap(registry.scorer(name), prompts[:clips], real)
    return intervals | measure_base(prompts[:captions], seed)


def decisions(clips: Sequence[Clip]) -> np.ndarray:
    """The tagger's yes or no for every clip and class, shape (N, classes), bool."""
    tagger = registry.tagger("nano-tagger")
    detected = [
        {event.label for event in events} for part in _batches("tagger", clips) for events in tagger.detect(part)
    ]
    return np.array([[label in labels for label in tagger.classes] for labels in detected])


def measure_tagger(prompts: Sequence[Prompt], clips: Sequence[Clip]) -> Intervals:
    """The tagger's accuracy over all classes, its recall and its precision."""
    classes = registry.tagger("nano-tagger").classes
    truth = np.array([[label in sum(prompt.scene or (), ()) for label in classes] for prompt in prompts])
    detected = decisions(clips)
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
        waves = denoiser.decode(posterior.mean * posterior.scale).numpy()
        rebuilt += [Clip(wave, denoiser.sampling_rate) for wave in waves]
    before, after = decisions(clips), decisions(rebuilt)
    return {"round trip keeps decisions": _share(before == after), "round trip keeps events": _share(after[before])}


def measure_clap(scorer: ClapScorer, prompts: Sequence[Prompt], clips: Sequence[Clip]) -> Intervals:
    """How often a clip scores higher with its caption than with one of a wrong order, and one of a replaced sound."""
    own = np.concatenate([scorer.embed_clips(part) for part in _batches(scorer.name, clips)])
    right = (own * scorer.embed_texts([prompt.text for prompt in prompts])).sum(axis=1)
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
        scores = (own[places] * scorer.embed_texts(list(texts.values()))).sum(axis=1)
        intervals[f"{scorer.name} against a wrong {kind}"] = _share(right[places] > scores)
    return intervals


def measure_base(prompts: Sequence[Prompt], seed: int) -> Intervals:
    """Metrics of the base's clips of held-out captions; the recall of captions with one event apart."""
    steps, guidance = registry.sampling("nano")
    model = registry.load("nano")
    assert isinstance(model, TangoModel)
    requests = [Request.of(seed, prompt, prompt.text, steps, guidance) for prompt in prompts]
    generated = {}
    with tracked("base", len(requests)) as advance:
        for request, clip, _ in generate_clips(requests, model, BATCH):
            generated[request.prompt_id] = clip
            advance(1)
    clips = [generated[prompt.id] for prompt in prompts]
    rows = extract_features(
        [prompt.id for prompt in prompts], prompts, clips,
        registry.scorer("nano-judge"), registry.tagger("nano-tagger"), BATCH,
    )  # fmt: skip
    columns, known = system_features("base", rows).columns, {prompt.id: prompt for prompt in prompts}
    single = [prompt.id for prompt in prompts if prompt.scene and sum(map(len, prompt.scene)) == 1]
    recalls = clip_values(get_metric("event_recall"), columns["events"], known, single)
    intervals = {"base presence on single events": _share(recalls == 1.0)}
    for row in all_metrics():
        if row.feature in ("clap", "events"):
            interval = clip_interval(row, clip_values(row, columns[row.feature], known, list(known)), seed, 2000)
            if interval is not None:  # a poor base may give no clip with all events of its caption
                intervals[f"base {row.name}"] = interval
    return intervals


def _batches(stage: str, items: Sequence[Item]) -> Iterator[Sequence[Item]]:
    """`BATCH` at a time, with progress."""
    with tracked(stage, len(items)) as advance:
        for first in range(0, len(items), BATCH):
            part = items[first : first + BATCH]
            yield part
            advance(len(part))


def _share(yes: np.ndarray) -> Interval:
    return proportion(np.asarray(yes, dtype=np.float64).ravel())
