"""The commands that judge clips: `milonga evaluate` by metrics, `milonga listen ...` and `milonga studio` by people.

The options of `evaluate` are the fields of `EvalConfig`.
"""

import inspect
from collections.abc import Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from milonga.cli.errors import handle_errors, say, show_page
from milonga.evaluation import EvalConfig

if TYPE_CHECKING:
    from milonga.studio.worker import System

listen = typer.Typer(no_args_is_help=True, help="Run a listening test: opinion scores and blind comparisons by people.")
Folder = Annotated[Path, typer.Argument(metavar="TEST", help="A folder that `milonga listen make` wrote.")]
Host = Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for all.")]
Port = Annotated[int, typer.Option(help="Port to listen on; 0 picks a free one.", min=0, max=65535)]


@listen.command("make")
@handle_errors
def make(
    source: Annotated[
        Path, typer.Argument(metavar="SOURCE", help="A run folder, or a folder with one folder of audio per system.")
    ],
    out: Annotated[Path, typer.Option(help="The test folder to create.")],
    captions: Annotated[
        Path | None, typer.Option(metavar="CSV", help="Columns clip and caption, for folders of audio files.")
    ] = None,
    systems: Annotated[
        list[str] | None, typer.Option("--system", metavar="NAME", help="Include only this system; may be repeated.")
    ] = None,
    reference: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="The system of real clips.", show_default="reference, if it exists"),
    ] = None,
    kinds: Annotated[
        list[str] | None, typer.Option("--kind", metavar="KIND", help="rate or compare.", show_default="both")
    ] = None,
    prompts: Annotated[
        int | None, typer.Option(help="Number of prompts to judge.", min=1, show_default="all but three")
    ] = None,
    per_rater: Annotated[int, typer.Option(help="Prompts per rater.", min=1)] = 8,
    raters: Annotated[int, typer.Option(help="Target number of raters per clip.", min=1)] = 4,
    seed: Annotated[
        int | None,
        typer.Option(help="Seed of the choice and order of prompts; keep it secret.", min=0, show_default="random"),
    ] = None,
    title: Annotated[str, typer.Option(help="Title of the raters' page.")] = "Listening test",
) -> None:
    """Make a listening test from systems' clips and print its folder."""
    from milonga.listening_test.material import make_test, quieter
    from milonga.listening_test.sources import load_sources, plan_of

    test_prompts, clips = load_sources(source, captions, systems or ())
    plan = plan_of(list(clips), title, kinds or (), reference, prompts, per_rater, raters, seed)
    test = make_test(out, plan, test_prompts, clips)
    say(f"{len(test.prompts)} prompts, systems {', '.join(test.systems)}; reference: {test.reference or 'none'}")
    if quieter(test):
        say(f"{quieter(test)} clips stay quieter than the others: a louder gain would clip their peaks")
    typer.echo(out)


@listen.command("links")
@handle_errors
def links(
    test: Folder,
    number: Annotated[int, typer.Option("-n", help="Number of raters.", min=1, max=500)] = 1,
    url: Annotated[str, typer.Option(help="Address at which raters reach the server.")] = "http://127.0.0.1:8000",
) -> None:
    """Invite raters: print one new personal link per rater."""
    from milonga.listening_test.sources import invitation_links

    for link in invitation_links(test, number, url):
        typer.echo(link)


@listen.command("serve")
@handle_errors
def serve(test: Folder, host: Host = "127.0.0.1", port: Port = 8000) -> None:
    """Serve the test until interrupted and print the admin page's link. All ratings are saved."""
    from milonga.listening_test.server import serve as serve_test

    serve_test(test, host, port, typer.echo)


@listen.command("results")
@handle_errors
def results(test: Folder, as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Show mean opinion scores, agreement and preferences with 95 % intervals, and excluded raters with reasons."""
    from milonga.listening_test.results import as_json as results_json
    from milonga.listening_test.results import as_text, compute_results
    from milonga.listening_test.sessions import Sessions

    sessions = Sessions(test)
    summary = compute_results(sessions.test, sessions.ratings.ratings(sessions.test), sessions.verdicts())
    typer.echo(results_json(summary) if as_json else as_text(summary))


@listen.command("export")
@handle_errors
def export(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="The folder of a listening test or a studio.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="A .csv or .parquet file, or a folder to create.")],
    form: Annotated[str, typer.Option("--as", metavar="FORM", help="table, takes, pairs or labels.")] = "table",
) -> None:
    """Write ratings or takes as a table, or as preference pairs or KTO labels with their clips, and print the path."""
    from milonga.studio.export import export as export_folder

    typer.echo(export_folder(folder, out, form))


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
    by: Annotated[
        str | None,
        typer.Option(
            metavar="SCORER[,SCORER...]",
            help="Scorers that rank a prompt's takes, so that the best can be shown first.",
            show_default="nano's two CLAPs and nano-events, for nano only",
        ),
    ] = None,
) -> None:
    """Type a prompt in the browser, hear variations, keep or discard them. Decisions become preference data."""
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
