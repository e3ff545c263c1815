"""The cards of exports, README.md of a data set of pairs and of a trained model: Markdown with its YAML head."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from milonga.evaluation.formatting import OVERALL, by_system_and_metric, compared, split_words, verdict, verdict_words
from milonga.evaluation.metrics import metrics_named
from milonga.reports.material import RunMaterial
from milonga.reports.tables import figure2, first_scorer, pair_rows, refused_by, reward_sentence

SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
# A picture in a file of its own does not see the page's style sheet; this is readable on light and on dark pages.
STYLE = """<style>
text { font: 10.5px system-ui, sans-serif; fill: #6b7280; }
.grid { stroke: #9ca3af; stroke-opacity: .35; } .axis { stroke: #6b7280; }
.kept { fill: #0f8a7e; } .refused { fill: #a8a8a8; }
.limit { stroke: #d0453a; stroke-width: 1.5; stroke-dasharray: 4 3; }
text.limit-name { fill: #d0453a; font-weight: 600; }
</style>"""
SVG = '<svg xmlns="http://www.w3.org/2000/svg"'
COLUMNS = """| column | what it is |
|---|---|
| `prompt` | the caption of both clips |
| `chosen`, `rejected` | the winner and the loser: the bytes of a FLAC file |
| `strategy` | how the loser was chosen |
| `chosen_id`, `rejected_id`, `id`, `prompt_id` | content ids: the same clip has the same id everywhere |
| `chosen_words`, `rejected_words` | the caption that the clip was generated from; a loser's may be perturbed |
| `…_steps`, `…_guidance`, `…_seed` | how it was sampled: with the model, enough to generate it again |
| `…_scores` | its similarity with `prompt` by each scorer |
| `model`, `model_hash`, `scorer_hashes` | the generator and the scorers of the clips, with hashes of their weights |"""
LOAD = """```python
from datasets import Audio, load_dataset

pairs = load_dataset("FOLDER")  # or "USER/NAME", where it is on the Hub
# Where torchcodec is not installed, take the bytes as they are and decode them with soundfile:
pairs = pairs.cast_column("chosen", Audio(decode=False)).cast_column("rejected", Audio(decode=False))
```

Milonga reads it, like the published `declare-lab/audio-alpaca`, by `milonga.data.audio_alpaca.read_alpaca(FOLDER)`."""


def data_card_figures(run: RunMaterial) -> dict[str, str]:
    """Figure 2 of every scorer as SVG files, by file name: the α and Δ of all pairs before the filter."""
    files = {}
    for number, (_, svg) in enumerate(figure2(run)):
        head, _, body = str(svg).partition(">")
        files[f"figure2-{number}.svg"] = f"{head.replace('<svg', SVG, 1)}>{STYLE}{body}\n"
    return files


def data_card(run: RunMaterial, splits: Mapping[str, int], provenance: Sequence[tuple[str, str]]) -> str:
    """The card as Markdown with its YAML head; `splits` gives each split's pairs, `provenance` (what, value) lines."""
    total = sum(splits.values())
    rows = [(r.strategy, str(r.built), str(r.accepted), r.winner, r.loser, r.delta) for r in pair_rows(run)]
    table2 = table(("strategy", "pairs built", "kept", "winner", "loser", "delta"), rows)
    bounds = [
        (t.scorer, *(f"{bound:g}" for bound in (t.min_winner_score, t.min_loser_score, t.min_margin, t.max_margin)))
        for t in run.thresholds
    ]
    thresholds = table(("scorer", "winner at least (α)", "loser at least (β)", "Δ at least", "Δ at most"), bounds)
    refused = table(("reason", "pairs"), [(reason, str(count)) for reason, count in refused_by(run)])
    files = zip(figure2(run), data_card_figures(run), strict=True)
    shown = [f"![{plain(title)}](figures/{file})" for (title, _), file in files]
    parts = [
        _data_head(f"{run.name}: preference pairs", total, splits),
        f"# {run.name}: preference pairs for text-to-audio",
        f"{total} pairs of clips, each a winner and a loser for one caption, built without human raters: a "
        "text-to-audio model generates several clips of a caption, scorers rank them, and a filter keeps the pairs "
        "that differ clearly. The method is that of Audio-alpaca (Tango 2, arXiv 2404.09956, §4.1).",
        "Split by caption, so that no caption is in two splits: "
        + ", ".join(f"`{split}` {count}" for split, count in splits.items())
        + ".",
        LOAD,
        f"## Columns\n\n{COLUMNS}",
        f"## What was kept\n\nMean scores of the kept pairs by {code(first_scorer(run))}.\n\n{table2}",
        f"A pair met all of these:\n\n{thresholds}" if bounds else "No threshold was set.",
        f"The others were refused:\n\n{refused}" if refused_by(run) else "No pair was refused.",
        "## Before the filter\n\nScores of all pairs whose winner scores higher, kept (green) and refused (grey); "
        "dashed: the thresholds.",
        *shown,
        "## Provenance\n\n" + table(("", ""), provenance),
        "## Limits\n\nNobody has listened to these pairs. A winner is what the scorers above prefer, with their "
        "biases: a model trained on them learns those too. Evaluate it with scorers that took no part here.",
    ]
    return "\n\n".join(parts) + "\n"


def _data_head(title: str, total: int, splits: Mapping[str, int]) -> str:
    size = next((name for limit, name in SIZES if total < limit), "n>1M")
    files = [f'      - split: {split}\n        path: "data/{split}-*.parquet"' for split in splits]
    lines = [
        "---", f"pretty_name: {json.dumps(title)}", "task_categories:", "  - text-to-audio", "tags:", "  - audio",
        "  - preference", "  - dpo", "size_categories:", f"  - {size}", "configs:", "  - config_name: default",
        "    data_files:", *files, "---",
    ]  # fmt: skip
    return "\n".join(lines)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; what would break it is escaped."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(plain, line)) + " |" for line in lines)


def plain(text: str) -> str:
    """Text escaped so that Markdown shows it as it is."""
    escaped = text.replace("\\", "\\\\")
    for sign in "|[]<>*_`":
        escaped = escaped.replace(sign, f"\\{sign}")
    return " ".join(escaped.split())


def code(text: str) -> str:
    """Text as Markdown code."""
    return f"`{text.replace('`', '')}`"


DATA = {
    "pairs": "preference pairs: a winner and a loser of one caption",
    "clips": "real clips with captions",
    "rewards": "the base’s own clips, each weighted by the reward model (BATON, arXiv 2402.00744)",
    "labels": "clips that were liked or disliked one by one",
    "groups": "all of the base’s clips of each caption, with the advantage of each over its group",
    "online": "clips that the latest policy generated, iteration after iteration, in groups (DGPO, arXiv 2510.08425) "
    "or pairs (CRPO, arXiv 2412.21037)",
    "captions": "captions alone: the gradient of the scorers’ rewards passed through the clips that it sampled (DRaFT, "
    "arXiv 2309.17400)",
}
LICENCES = """No licence is chosen here: choose one before you publish, and add `license:` to the head of this file.
These weights are derived from those of the base named above, so its licence applies. Nano's weights, which ship with
Milonga, are Apache-2.0. The published weights of Tango and Tango 2 are CC BY-NC-SA 4.0: what is tuned from them stays
non-commercial and under the same licence. Recordings and captions used in training have licences of their own
(AudioCaps' clips are from YouTube; Audio-alpaca's card says Apache-2.0), and so have people's ratings."""


ADAPTER = """The folder `adapter` holds the LoRA adapter, which the network here has already. On the base's own network
it is loaded by

```python
network.load_lora_adapter("FOLDER/adapter", use_safetensors=True)
```"""


def model_card(
    run: RunMaterial,
    system: Mapping[str, Any],
    recipe: Mapping[str, Any],
    provenance: Sequence[tuple[str, str]],
    index: Mapping[str, Any],
    trained: str,
    adapter: bool,
) -> str:
    """The card of a run's trained system as Markdown with its YAML head.

    `system` is its table of the recipe, `recipe` the whole recipe's, `provenance` (what, value) lines of the manifest,
    `index` the model's model_index.json (empty for one without), of which the part `trained` was trained; `adapter`
    says whether an adapter lies beside the model.
    """
    name, settings = system["name"], recipe["train"] | system["settings"]
    base = recipe["models"]["model"]
    parts = [
        _model_head(f"{run.name}: {name}", system["phases"]),
        f"# {run.name}: {name}",
        f"A text-to-audio latent diffusion model: {code(base)}, whose {PARTS.get(trained, trained)} was aligned to "
        f"preferences by Milonga. It was trained on {DATA[system['data']]}"
        f"{', from the system ' + code(system['start']) + ' of its recipe' if system['start'] else ''}.",
        _load(base, index, trained) + (f"\n\n{ADAPTER}" if adapter else ""),
        f"## Results\n\n{_results(run, name)}",
        f"## Training\n\n{_phases(system)}\n\n{_settings(settings)}",
        f"## Data\n\n{_data(run, system, recipe)}",
        "## Provenance\n\n" + table(("", ""), provenance),
        f"## Licences\n\n{LICENCES}",
        "## Limits\n\nThe model has learnt the preferences of its scorers, labels or raters, with their biases. The "
        "intervals are over captions: another training seed may differ by more. Sounds that the base cannot generate, "
        "it cannot generate either.",
    ]
    return "\n\n".join(parts) + "\n"


OWN = ("TangoPipeline", "TangoFluxPipeline")  # pipelines whose classes are Milonga's
PARTS = {"unet": "U-Net"}  # of a pipeline, where a name is not what it is called


MEASURED = {
    "loss": "loss of the last step",
    "val_accuracy": "preference accuracy on validation pairs",
    "val_margin": "their margin",
    "val_delta_winner": "their winners' error against the reference",
}


def _model_head(title: str, phases: Sequence[Mapping[str, Any]]) -> str:
    losses = [f"  - {loss}" for loss in dict.fromkeys(phase["loss"] for phase in phases)]
    lines = ["---", f"pretty_name: {json.dumps(title)}", "library_name: diffusers", "pipeline_tag: text-to-audio"]
    return "\n".join([*lines, "tags:", "  - audio", "  - milonga", *losses, "---"])


def _load(base: str, index: Mapping[str, Any], trained: str) -> str:
    """How the model is loaded, by Milonga and, where it has diffusers' layout, by its stock classes."""
    ours = """```python
import milonga

model = milonga.load("FOLDER")
clip = model("a dog barks then a bell rings", seeds=[7]).audios[0]  # model.sampling_rate samples a second
```"""
    if not index:
        return ours
    stock = {part: entry[1] for part, entry in index.items() if isinstance(entry, list) and entry[0] == "transformers"}
    stock |= {part: entry[1] for part, entry in index.items() if isinstance(entry, list) and entry[0] == "diffusers"}
    names = ", ".join(f"`{name}` ({part})" for part, name in sorted(stock.items()))
    own = str(index["_class_name"]) in OWN
    arguments = "FOLDER, custom_pipeline=FOLDER, trust_remote_code=True" if own else "FOLDER"
    needed = ", whose class Milonga has to be installed for" if own else ""
    return f"""{ours}

With diffusers: `DiffusionPipeline.from_pretrained({arguments})` gives the same pipeline{needed}.
Its parts are stock classes and need nothing else: {names}, each by `from_pretrained(FOLDER, subfolder=PART)`. Only the
{PARTS.get(trained, trained)} differs from {code(base)}."""


def _results(run: RunMaterial, name: str) -> str:
    """The system's numbers on all captions beside the base's, with 95 % intervals, and the verdicts."""
    view = run.evaluation
    values = by_system_and_metric(view.summaries, OVERALL)
    metrics = metrics_named(sorted({metric for system, metric in values if system == name}), view.sources)
    if not metrics:
        last = (run.training.get(name) or [{}])[-1]
        measured = [(words, f"{last[key]:.4g}") for key, words in MEASURED.items() if last.get(key) is not None]
        if not measured:
            return "It has not been evaluated."
        steps = f"{last['step']:,} of {last['total']:,} steps"
        return f"It has not been evaluated. Its training ended after {steps} with\n\n{table(('', ''), measured)}"
    against = compared(view.comparisons, name, "base", OVERALL)
    rows = []
    for one in metrics:
        cells = [values.get((system, one.name)) for system in ("base", name)]
        shown = [
            f"{one.format_value(c.value)} {one.format_interval(c.low, c.high)}".strip() if c else "–" for c in cells
        ]
        row = against.get(one.name)
        gain = f"{one.format_change(row.difference)} {one.format_interval(row.low, row.high, True)}" if row else "–"
        rows.append((f"{one.title} {one.arrow}", *shown, gain, verdict_words(verdict(row)) if row else "–"))
    count = max(row.n for (system, _), row in values.items() if system == name)
    stamp = next(row.protocol for (system, _), row in values.items() if system == name)
    head = ("", "base", name, "difference", "")
    return (
        f"On {count:,} held-out captions ({split_words(OVERALL)}), same seeds; values and paired differences with 95 % "
        f"intervals; verdicts by Holm’s p.\n\n{table(head, rows)}\n\nProtocol of the first row: {stamp}."
    )


def _phases(system: Mapping[str, Any]) -> str:
    rows = []
    for phase in system["phases"]:
        beta = f"{phase['beta']:g}" if phase["beta"] else "–"
        rate = "as below" if phase["learning_rate"] is None else f"{phase['learning_rate']:g}"
        count, unit = (phase["steps"], "step") if phase["steps"] else (phase["epochs"], "epoch")
        length = f"{count} {unit}{'' if count == 1 else 's'}"
        rows.append((phase["loss"], length, beta, rate))
    return table(("loss", "length", "β (on mean errors)", "learning rate"), rows)


def _settings(train: Mapping[str, Any]) -> str:
    rows = [(key, json.dumps(value)) for key, value in train.items() if key not in ("systems", "pairs")]
    return f"<details><summary>Settings of the trainer</summary>\n\n{table(('key', 'value'), rows)}\n\n</details>"


def _data(run: RunMaterial, system: Mapping[str, Any], recipe: Mapping[str, Any]) -> str:
    """The sources of the training data, and how much there was."""
    sources = system["sources"] or recipe["prompts"]["sources"]
    lines = [f"- captions: {', '.join(map(code, sources)) or 'none of its own'}"]
    if system["data"] == "captions":
        rewards = system["scorers"] or recipe["models"]["scorers"]
        lines.append(f"- rewards: {', '.join(map(code, rewards))}")
    if system["data"] == "pairs":
        lines.append(f"- pairs: {', '.join(map(code, recipe['train']['pairs']))} (`run`: the run's own)")
    if recipe["train"]["clips"] is not None:
        lines.append(f"- real clips: {code(recipe['train']['clips'])}")
    for count, reasons in run.left_out.items():
        listed = "\n".join(f"  - {plain(reason)}" for reason in reasons)
        lines.append(f"- left out, because they could not be used: {plain(count)}\n{listed}")
    if system["data"] in ("rewards", "labels"):
        lines.append(f"- labels: {', '.join(map(code, recipe['label']['sources']))} (`tagger`: the run's tagger's)")
    if system["data"] == "rewards":
        lines.append(f"- {reward_sentence(run.reward)}")
    for one in run.rounds.get(system["name"], [])[1:]:
        learnt = f"{one.groups:,} groups" if one.groups else f"{one.pairs:,} pairs"
        lines.append(f"- iteration {one.number}: {one.clips:,} clips, {learnt}")
    pairs = ""
    if system["data"] == "pairs" and run.accepted and "run" in recipe["train"]["pairs"]:
        rows = [(r.strategy, str(r.built), str(r.accepted), r.winner, r.loser, r.delta) for r in pair_rows(run)]
        pairs = "\n\n" + table(("strategy", "pairs built", "kept", "winner", "loser", "delta"), rows)
    return "\n".join(lines) + pairs
