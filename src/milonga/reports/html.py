"""The page of an evaluation, and the report of a run, which adds its pairs, training, recipe and manifest.

One self-contained HTML file: style and script are inline, audio and pictures are data URIs, and a content security
policy allows nothing else but clips beside a leaderboard that was asked for them. Text from the run is escaped
everywhere. The same run gives the same bytes.
"""

import tomllib
from base64 import b64encode
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

from milonga.core import web
from milonga.core.store import write_text
from milonga.evaluation.formatting import OVERALL, compared, in_table_order, protocols, split_words
from milonga.reports import tables
from milonga.reports.claim import claim
from milonga.reports.gallery import REASONS, gallery
from milonga.reports.material import EvaluationView, RunMaterial, read_material


def write_report(run_path: Path) -> Path:
    """Writes `report.html` into a run folder and gives back its path; the page says what the run does not hold yet.

    Raises StoreError when `run_path` is no run folder or a file in it is damaged.
    """
    path, material = Path(run_path) / "report.html", read_material(Path(run_path))
    write_text(path, page(material.evaluation, material))
    return path


def page(view: EvaluationView, run: RunMaterial | None = None) -> str:
    """The page of an evaluation as HTML; with `run`, the report of that run."""
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    loader = PackageLoader("milonga.reports", "templates/report")
    pages = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    style, script = (loader.get_source(pages, name)[0] for name in ("style.css", "script.js"))
    style = web.page(*web.SHARED["/page/player.css"]) + style
    script = "".join(web.page(*web.SHARED[f"/page/{name}"]) for name in ("parts.js", "player.js")) + script
    digest = b64encode(sha256(script.encode()).digest()).decode()
    systems = in_table_order(
        [row.system for row in view.summaries]
        + [name for row in view.comparisons for name in (row.b, row.a)]
        + [*(run.training if run else ()), *view.clips]
    )
    content = evaluation_content(view, systems, ranked=run is None) | (run_content(run, systems) if run else {})
    # Style and script are this package's own files, not data of the run.
    return pages.get_template("page.html").render(
        style=Markup(style), script=Markup(script), digest=digest, whole=run is not None, **content
    )


def evaluation_content(view: EvaluationView, systems: list[str], ranked: bool = False) -> dict[str, Any]:
    """What the page shows of an evaluation, by name; empty lists stand for parts that are not there yet."""
    subject = subject_of(systems, view.baseline)
    others = [name for name in systems if name not in (view.baseline, "reference", subject)]
    pairs = [compared(view.comparisons, subject, other, OVERALL) for other in [view.baseline, *others]]
    splits = sorted(dict.fromkeys(row.split for row in view.comparisons), key=lambda name: name != OVERALL)
    cards = gallery(view, systems, subject)
    return {
        "name": view.name,
        "baseline": view.baseline,
        "warnings": view.warnings,
        "subject": subject,
        "systems": systems,
        "colours": {name: place % tables.COLOURS for place, name in enumerate(systems)},
        "claims": [sentence for rows in pairs if (sentence := claim(rows, view.sources))],
        "headlines": [(split_words(split), tables.headline(view, split, systems)) for split in splits],
        "tables": tables.result_tables(view, ranked),
        "splits": list(dict.fromkeys(row.split for row in view.summaries)),
        "files": view.files,
        "cards": cards,
        "clap_title": view.sources.get("clap_title", "CLAP"),
        "tags": sorted({tag for card in cards for tag in card.prompt.tags}),
        "reasons": [reason for reason in REASONS if any(card.reason == reason for card in cards)],
        "labels": sorted({label for card in cards for label in card.labels}),
        "prompts": len(view.prompts),
        "protocols": protocols(view.summaries, view.sources),
        "agreement": view.agreement,
        "ratings": view.ratings,
        "controls": set(),
        "notes": {},
        "searches": [],
        "recipe": "",
        "facts": [],
    }


def run_content(run: RunMaterial, systems: list[str]) -> dict[str, Any]:
    """What the report of a run shows beside its evaluation."""
    curves = [(name, tables.training_curves(run.training[name])) for name in systems if name in run.training]
    recipe = toml_tables(run.recipe)
    return {
        "controls": controls(recipe),
        "notes": {one["name"]: one.get("note") for one in recipe.get("evaluate", {}).get("models", ())},
        "pair_rows": tables.pair_rows(run),
        "refusals": tables.refused_by(run),
        "figure2": tables.figure2(run),
        "training": curves,
        "left_out": run.left_out,
        "rounds": tables.round_tables(run.rounds),
        "reward": tables.reward_sentence(run.reward),
        "searches": tables.search_curves(run.searches),
        "costs": tables.search_costs(run.searches),
        "recipe": run.recipe,
        "facts": facts(run.manifest),
    }


def subject_of(systems: list[str], baseline: str = "base") -> str:
    """The system that the report is about: `aligned`, else the last one that was trained, else the base."""
    trained = [name for name in systems if name not in (baseline, "reference")]
    return "aligned" if "aligned" in trained else [baseline, *trained][-1]


def controls(recipe: dict[str, Any]) -> set[str]:
    """The systems of a recipe that are trained further and aligned to nothing: all of their phases only denoise."""
    systems = recipe.get("train", {}).get("systems", [])
    return {one["name"] for one in systems if {phase["loss"] for phase in one["phases"]} <= {"sft", "ldm"}}


def toml_tables(recipe: str) -> dict[str, Any]:
    """A recipe's text as tables; none where it is not TOML: a report is made of an edited recipe too."""
    try:
        return tomllib.loads(recipe)
    except tomllib.TOMLDecodeError:
        return {}


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
