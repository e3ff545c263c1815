"""The model card of a trained model: README.md with what it was trained on and how, its numbers and licences."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from milonga.evaluation.numbers import OVERALL, captions, compared, measures, told, verdict
from milonga.reports.data_card import code, grid
from milonga.reports.material import Material
from milonga.reports.rounds import reward_told
from milonga.reports.tables import pair_rows

DATA = {
    "pairs": "preference pairs: a winner and a loser of one caption",
    "rewards": "the base’s own clips, each weighted by the reward model (BATON, arXiv 2402.00744)",
    "labels": "clips that were liked or disliked one by one",
    "rounds": "preference pairs that the latest policy made anew, round after round (CRPO, arXiv 2412.21037)",
}
LICENCES = """No licence is chosen here: choose one before you publish, and add `license:` to the head of this file.
These weights are derived from those of the base named above, so its licence binds them. Nano's weights, which ship with
Milonga, are Apache-2.0. The published weights of Tango and Tango 2 are CC BY-NC-SA 4.0: what is tuned from them stays
non-commercial and under the same licence. Recordings and captions that were learnt from have licences of their own
(AudioCaps' clips are from YouTube; Audio-alpaca's card says Apache-2.0), and so have people's ratings."""


def card(
    material: Material, system: Mapping[str, Any], recipe: Mapping[str, Any], made_by: Sequence[tuple[str, str]]
) -> str:
    """The card as Markdown with its YAML head.

    `system` is its table of the recipe, `recipe` the whole recipe's, `made_by` (what, value) lines of the manifest.
    """
    name, run = system["name"], material.name
    base = recipe["models"]["model"]
    parts = [
        _head(f"{run}: {name}", system["phases"]),
        f"# {run}: {name}",
        f"A text-to-audio latent diffusion model: {code(base)}, whose U-Net was aligned to preferences by Milonga. "
        f"It was trained on {DATA[system['data']]}.",
        _load(base),
        f"## Results\n\n{_results(material, name)}",
        f"## Training\n\n{_phases(system)}\n\n{_settings(recipe['train'])}",
        f"## Data\n\n{_data(material, system, recipe)}",
        "## What made it\n\n" + grid(("", ""), made_by),
        f"## Licences\n\n{LICENCES}",
        "## Limits\n\nIt has learnt the taste of its scorers, labels or raters, with their deafness. The intervals are "
        "over captions: another training seed may differ by more. What the base cannot say, it cannot say either.",
    ]
    return "\n\n".join(parts) + "\n"


def own_card(recipe: Mapping[str, Any], last: Mapping[str, Any], made_by: Sequence[tuple[str, str]]) -> str:
    """The card of a model that was trained on own data, without a run; `last` is the training's last row of curves."""
    base, train = recipe["model"], recipe["train"]
    measured = [(words, f"{last[name]:.4g}") for name, words in MEASURED.items() if last.get(name) is not None]
    data = [
        f"- {what}: {code(recipe['data'][what])}" for what in ("pairs", "clips") if recipe["data"][what] is not None
    ]
    steps = f"{last['step']:,} of {last['total']:,} steps"
    parts = [
        _head(recipe["name"], train["phases"]),
        f"# {recipe['name']}",
        f"A text-to-audio latent diffusion model: {code(base)}, whose U-Net was trained by Milonga on one's own data.",
        _load(base),
        f"## Results\n\nIt was not evaluated. Its training ended after {steps} with\n\n{grid(('', ''), measured)}",
        f"## Training\n\n{_phases(train)}\n\n{_settings(train)}",
        "## Data\n\n" + "\n".join(data),
        "## What made it\n\n" + grid(("", ""), made_by),
        f"## Licences\n\n{LICENCES}",
    ]
    return "\n\n".join(parts) + "\n"


MEASURED = {
    "loss": "loss of the last step",
    "heldout_accuracy": "held-out pairs told apart, as a share",
    "heldout_margin": "their margin",
    "heldout_delta_winner": "their winners' error against the reference",
}


def _head(title: str, phases: Sequence[Mapping[str, Any]]) -> str:
    losses = [f"  - {loss}" for loss in dict.fromkeys(phase["loss"] for phase in phases)]
    lines = ["---", f"pretty_name: {json.dumps(title)}", "library_name: diffusers", "pipeline_tag: text-to-audio"]
    return "\n".join([*lines, "tags:", "  - audio", "  - milonga", *losses, "---"])


