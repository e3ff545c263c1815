"""`milonga.evaluate`, and the page of its result: tables, plots, pictures and players."""

from dataclasses import fields, replace
from math import nan
from pathlib import Path
from typing import Any

from milonga.core.audio import flac_bytes
from milonga.core.ids import content_id
from milonga.core.records import Clip, Prompt
from milonga.core.store import write_bytes, write_json, write_text
from milonga.evaluation import EvalConfig
from milonga.evaluation.evaluate import evaluate as run_evaluation
from milonga.evaluation.features import SystemFeatures
from milonga.evaluation.formatting import OVERALL, Evaluation, agreement_tables, plain_rows
from milonga.evaluation.inputs import REFERENCE
from milonga.reports.exports import table_files
from milonga.reports.html import page
from milonga.reports.material import ClipView, EvaluationView


class EvaluationResult(Evaluation):
    """An evaluation's `summaries`, `comparisons` and `warnings`; prints as the command's table; can be saved."""

    def save(self, folder: Path | str, audio: bool = False) -> Path:
        """Writes the result into a folder (`save_evaluation`); gives the page's path."""
        return save_evaluation(self, Path(folder), audio)


def evaluate(
    *sources: Path | str,
    reference: Path | str | None = None,
    captions: Path | str | None = None,
    out: Path | str | None = None,
    audio: bool = False,
    **options: Any,
) -> EvaluationResult:
    """Evaluates systems' clips, as the command `milonga evaluate` does.

    `sources` are a run folder, folders of audio files (`DIR` or `NAME=DIR`, the last the real clips where `reference`
    names none), or one CSV; `captions` is a CSV with the columns clip and caption. `options` are the fields of
    `evaluation.EvalConfig`: `weights`, `metrics` (names, or `Metric` objects), `scorers` (names, or objects with `name`
    and `score(clips, texts)`; also `claps`), `tagger`, `panns`, `vggish`, `seed`, … With `out`, the result is saved
    there, with `audio` clips to listen to as well. Raises a MilongaError in one line for what cannot be evaluated,
    audio without named weights among it.
    """
    if "claps" in options:
        options["scorers"] = (*options.get("scorers", ()), *options.pop("claps"))
    real, words = (None if path is None else Path(path) for path in (reference, captions))
    evaluation = run_evaluation([str(source) for source in sources], real, words, EvalConfig.of(options))
    result = EvaluationResult(**{one.name: getattr(evaluation, one.name) for one in fields(Evaluation)})
    if out is not None:
        result.save(out, audio)
    return result


def save_evaluation(evaluation: Evaluation, folder: Path, audio: bool = False) -> Path:
    """Writes summary.json and comparisons.json in a run's form, agreement.json where there are ratings, every
    table as CSV and LaTeX (`tables/`), and leaderboard.html, with `audio` the clips of its gallery beside it
    (`audio/`); gives the page's path."""
    write_json(folder / "summary.json", plain_rows(evaluation.summaries))
    write_json(folder / "comparisons.json", plain_rows(evaluation.comparisons))
    if evaluation.agreement:
        write_json(folder / "agreement.json", plain_rows(evaluation.agreement))
    view = view_of(evaluation)
    files = table_files(view)
    for name, text in files.items():
        write_text(folder / name, text)

    def place_clip(system: str, clip: str, data: bytes) -> str:
        name = f"audio/{content_id(system, clip)}.flac"
        write_bytes(folder / name, data)
        return name

    placed = replace(view, files=tuple(files), read_clips=view.read_clips if audio else None, place_clip=place_clip)
    write_text(folder / "leaderboard.html", page(placed))
    return folder / "leaderboard.html"


def view_of(evaluation: Evaluation) -> EvaluationView:
    """An evaluation as its page shows it; without captions a clip's name stands for its prompt."""
    inputs, prompts = evaluation.inputs, {}
    for key in sorted(set().union(*evaluation.splits.values())):
        known = inputs.prompts.get(key, Prompt(id=key, text=key, source="file"))
        tags = tuple(name for name, keys in evaluation.splits.items() if name != OVERALL and key in keys)
        prompts[key] = known.model_copy(update={"id": key, "tags": tags})

    def read_clips(system: str, names: set[str]) -> dict[str, bytes]:
        side = inputs.reference if system == REFERENCE else inputs.systems[system]
        audio = ((key, *side[key].samples()) for key in names)
        return {key: flac_bytes(Clip(samples.mean(axis=1), rate)) for key, samples, rate in audio}

    def clips(system: SystemFeatures) -> dict[str, ClipView]:
        side = inputs.reference if system.name == REFERENCE else inputs.systems[system.name]
        clap, events = system.columns.get("clap", {}), system.columns.get("events", {})
        keys = (key for key in side if key in prompts)
        return {key: ClipView(key, key, float(clap.get(key, nan)), events.get(key, ())) for key in keys}

    views = {system.name: clips(system) for system in evaluation.systems}
    return EvaluationView(
        name=inputs.name,
        read_clips=read_clips,
        summaries=evaluation.summaries,
        comparisons=evaluation.comparisons,
        prompts=prompts,
        clips={name: clips for name, clips in views.items() if clips},
        baseline="base" if "base" in inputs.systems else next(iter(inputs.systems)),
        warnings=tuple(evaluation.warnings),
        sources=evaluation.sources,
        agreement=agreement_tables(evaluation),
        ratings=evaluation.ratings,
    )
