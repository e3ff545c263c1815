"""The commands of listening tests: `milonga listen make`, `links`, `serve`, `results`, `export`."""

from pathlib import Path
from typing import Annotated

import typer

from milonga.cli.common import AsJson, handle_errors, say

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
        list[str] | None,
        typer.Option(
            "--kind", metavar="KIND", help="rate, compare or mushra; may be repeated.", show_default="rate and compare"
        ),
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
    from milonga.listening_test.material import make_test, played_loudness
    from milonga.listening_test.sources import load_sources, plan_of

    test_prompts, clips = load_sources(source, captions, systems or ())
    plan = plan_of(list(clips), title, kinds or (), reference, prompts, per_rater, raters, seed)
    test = make_test(out, plan, test_prompts, clips)
    say(f"{len(test.prompts)} prompts, systems {', '.join(test.systems)}; reference: {test.reference or 'none'}")
    for name, level, distance in played_loudness(test):
        say(f"{name}: {level:.1f} LUFS on average, within a prompt at most {distance:.1f} dB below the loudest clip")
    typer.echo(out)


@listen.command("links")
@handle_errors
def links(
    test: Folder,
    number: Annotated[int, typer.Option("-n", help="Number of raters.", min=1, max=500)] = 1,
    url: Annotated[
        str | None,
        typer.Option(help="Address at which raters reach the server.", show_default="that of the last serve"),
    ] = None,
) -> None:
    """Invite raters: print one new personal link per rater."""
    from milonga.listening_test.sources import invitation_links

    for link in invitation_links(test, number, url):
        typer.echo(link)


@listen.command("serve")
@handle_errors
def serve(
    test: Folder,
    host: Host = "127.0.0.1",
    port: Port = 8000,
    url: Annotated[
        str | None, typer.Option(help="Address at which raters reach the server, such as https://lab.org/listen.")
    ] = None,
) -> None:
    """Serve the test until interrupted and print the admin page's link. All ratings are saved."""
    from milonga.listening_test.server import serve as serve_test

    serve_test(test, host, port, url, typer.echo)


@listen.command("texts")
@handle_errors
def texts() -> None:
    """Print all texts of the raters' page in the form of a page.toml, to be reworded or translated."""
    from milonga.listening_test.page import texts_toml

    typer.echo(texts_toml(), nl=False)


@listen.command("results")
@handle_errors
def results(
    test: Folder,
    as_json: AsJson = False,
    form: Annotated[
        str, typer.Option("--format", metavar="FORMAT", help="text, markdown, latex, csv or json.")
    ] = "text",
    ordinal: Annotated[
        bool, typer.Option("--ordinal", help="Also compare systems by an ordinal mixed model; takes some seconds.")
    ] = False,
) -> None:
    """Show opinion scores, tests, agreement and preferences with 95 % intervals, and excluded raters with reasons."""
    from milonga.listening_test.formatting import format_results
    from milonga.listening_test.results import compute_results
    from milonga.listening_test.sessions import Sessions

    sessions = Sessions(test, archive=True)
    summary = compute_results(sessions.test, *sessions.judgements(), ordinal=ordinal)
    typer.echo(format_results(summary, "json" if as_json else form))


@listen.command("plan")
@handle_errors
def plan(
    test: Annotated[
        Path | None,
        typer.Argument(metavar="[TEST]", help="A test with ratings, such as a pilot, to take spreads from."),
    ] = None,
    width: Annotated[float, typer.Option(help="Half the width of the 95 % intervals, in points of the scale.")] = 0.2,
    per_rater: Annotated[int, typer.Option(help="Prompts per rater.", min=1)] = 8,
) -> None:
    """Show how many raters an interval of a given width takes, for several numbers of prompts."""
    from milonga.listening_test.formatting import plan_text

    typer.echo(plan_text(test, width, per_rater))


@listen.command("export")
@handle_errors
def export(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="The folder of a listening test or a studio.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="A .csv or .parquet file, or a folder to create.")],
    form: Annotated[
        str, typer.Option("--as", metavar="FORM", help="table, history, raters, takes, pairs or labels.")
    ] = "table",
) -> None:
    """Write ratings or takes as a table, or as preference pairs or KTO labels with their clips, and print the path."""
    from milonga.studio.export import export as export_folder

    typer.echo(export_folder(folder, out, form))


@listen.command("fit")
@handle_errors
def fit(
    sources: Annotated[
        list[str] | None,
        typer.Argument(metavar="[SOURCE]...", help="The rated clips: a run, folders (DIR or NAME=DIR), or a .csv."),
    ] = None,
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="The folder to create; fit:DIR is the scorer's name.")
    ] = Path("fit"),
    ratings: Annotated[
        Path | None,
        typer.Option(metavar="TABLE", help="People's ratings of the clips, as evaluate --against takes them."),
    ] = None,
    captions: Annotated[Path | None, typer.Option(metavar="CSV", help="Columns clip and caption, for folders.")] = None,
    scale: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="The column to learn.", show_default="rel, else the first")
    ] = None,
    pairs: Annotated[
        list[str] | None,
        typer.Option("--pairs", metavar="RUN", help="Pairs to learn from, of a run or an export; may be repeated."),
    ] = None,
    features: Annotated[
        list[str] | None,
        typer.Option("--features", metavar="CLAP", help="A CLAP whose embeddings are the features; may be repeated."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of what is held out.", min=0)] = 0,
) -> None:
    """Learn a scorer from people's ratings and choices, and print how well it predicts people held out."""
    from milonga.core.errors import RecipeError
    from milonga.listening_test.fit import fit as fit_scorer

    if not features:
        raise RecipeError("a scorer is learnt on a CLAP's embeddings: give --features, such as laion-clap:FILE.pt")
    if ratings and not sources:
        raise RecipeError("--ratings are of clips: name them, as a run, folders or a table")
    report = fit_scorer(sources or (), out, features, ratings, captions, scale, pairs or (), seed)
    say(str(report))
    typer.echo(f"fit:{out}")
