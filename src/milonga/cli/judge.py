"""The commands that judge clips: `milonga evaluate` by metrics and `milonga studio` by a person.

The options of `evaluate` are the fields of `EvalConfig`.
"""

import inspect
from collections.abc import Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from milonga.cli.common import handle_errors, say, show_page
from milonga.cli.listen import Host, Port
from milonga.evaluation import EvalConfig

if TYPE_CHECKING:
    from milonga.studio.worker import System


@handle_errors
def studio(
    systems: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[SYSTEM]...", help="A model's name or folder, RUN, or RUN/SYSTEM.", show_default="nano"
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for takes and decisions.")] = Path("studio"),
    host: Host = "127.0.0.1",
    port: Port = 8000,
    no_open: Annotated[bool, typer.Option("--no-open", help="Print the link without opening a browser.")] = False,
    new_link: Annotated[
        bool, typer.Option("--new-link", help="Make a new link; the one before is no longer valid.")
    ] = False,
    by: Annotated[
        str | None,
        typer.Option(
            metavar="SCORER[,SCORER...]",
            help="Scorers that rank a prompt's takes, so that the best can be shown first.",
            show_default="nano's two CLAPs and nano-events, for nano only",
        ),
    ] = None,
) -> None:
    """Type a prompt in the browser, hear variations, edit, keep or discard them. Decisions become preference data."""
    import contextlib

    from milonga.core.weights import SELECTORS
    from milonga.scorers.load import scorer
    from milonga.studio.server import serve as serve_studio
    from milonga.studio.studio import Studio

    names = [name.strip() for name in (by or "").split(",") if name.strip()]
    if by is None and set(systems or ("nano",)) == {"nano"}:
        names = SELECTORS
    with contextlib.suppress(KeyboardInterrupt):  # Ctrl-C is the normal way to stop the server
        page = Studio(out, studio_systems(systems or ("nano",)), [scorer(name) for name in names])
        if new_link:
            page.takes.renew_admin_token()
        serve_studio(page, host, port, lambda link: show_page(link, no_open))


def studio_systems(names: Sequence[str]) -> "list[System]":
    """Named systems as the studio offers them; a model is loaded when its first clip is generated.

    Raises RecipeError or CheckpointError for a system that does not exist.
    """
    from milonga.models.load import systems
    from milonga.studio.worker import System

    return [System(own.name, own.fingerprint(), *own.sampling(), own.load) for own in systems(names)]


SOURCES = typer.Argument(
    metavar="SOURCE...",
    help="A run folder; folders of audio files (DIR or NAME=DIR), the last being the reference; or a .csv.",
    show_default=False,
)
REFERENCE = typer.Option(metavar="DIR", help="Real clips; all folders before are then systems.")
CAPTIONS = typer.Option(metavar="CSV", help="Columns clip and caption, and any to split by.")
OUT = typer.Option(metavar="DIR", help="Write summary, comparisons and leaderboard.html there.")
AUDIO = typer.Option("--audio", help="With --out: write clips to listen to beside the leaderboard.")
JSON = typer.Option("--json", help="For programs.")


def _evaluate(
    sources: list[str], reference: Path | None, captions: Path | None, out: Path | None, audio: bool, as_json: bool,
    **options: Any,
) -> None:  # fmt: skip
    """Evaluate systems' clips: Tables 3 to 5 with 95 % intervals, paired differences, and their protocol."""
    from milonga.evaluation.evaluate import evaluate
    from milonga.evaluation.formatting import as_json as to_json
    from milonga.reports.leaderboard import save_evaluation

    result = evaluate(sources, reference, captions, EvalConfig.of(options))
    typer.echo(to_json(result) if as_json else str(result))
    if out is not None:
        say(f"leaderboard: {save_evaluation(result, out, audio)}")


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
        parameter("audio", Annotated[bool, AUDIO], False),
        parameter("as_json", Annotated[bool, JSON], False),
    ]
    return inspect.Signature(rows, return_annotation=None)


evaluate = handle_errors(_evaluate)
evaluate.__name__ = "evaluate"
evaluate.__signature__ = _signature()  # pyright: ignore[reportFunctionMemberAccess]
evaluate.__annotations__ = {name: row.annotation for name, row in evaluate.__signature__.parameters.items()}  # pyright: ignore[reportFunctionMemberAccess]