def _load(base: str) -> str:
    return f"""```python
import milonga

tango = milonga.load("FOLDER")
clip = tango("a dog barks then a bell rings", seeds=[7]).audios[0]  # tango.rate samples a second
```

With diffusers: `DiffusionPipeline.from_pretrained(FOLDER, custom_pipeline=FOLDER, trust_remote_code=True)` gives the
same pipeline, whose class Milonga has to be installed for. Its parts are stock classes and need nothing else:
`UNet2DConditionModel.from_pretrained(FOLDER, subfolder="unet")`, `AutoencoderKL` (vae), `T5EncoderModel`
(text_encoder), `SpeechT5HifiGan` (vocoder). Only the U-Net differs from {code(base)}."""


def _results(material: Material, name: str) -> str:
    """The system's numbers on all captions beside the base's, with 95 % intervals, and what they allow to say."""
    values = told(material.summaries, OVERALL)
    columns = measures(sorted({metric for system, metric in values if system == name}))
    if not columns:
        return "It has not been evaluated."
    against = compared(material.comparisons, name, "base", OVERALL)
    rows = []
    for measure in columns:
        cells = [values.get((system, measure.name)) for system in ("base", name)]
        shown = [f"{measure.value(c.value)} {measure.interval(c.low, c.high)}".strip() if c else "–" for c in cells]
        row = against.get(measure.name)
        gain = f"{measure.change(row.difference)} {measure.interval(row.low, row.high, signed=True)}" if row else "–"
        rows.append((f"{measure.title} {measure.arrow}", *shown, gain, verdict(row) if row else "–"))
    count = max(row.n for (system, _), row in values.items() if system == name)
    stamp = next(row.protocol for (system, _), row in values.items() if system == name)
    head = ("", "base", name, "difference", "")
    return (
        f"On {count:,} held-out captions ({captions(OVERALL)}), same seeds; values and paired differences with 95 % "
        f"intervals.\n\n{grid(head, rows)}\n\nProtocol: {stamp}."
    )


def _phases(system: Mapping[str, Any]) -> str:
    rows = [
        (phase["loss"], str(phase["epochs"]), f"{phase['beta']:g}" if phase["beta"] else "–", _rate(phase))
        for phase in system["phases"]
    ]
    return grid(("loss", "epochs", "β (on mean errors)", "rate"), rows)


def _rate(phase: Mapping[str, Any]) -> str:
    return "as below" if phase["learning_rate"] is None else f"{phase['learning_rate']:g}"


def _settings(train: Mapping[str, Any]) -> str:
    rows = [(key, json.dumps(value)) for key, value in train.items() if key not in ("systems", "pairs")]
    return f"<details><summary>Settings of the trainer</summary>\n\n{grid(('key', 'value'), rows)}\n\n</details>"


def _data(material: Material, system: Mapping[str, Any], recipe: Mapping[str, Any]) -> str:
    """Where what it learnt from came from, and how much there was."""
    lines = [f"- captions: {', '.join(map(code, recipe['prompts']['sources'])) or 'none of its own'}"]
    if system["data"] == "pairs":
        lines.append(f"- pairs: {', '.join(map(code, recipe['train']['pairs']))} (`run`: the run's own)")
    if system["data"] in ("rewards", "labels"):
        lines.append(f"- labels: {', '.join(map(code, recipe['label']['sources']))} (`truth`: the tagger's)")
    if system["data"] == "rewards":
        lines.append(f"- {reward_told(material.reward)}")
    for one in material.rounds.get(system["name"], [])[1:]:
        lines.append(f"- round {one.number}: {one.clips:,} clips, {one.pairs:,} pairs")
    table = ""
    if system["data"] == "pairs" and material.kept and "run" in recipe["train"]["pairs"]:
        rows = [(r.strategy, str(r.made), str(r.kept), r.winner, r.loser, r.delta) for r in pair_rows(material)]
        table = "\n\n" + grid(("strategy", "pairs made", "kept", "winner", "loser", "delta"), rows)
    return "\n".join(lines) + table
