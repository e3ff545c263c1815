"""A run folder as the pipeline would leave it, made in a second from seeds: plausible records and short clips."""

import json
from pathlib import Path

import numpy as np

from milonga.core.audio import clip_table
from milonga.core.ids import content_id, derive_seed
from milonga.core.records import Clip, Comparison, Event, Pair, Prompt, Request, Scene, Summary
from milonga.core.store import Run, write_json, write_text

RATE, SECONDS = 16000, 2.0
SOUNDS = ("Dog", "Bell", "Rain", "Engine", "Bird", "Siren", "Knock", "Telephone")
SYSTEMS = ("base", "sft", "aligned", "reference")
SCORERS = ("ranker-a", "ranker-b")
HOSTILE = "<script>document.title='owned'</script> a bell & \"quotes\" '<img src=x onerror=alert(1)>'"
RECIPE = """name = "synthetic"
seed = 7

[pair]
rank_by = "ranker-a"

[[pair.thresholds]]
scorer = "ranker-a"
min_winner_score = 0.45
min_loser_score = 0.2
min_margin = 0.05
max_margin = 0.6

[[pair.thresholds]]
scorer = "ranker-b"
min_winner_score = 0.4
min_loser_score = 0.0
min_margin = 0.08
max_margin = 0.7

[[train.systems]]
name = "sft"
phases = [{ loss = "sft", epochs = 2 }]

[[train.systems]]
name = "aligned"
phases = [{ loss = "sft", epochs = 1 }, { loss = "dpo", epochs = 2, beta = 100.0 }]
"""
FACTS = {
    "seed": 7,
    "commit": "0123abcd",
    "versions": {"python": "3.11.9", "torch": "2.9.0", "milonga": "0.1.0"},
    "models": {"nano": "sha256 5d4f…", "judge": "sha256 91aa…"},
    "timings": {"generate": "118.4 s", "score": "21.0 s", "train": {"sft": "39.1 s", "aligned": "141.2 s"}},
}
SPLITS = ("overall", "multi-concept", "single-concept", "temporal", "non-temporal")
# value for base, sft, aligned, reference; then half the width of a difference's interval
LEVELS = {
    "clap": ((0.612, 0.618, 0.641, 0.802), 0.011),
    "full_recall": ((0.812, 0.823, 0.868, 0.991), 0.024),
    "event_recall": ((0.902, 0.908, 0.931, 0.997), 0.014),
    "extra_events": ((0.341, 0.322, 0.262, 0.021), 0.041),
    "order_accuracy": ((0.781, 0.779, 0.861, 0.998), 0.035),
    "exact_match": ((0.582, 0.597, 0.681, 0.975), 0.031),
    "fd": ((4.41, 4.62, 4.71, 0.0), 0.24),
    "kl": ((0.912, 0.905, 0.894, 0.0), 0.031),
    "is": ((8.41, 8.52, 8.94, 10.2), 0.33),
}
LOWER = ("extra_events", "fd", "kl")


def make_run(root: Path, until: str = "evaluate", prompts: int = 40) -> Path:
    """A synthetic run at `root`, complete or only `until` "pair" or "train"; always the same bytes."""
    run = Run(root)
    write_text(root / "recipe.toml", RECIPE)
    write_json(root / "manifest.json", FACTS)
    write_pairs(run, 300)
    if until in ("train", "evaluate"):
        for system, steps in (("sft", 120), ("aligned", 260)):
            write_text(root / "metrics" / "training" / f"{system}.jsonl", training_log(system, steps))
    if until == "evaluate":
        write_evaluation(run, make_prompts(prompts))
        write_numbers(root)
    return root


def make_prompts(count: int) -> list[Prompt]:
    """Prompts of one to three sounds; the first is hostile markup that must be shown as text."""
    found = [Prompt.of(HOSTILE, "synthetic", ("multi-concept",), (("Bell", "Rain"),))]
    for number in range(1, count):
        rng = np.random.default_rng(derive_seed(1, "prompt", number))
        names = [SOUNDS[i] for i in rng.permutation(len(SOUNDS))[: 1 + number % 3]]
        together = number % 3 == 1 and number % 2 == 0
        scene: Scene = (tuple(names),) if together else tuple((name,) for name in names)
        words = [f"the {name.lower()} is heard" for name in names]
        text = (" and " if together else " then ").join(words).capitalize() + f", take {number}"
        tags = (("multi-concept",) if len(names) > 1 else ()) + (("temporal",) if len(scene) > 1 else ())
        found.append(Prompt.of(text, "synthetic", tags, scene))
    return found


