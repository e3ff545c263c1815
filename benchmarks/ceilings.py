"""How far alignment can take nano: `python benchmarks/ceilings.py [--captions 300]`, whose end is a table.

The same captions of several sounds (`world:tune`) as real clips, as real clips that passed the VAE and the vocoder (no
denoiser can do better through that codec), and as the base makes them with other guidance and steps, UniPC. Differences
have 95 % intervals over captions.
"""

import argparse

import torch

import milonga
from milonga.core.ids import clip_seed
from milonga.core.records import Clip, Prompt
from milonga.data.captions import prompt_source, reference
from milonga.evaluation.compute import EvalPlan, Numbers
from milonga.evaluation.features import SystemFeatures, extract_features, system_features
from milonga.evaluation.metrics import metrics_named
from milonga.experiment.registry import DEFAULT as registry

BATCH, SEED = 20, 0
METRICS = ("clap", "exact_match", "extra_events", "full_recall", "order_accuracy", "order_accuracy_detected", "fd")
SAMPLINGS = ((3.0, 4), (3.0, 8), (2.0, 4), (5.0, 4), (8.0, 4))  # guidance, steps; the first is that of the recipes


def generated(prompts: list[Prompt], guidance: float, steps: int) -> list[Clip]:
    """The base's clips of all captions, from each caption's own seed."""
    pipe = milonga.load("nano", scheduler="unipc")
    pipe.set_progress_bar_config(disable=True)
    clips: list[Clip] = []
    for first in range(0, len(prompts), BATCH):
        texts = [prompt.text for prompt in prompts[first : first + BATCH]]
        latents = pipe.sample(texts, [clip_seed(SEED, text, 0) for text in texts], steps, guidance)
        clips += [Clip(wave, pipe.sampling_rate) for wave in pipe.decode(latents).numpy()]
    return clips


@torch.no_grad()
def coded(clips: list[Clip]) -> list[Clip]:
    """The clips after VAE and vocoder, from the mean of each one's posterior."""
    denoiser = registry.load_denoiser("nano")
    decoded: list[Clip] = []
    for first in range(0, len(clips), BATCH):
        posterior = denoiser.encode_audio([denoiser.prepare_waveform(clip) for clip in clips[first : first + BATCH]])
        decoded += [Clip(wave, denoiser.sampling_rate) for wave in denoiser.decode(posterior.mean.float()).numpy()]
    return decoded


def features(name: str, prompts: list[Prompt], clips: list[Clip]) -> SystemFeatures:
    ids = [prompt.id for prompt in prompts]
    judge, tagger = registry.scorer("nano-judge"), registry.tagger("nano-tagger")
    return system_features(name, extract_features(ids, prompts, clips, judge, tagger, BATCH))


def main() -> None:
    """Measures every way and prints the table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--captions", type=int, default=300, help="captions of two or three sounds (default 300)")
    prompts = prompt_source(f"world:tune:{parser.parse_args().captions}:multi")
    references = [reference(prompt) for prompt in prompts]
    real = features("real clips", prompts, references)
    systems = [real, features("real clips through VAE and vocoder", prompts, coded(references))]
    for guidance, steps in SAMPLINGS:
        name = f"base, guidance {guidance:g}, {steps} steps"
        systems.append(features(name, prompts, generated(prompts, guidance, steps)))
        print(f"{name}: done", flush=True)
    known = {prompt.id: prompt for prompt in prompts}
    metrics = metrics_named(METRICS, {"clap_title": "Judge CLAP", "clap": "nano-judge"})
    numbers = Numbers(systems, metrics, EvalPlan({"overall": list(known)}, real, known, True, 1000, SEED))
    values = {(row.system, row.metric): row for row in numbers.summaries()}
    against = {(row.a, row.b, row.metric): row for row in numbers.comparisons()}
    print("| clips | " + " | ".join(f"{metric.title} {metric.arrow}" for metric in metrics) + " |")
    print("|---" * (len(metrics) + 1) + "|")
    for system in systems:
        plain = [values.get((system.name, metric.name)) for metric in metrics]
        print(f"| {system.name} | " + " | ".join(f"{row.value:.3f}" if row else "" for row in plain) + " |")
        base = real if system is systems[1] else systems[2]
        if system in (real, base):
            continue
        gains = [against.get((system.name, base.name, metric.name)) for metric in metrics]
        cells = [f"{row.difference:+.3f} [{row.low:+.3f}, {row.high:+.3f}]" if row else "" for row in gains]
        print(f"| {system.name} − {base.name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
