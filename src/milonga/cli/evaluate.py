"""The command `milonga evaluate`; its options are the fields of `EvalConfig`."""

import inspect
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Annotated, Any

import typer

from milonga.cli.errors import handle_errors, say
from milonga.evaluation import EvalConfig

SOURCES = typer.Argument(
    metavar="SOURCE...",
    help="A run folder; folders of audio files (DIR or NAME=DIR), the last being the reference; or a .csv.",
    show_default=False,
)
REFERENCE = typer.Option(metavar="DIR", help="Real clips; all folders before are then systems.")
CAPTIONS = typer.Option(metavar="CSV", help="Columns clip and caption, and any to split by.")
OUT = typer.Option(metavar="DIR", help="Write summary, comparisons and leaderboard.html there.")
JSON = typer.Option("--json", help="For programs.")


def _evaluate(
    sources: list[str], reference: Path | None, captions: Path | None, out: Path | None, as_json: bool, **options: Any
) -> None:
    """Evaluate systems' clips: Tables 3 to 5 with 95 % intervals, paired differences, and their protocol."""
    from milonga.evaluation.evaluate import evaluate
    from milonga.evaluation.formatting import as_json as to_json
    from milonga.reports.leaderboard import save_evaluation

    result = evaluate(sources, reference, captions, EvalConfig.of(options))
    typer.echo(to_json(result) if as_json else str(result))
    if out is not None:
        say(f"leaderboard: {save_evaluation(result, out)}")


def _signature() -> inspect.Signature:
    """The command's parameters: its inputs, an option for each field of `EvalConfig`, its outputs."""

    def parameter(name: str, annotation: Any, default: Any) -> inspect.Parameter:
        return inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=annotation, default=default)

    rows = [
        parameter("sources", Annotated[list[str], SOURCES], inspect.Parameter.empty),
        parameter("reference", Annotated[Path | None, REFERENCE], None),
        parameter("captions", Annotated[Path | None, CAPTIONS], None),
    ]
    for one in fields(EvalConfig):
        settings = dict(one.metadata)
        flags = settings.pop("flags")
        default = None if one.default in (MISSING, ()) else one.default
        kind = list[str] | None if one.default == () else one.type
        rows.append(parameter(one.name, Annotated[kind, typer.Option(*flags, **settings)], default))
    rows += [
        parameter("out", Annotated[Path | None, OUT], None),
        parameter("as_json", Annotated[bool, JSON], False),
    ]
    return inspect.Signature(rows, return_annotation=None)


evaluate = handle_errors(_evaluate)
evaluate.__name__ = "evaluate"
evaluate.__signature__ = _signature()  # pyright: ignore[reportFunctionMemberAccess]
evaluate.__annotations__ = {name: row.annotation for name, row in evaluate.__signature__.parameters.items()}  # pyright: ignore[reportFunctionMemberAccess]
