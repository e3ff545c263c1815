"""`milonga nano exam`: what nano's weights can do, measured on captions and clips that no lesson ever saw.

Listeners first, on real clips of the world: a judge that errs there cannot judge. Then the base model by itself, on
held-out captions: what alignment starts from.
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

Answer = dict[str, Interval]
Item = TypeVar("Item")
BATCH = 16


def exam(clips: int, captions: int, seed: int = 0) -> Answer:
    """Every measurement by name: listeners on `clips` real clips, the base on `captions` held-out captions."""
    prompts = world_prompts("test", max(clips, captions))
    real = [registry.reference(prompt) for part in _batches("real clips", prompts[:clips]) for prompt in part]
    found = tagger_exam(prompts[:clips], real) | round_trip_exam(real)
    for name in ("nano-clap-a", "nano-clap-b", "nano-judge"):
        found |= clap_exam(registry.scorer(name), prompts[:clips], real)
    return found | base_exam(prompts[:captions], seed)


def decisions(clips: Sequence[Clip]) -> np.ndarray:
    """The tagger's yes or no for every clip and class, shape (N, classes), bool."""
    tagger = registry.tagger("nano-tagger")
    heard = [events for part in _batches("tagger", clips) for events in tagger.detect(part)]
    return np.array([[label in {one.label for one in events} for label in tagger.classes] for events in heard])


def tagger_exam(prompts: Sequence[Prompt], clips: Sequence[Clip]) -> Answer:
    """How often the tagger is right about a class, hears an event that is there, and is right when it hears one."""
    classes = registry.tagger("nano-tagger").classes
    truth = np.array([[label in sum(prompt.scene or (), ()) for label in classes] for prompt in prompts])
    heard = decisions(clips)
    return {
        "tagger decisions right": _share(heard == truth),
        "tagger recall": _share(heard[truth]),
        "tagger precision": _share(truth[heard]),
    }


def round_trip_exam(clips: Sequence[Clip]) -> Answer:
    """How many of the tagger's decisions on real clips survive VAE and vocoder."""
    denoiser, rebuilt = load_denoiser("nano"), []
    for part in _batches("round trip", clips):
        posterior = denoiser.encode_audio([denoiser.prepare_waveform(clip) for clip in part])
        waves = denoiser.decode(posterior.mean * posterior.scale).numpy()
        rebuilt += [Clip(wave, denoiser.sampling_rate) for wave in waves]
    before, after = decisions(clips), decisions(rebuilt)
    return {"round trip keeps decisions": _share(before == after), "round trip keeps events": _share(after[before])}


def clap_exam(scorer: ClapScorer, prompts: Sequence[Prompt], clips: Sequence[Clip]) -> Answer:
    """How often a clip fits its caption better than one of a wrong order, and one of a replaced sound."""
    own = np.concatenate([scorer.embed_clips(part) for part in _batches(scorer.name, clips)])
    right = (own * scorer.embed_texts([prompt.text for prompt in prompts])).sum(axis=1)
    rng = np.random.default_rng(derive_seed(0, "hard negatives"))
    kinds: dict[str, Callable] = {"order": swapped, "sound": lambda scene: replaced(scene, rng)}
    found = {}
    for kind, spoilt in kinds.items():
        wrong, texts = [spoilt(prompt.scene) for prompt in prompts], {}
        for place, scene in enumerate(wrong):
            with suppress(DataError):  # a scene that no caption of `test` tells is no question
                if scene is not None:
                    texts[place] = caption_in("test", scene, {}, rng)
        asked = list(texts)
        score = (own[asked] * scorer.embed_texts(list(texts.values()))).sum(axis=1)
        found[f"{scorer.name} against a wrong {kind}"] = _share(right[asked] > score)
    return found


def base_exam(prompts: Sequence[Prompt], seed: int) -> Answer:
    """The base's clips of held-out captions, heard by judge and tagger; presence of single events apart."""
    steps, guidance = registry.sampling("nano")
    model = registry.load("nano")
    assert isinstance(model, TangoModel)
    requests = [Request.of(seed, prompt, prompt.text, steps, guidance) for prompt in prompts]
    made = {}
    with tracked("base", len(requests)) as advance:
        for request, clip, _ in generate_clips(requests, model, BATCH):
            made[request.prompt_id] = clip
            advance(1)
    clips = [made[prompt.id] for prompt in prompts]
    rows = extract_features(
        [prompt.id for prompt in prompts], prompts, clips,
        registry.scorer("nano-judge"), registry.tagger("nano-tagger"), BATCH,
    )  # fmt: skip
    columns, known = system_features("base", rows).columns, {prompt.id: prompt for prompt in prompts}
    single = [prompt.id for prompt in prompts if prompt.scene and sum(map(len, prompt.scene)) == 1]
    recalls = clip_values(get_metric("event_recall"), columns["events"], known, single)
    answer = {"base presence on single events": _share(recalls == 1.0)}
    for row in all_metrics():
        if row.feature in ("clap", "events"):
            interval = clip_interval(row, clip_values(row, columns[row.feature], known, list(known)), seed, 2000)
            if interval is not None:  # a poor base may give no clip with all events of its caption
                answer[f"base {row.name}"] = interval
    return answer


def _batches(stage: str, items: Sequence[Item]) -> Iterator[Sequence[Item]]:
    """`BATCH` at a time, with progress."""
    with tracked(stage, len(items)) as advance:
        for first in range(0, len(items), BATCH):
            part = items[first : first + BATCH]
            yield part
            advance(len(part))


def _share(yes: np.ndarray) -> Interval:
    return proportion(np.asarray(yes, dtype=np.float64).ravel())