def write_pairs(run: Run, count: int) -> None:
    """Kept and refused pairs of four strategies."""
    kept, refused = [], []
    for number in range(count):
        rng = np.random.default_rng(derive_seed(2, "pair", number))
        winner, delta = rng.beta(6, 3), rng.normal(0.16, 0.12)
        scores = [{SCORERS[0]: winner - d, SCORERS[1]: winner - d - rng.normal(0.02, 0.03)} for d in (0.0, delta)]
        reason = refusal(winner, delta)
        pair = make_pair(number, scores[0], scores[1], reason)
        (refused if reason else kept).append(pair)
    run.stage("pair").write_records("part-0", kept, Pair)
    run.stage("refused").write_records("part-0", refused, Pair)


def refusal(winner: float, delta: float) -> str:
    """The reason to refuse a pair, empty when there is none."""
    if delta <= 0:
        return "order"
    if winner < 0.45:
        return f"min_winner_score: ranker-a {winner:.2f} < 0.45"
    return f"min_margin: ranker-a {delta:.2f} < 0.05" if delta < 0.05 else ""


def make_pair(number: int, chosen: dict[str, float], rejected: dict[str, float], refused: str = "") -> Pair:
    """One pair with ids and seeds from its number."""
    strategy = ("1.1", "1.2", "2", "3")[number % 4]
    return Pair(
        id=content_id("pair", number),
        prompt_id=content_id("prompt", number // 4),
        prompt=f"prompt {number // 4}",
        strategy=strategy,
        chosen_id=content_id("chosen", number),
        rejected_id=content_id("rejected", number),
        chosen_words="a dog",
        rejected_words="a cat" if number % 4 > 1 else "a dog",
        chosen_steps=10,
        rejected_steps=10,
        chosen_seed=derive_seed(3, number),
        rejected_seed=derive_seed(4, number),
        chosen_scores=chosen,
        rejected_scores=rejected,
        refused=refused,
    )


def training_log(system: str, steps: int) -> str:
    """A training log in JSON lines: an SFT phase, and for `aligned` a DPO phase after it."""
    lines = []
    for step in range(steps):
        rng = np.random.default_rng(derive_seed(5, system, step))
        late = max(0, step - 80) if system == "aligned" else 0
        dpo = system == "aligned" and step >= 80
        gap = 0.02 * (1 - np.exp(-late / 60)) if dpo else 0.0
        row = {
            "step": step,
            "phase": "dpo" if dpo else "sft",
            "loss": 0.69 - 8 * gap + rng.normal(0, 0.05)
            if dpo
            else 0.35 + 0.2 * np.exp(-step / 30) + rng.normal(0, 0.02),
            "lr": 1e-4 * (1 - step / steps),
            "grad_norm": float(rng.gamma(4, 0.2)),
        }
        if dpo:
            low, high = rng.normal(gap * 0.4, 0.006), rng.normal(gap * 1.6, 0.006)
            ranked = float(np.clip(0.5 + 12 * gap + rng.normal(0, 0.08), 0, 1))
            row |= {"delta_winner": low, "delta_loser": high, "margin": 200 * (high - low), "accuracy": ranked}
        lines.append(json.dumps(row))
    return "\n".join(lines) + "\n"


def write_evaluation(run: Run, prompts: list[Prompt]) -> None:
    """Prompts, every system's clips, and what was heard in them."""
    import pyarrow as pa

    run.stage("evaluate/prompts").write_records("part-0", prompts, Prompt)
    for place, system in enumerate(SYSTEMS):
        ids, clips, heard = [], [], []
        for number, prompt in enumerate(prompts):
            rng = np.random.default_rng(derive_seed(6, system, prompt.id))
            events = perform(prompt, (0.7, 0.74, 0.88, 1.0)[place], rng)
            seed = 0 if system == "reference" else 7
            ids.append(Request.of(seed, prompt, prompt.text, 10, 3.0).id if seed else content_id("real", prompt.id))
            clips.append(sounding(events, rng))
            clap = float(np.clip(rng.normal(0.5 + 0.08 * place, 0.12), -1, 1))
            clap = float("nan") if number == 3 and system == "sft" else clap
            heard.append(
                {"id": ids[-1], "prompt_id": prompt.id, "clap": clap, "events": [e.model_dump() for e in events]}
            )
        run.stage(f"evaluate/{system}").write_table("part-0", clip_table(ids, clips, [None] * len(ids)))
        event = pa.struct([("label", pa.string()), ("onset", pa.float64()), ("offset", pa.float64())])
        kinds = [("id", pa.string()), ("prompt_id", pa.string()), ("clap", pa.float64()), ("events", pa.list_(event))]
        run.stage(f"features/{system}").write_table("part-0", pa.Table.from_pylist(heard, schema=pa.schema(kinds)))


def perform(prompt: Prompt, skill: float, rng: np.random.Generator) -> list[Event]:
    """Events as a system of some skill would make them: now and then one is missing, swapped or too many."""
    groups = list(prompt.scene or ())
    if len(groups) > 1 and rng.random() > skill:
        groups = groups[::-1]
    length = SECONDS / max(1, len(groups))
    events = []
    for place, group in enumerate(groups):
        for label in group:
            if rng.random() < skill + 0.1:
                onset = place * length + rng.uniform(0.03, 0.12)
                events.append(Event(label=label, onset=onset, offset=(place + 1) * length - 0.08))
    if rng.random() > skill:
        events.append(Event(label=SOUNDS[int(rng.integers(len(SOUNDS)))], onset=0.2, offset=0.7))
    return sorted(events, key=lambda event: event.onset)


def sounding(events: list[Event], rng: np.random.Generator) -> Clip:
    """A clip in which each event is a tone or hiss of its own."""
    time = np.arange(int(RATE * SECONDS)) / RATE
    wave = 0.003 * rng.standard_normal(len(time))
    for event in events:
        inside = (time >= event.onset) & (time < event.offset)
        place = SOUNDS.index(event.label)
        pulse = 0.5 + 0.5 * np.sign(np.sin(2 * np.pi * (2 + place) * time))
        pitch = 220 * 1.5**place * (1 + 0.05 * np.sin(2 * np.pi * 3 * time))
        tone = np.sin(2 * np.pi * np.cumsum(pitch) / RATE) + 0.4 * np.sin(4 * np.pi * np.cumsum(pitch) / RATE)
        sound = 0.4 * rng.standard_normal(len(time)) if event.label in ("Rain", "Engine") else tone * pulse
        wave += 0.2 * inside * sound
    return Clip(np.clip(wave, -1, 1).astype(np.float32), RATE)


def write_numbers(root: Path) -> None:
    """Summaries and comparisons of every split, as `evaluate` would write them."""
    summaries, comparisons = [], []
    for split in SPLITS:
        count = {"overall": 400, "multi-concept": 290, "single-concept": 110, "temporal": 180, "non-temporal": 220}[
            split
        ]
        for metric, (levels, width) in LEVELS.items():
            if metric == "order_accuracy" and split in ("single-concept", "non-temporal"):
                continue
            rng = np.random.default_rng(derive_seed(8, split, metric))
            wide = width * (400 / count) ** 0.5
            values = [level * rng.uniform(0.97, 1.0) for level in levels] if split != "overall" else list(levels)
            for system, value in zip(SYSTEMS, values, strict=True):
                stamp = f"{metric}: nano scorers sha256 4be1…, 16 kHz, bootstrap 2000, seed 7"
                bounded = metric not in ("fd", "kl", "is", "extra_events")
                low, high = max(0.0, value - 1.4 * wide), min(value + 1.4 * wide, 1.0 if bounded else 99.0)
                summaries.append(
                    Summary(
                        system=system,
                        split=split,
                        metric=metric,
                        value=value,
                        low=low,
                        high=high,
                        n=count,
                        protocol=stamp,
                    )
                )
            for a, b in (("sft", "base"), ("aligned", "base"), ("aligned", "sft")):
                gap = values[SYSTEMS.index(a)] - values[SYSTEMS.index(b)]
                comparisons.append(compare(split, metric, a, b, gap, wide, count))
    write_json(root / "metrics" / "summary.json", [row.model_dump() for row in summaries])
    write_json(root / "metrics" / "comparisons.json", [row.model_dump() for row in comparisons])


def compare(split: str, metric: str, a: str, b: str, gap: float, width: float, count: int) -> Comparison:
    """A comparison whose `better` follows from its interval and the metric's direction."""
    low, high = gap - width, gap + width
    better = "neither" if low <= 0 <= high else (a if (gap > 0) != (metric in LOWER) else b)
    return Comparison(
        split=split, metric=metric, a=a, b=b, difference=gap, low=low, high=high, p=0.01, n=count, better=better
    )
