"""The report stage: a run folder becomes one self-contained HTML file, whatever of the run is there.

No network, no framework: style and script are inline, audio and pictures are data URIs, and a content security policy
allows nothing else. Text from the run is escaped everywhere. The same run gives the same bytes.
"""

import tomllib
from base64 import b64encode
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

from milonga.core.store import write_text


def write_report(run_path: Path) -> Path:
    """Writes `report.html` into a run folder and gives back its path; what the run does not hold yet is said there.

    Raises StoreError when `run_path` is no run folder or a file in it is damaged.
    """
    from milonga.reports.material import read_material

    path = Path(run_path) / "report.html"
    write_text(path, page(read_material(Path(run_path))))
    return path


def page(material: Any) -> str:
    """The report of a run's material (`report_material.Material`) as HTML."""
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    loader = PackageLoader("milonga.reports", "templates/report")
    pages = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    style, script = (_source(pages, name) for name in ("style.css", "script.js"))
    digest = b64encode(sha256(script.encode()).digest()).decode()
    view = contents(material)
    # Both are this package's own files, not data of the run.
    return pages.get_template("page.html").render(style=Markup(style), script=Markup(script), digest=digest, **view)


def contents(material: Any) -> dict[str, Any]:
    """Everything that the page shows, by name; empty lists stand for parts that the run does not have yet."""
    from milonga.evaluation.numbers import COLOURS, OVERALL, captions, compared, ordered, stamps
    from milonga.reports import tables
    from milonga.reports.claim import claim
    from milonga.reports.gallery import REASONS, gallery
    from milonga.reports.rounds import reward_told, rounds_shown

    compared_ones = [name for row in material.comparisons for name in (row.b, row.a)]
    systems = ordered(
        [row.system for row in material.summaries] + compared_ones + [*material.training, *material.heard]
    )
    subject = subject_of(systems, material.baseline)
    others = [name for name in systems if name not in (material.baseline, "reference", subject)]
    claims = [claim(compared(material.comparisons, subject, other, OVERALL)) for other in [material.baseline, *others]]
    splits = sorted(dict.fromkeys(row.split for row in material.comparisons), key=lambda name: name != OVERALL)
    cards = gallery(material, systems, subject)
    return {
        "name": material.name,
        "baseline": material.baseline,
        "whole": material.whole,
        "warnings": material.warnings,
        "tags": sorted({tag for card in cards for tag in card.prompt.tags}),
        "subject": subject,
        "systems": systems,
        "colours": {name: place % COLOURS for place, name in enumerate(systems)},
        "claims": [found for found in claims if found],
        "controls": controls(material.recipe),
        "headlines": [(captions(split), tables.headline(material, split, systems)) for split in splits],
        "pair_rows": tables.pair_rows(material),
        "refusals": tables.refused_by(material),
        "figure2": tables.figure2(material),
        "tables": tables.result_tables(material),
        "training": [
            (name, tables.training_curves(material.training[name])) for name in systems if name in material.training
        ],
        "rounds": rounds_shown(material.rounds),
        "reward": reward_told(material.reward),
        "cards": cards,
        "reasons": [reason for reason in REASONS if any(card.reason == reason for card in cards)],
        "labels": sorted({label for card in cards for label in card.labels}),
        "prompts": len(material.prompts),
        "recipe": material.recipe,
        "facts": facts(material.manifest),
        "stamps": stamps(material.summaries),
    }


def subject_of(systems: list[str], baseline: str = "base") -> str:
    """The system that the report is about: `aligned`, else the last one that was trained, else the base."""
    trained = [name for name in systems if name not in (baseline, "reference")]
    return "aligned" if "aligned" in trained else [baseline, *trained][-1]


def controls(recipe: str) -> set[str]:
    """The systems of a recipe's text that are fine-tuned and aligned to nothing: all of their phases are SFT."""
    try:
        systems = tomllib.loads(recipe).get("train", {}).get("systems", [])
    except tomllib.TOMLDecodeError:
        return set()
    return {one["name"] for one in systems if all(phase["loss"] == "sft" for phase in one["phases"])}


def facts(manifest: Mapping[str, Any]) -> list[tuple[str, list[tuple[str, str]]]]:
    """The manifest as titled lists of (name, value), whatever is in it."""
    loose = [(key, str(value)) for key, value in manifest.items() if not isinstance(value, Mapping)]
    groups = [(key, _flat(value)) for key, value in manifest.items() if isinstance(value, Mapping)]
    return ([("run", loose)] if loose else []) + groups


def _flat(table: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    rows = []
    for key, value in table.items():
        inner = isinstance(value, Mapping)
        rows += _flat(value, f"{prefix}{key}.") if inner else [(f"{prefix}{key}", str(value))]
    return rows


def _source(pages: Any, name: str) -> str:
    return pages.loader.get_source(pages, name)[0]
