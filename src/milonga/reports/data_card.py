"""The data card of exported pairs: README.md with Table 2, why pairs were refused, and Figure 2 as SVG files."""

import json
from collections.abc import Mapping, Sequence

from milonga.reports.material import Material
from milonga.reports.tables import figure2, first_scorer, pair_rows, refused_by

SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
# Beside the page's style sheet, which a picture of its own does not see; readable on light and on dark pages.
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
| `prompt` | the caption that both clips stand for |
| `chosen`, `rejected` | the winner and the loser: the bytes of a FLAC file |
| `strategy` | how the loser came about |
| `chosen_id`, `rejected_id`, `id`, `prompt_id` | names made from content: the same thing has the same one everywhere |
| `chosen_words`, `rejected_words` | the words that the clip was really made from; a loser's may be perturbed |
| `…_steps`, `…_guidance`, `…_seed` | how it was sampled: with the model, enough to make it again |
| `…_scores` | its similarity with `prompt` by each scorer |
| `model`, `model_hash`, `scorer_hashes` | who made and who scored the clips, with hashes of their weights |"""
LOAD = """```python
from datasets import Audio, load_dataset

pairs = load_dataset("FOLDER")  # or "USER/NAME", where it is on the Hub
# Where torchcodec is not installed, take the bytes as they are and decode them with soundfile:
pairs = pairs.cast_column("chosen", Audio(decode=False)).cast_column("rejected", Audio(decode=False))
```

Milonga reads it, like the published `declare-lab/audio-alpaca`, by `milonga.data.audio_alpaca.read_alpaca(FOLDER)`."""


def figures(material: Material) -> dict[str, str]:
    """Figure 2 of every scorer as SVG files of their own, by file name: the α and Δ of all pairs before the filter."""
    found = {}
    for number, (_, svg) in enumerate(figure2(material)):
        head, _, body = str(svg).partition(">")
        found[f"figure2-{number}.svg"] = f"{head.replace('<svg', SVG, 1)}>{STYLE}{body}\n"
    return found


def card(material: Material, splits: Mapping[str, int], made_by: Sequence[tuple[str, str]]) -> str:
    """The card as Markdown with its YAML head; `splits` gives each split's pairs, `made_by` (what, value) lines."""
    name, total = material.name, sum(splits.values())
    parts = [
        _head(f"{name}: preference pairs", total, splits),
        f"# {name}: preference pairs for text-to-audio",
        f"{total} pairs of clips, each a winner and a loser for one caption, made without listeners: a text-to-audio "
        "model makes several clips of a caption, scorers rank them, and a filter keeps the pairs that are clear. The "
        "method is that of Audio-alpaca (Tango 2, arXiv 2404.09956, §4.1).",
        "Splits by caption, so that none is in two of them: "
        + ", ".join(f"`{split}` {count}" for split, count in splits.items())
        + ".",
        LOAD,
        f"## Columns\n\n{COLUMNS}",
        f"## What was kept\n\nMean scores of the kept pairs by {code(first_scorer(material))}.\n\n{_table2(material)}",
        _thresholds(material),
        _refusals(material),
        f"## Before the filter\n\n{_figures(material)}",
        "## What made it\n\n" + grid(("", ""), made_by),
        "## Limits\n\nNobody has listened to these pairs. A winner is what the scorers above prefer, with their taste "
        "and their deafness: a model trained on them learns both. Judge it by listeners that took no part here.",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _head(title: str, total: int, splits: Mapping[str, int]) -> str:
    size = next((name for limit, name in SIZES if total < limit), "n>1M")
    files = [f'      - split: {split}\n        path: "data/{split}-*.parquet"' for split in splits]
    lines = [
        "---", f"pretty_name: {json.dumps(title)}", "task_categories:", "  - text-to-audio", "tags:", "  - audio",
        "  - preference", "  - dpo", "size_categories:", f"  - {size}", "configs:", "  - config_name: default",
        "    data_files:", *files, "---",
    ]  # fmt: skip
    return "\n".join(lines)


def _table2(material: Material) -> str:
    head = ("strategy", "pairs made", "kept", "winner", "loser", "delta")
    rows = [(r.strategy, str(r.made), str(r.kept), r.winner, r.loser, r.delta) for r in pair_rows(material)]
    return grid(head, rows)


def _thresholds(material: Material) -> str:
    head = ("scorer", "winner at least (α)", "loser at least (β)", "Δ at least", "Δ at most")
    rows = [
        (t.scorer, *(f"{bound:g}" for bound in (t.alpha, t.beta, t.delta_low, t.delta_high)))
        for t in material.thresholds
    ]
    return f"A pair met all of these:\n\n{grid(head, rows)}" if rows else "No threshold was set."


def _refusals(material: Material) -> str:
    rows = [(reason, str(count)) for reason, count in refused_by(material)]
    return f"The others were refused:\n\n{grid(('reason', 'pairs'), rows)}" if rows else "No pair was refused."


def _figures(material: Material) -> str:
    shown = [
        f"![{_plain(title)}](figures/{file})"
        for (title, _), file in zip(figure2(material), figures(material), strict=True)
    ]
    told = "Scores of all pairs whose winner scores higher, kept (green) and refused (grey); dashed: the thresholds."
    return "\n\n".join([told, *shown])


def grid(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; what would break it is escaped."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(_plain, line)) + " |" for line in lines)


def _plain(text: str) -> str:
    """Text that Markdown shows as it is."""
    escaped = text.replace("\\", "\\\\")
    for sign in "|[]<>*_`":
        escaped = escaped.replace(sign, f"\\{sign}")
    return " ".join(escaped.split())


def code(text: str) -> str:
    return f"`{text.replace('`', '')}`"
