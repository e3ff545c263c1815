"""The doors `milonga listen …`: make a test, invite raters, serve it, read its results, export them."""

from pathlib import Path
from typing import Annotated

import typer

from milonga.cli.errors import door, say

listen = typer.Typer(no_args_is_help=True, help="Let people judge clips: opinion scores and blind comparisons.")
Folder = Annotated[Path, typer.Argument(metavar="TEST", help="A folder that `milonga listen make` made.")]


@listen.command("make")
@door
def make(
    source: Annotated[Path, typer.Argument(metavar="SOURCE", help="A run folder, or a folder of systems' folders.")],
    out: Annotated[Path, typer.Option(help="The test folder to make.")],
    captions: Annotated[
        Path | None, typer.Option(metavar="CSV", help="Columns clip and caption, for folders of audio files.")
    ] = None,
    systems: Annotated[
        list[str] | None, typer.Option("--system", metavar="NAME", help="Only this system; may be repeated.")
    ] = None,
    reference: Annotated[
        str | None, typer.Option(metavar="NAME", help="The system of real clips.", show_default="reference, if there")
    ] = None,
    kinds: Annotated[
        list[str] | None, typer.Option("--kind", metavar="KIND", help="rate or compare.", show_default="both")
    ] = None,
    prompts: Annotated[int | None, typer.Option(help="Prompts to judge.", min=1, show_default="all but three")] = None,
    per_rater: Annotated[int, typer.Option(help="Prompts that one rater judges.", min=1)] = 8,
    raters: Annotated[int, typer.Option(help="Raters that each clip should get.", min=1)] = 4,
    seed: Annotated[
        int | None,
        typer.Option(help="Which prompts, and in which order; keep it from raters.", min=0, show_default="drawn"),
    ] = None,
    title: Annotated[str, typer.Option(help="What raters see above the page.")] = "Listening test",
) -> None:
    """Make a listening test from systems' clips, and print where it is."""
    from milonga.listening_test import sources as work
    from milonga.listening_test.material import make_test, quieter

    found, clips = work.gather(source, captions, systems or ())
    plan = work.plan_of(list(clips), title, kinds or (), reference, prompts, per_rater, raters, seed)
    test = make_test(out, plan, found, clips)
    say(f"{len(test.prompts)} prompts, systems {', '.join(test.systems)}; reference: {test.reference or 'none'}")
    if quieter(test):
        say(f"{quieter(test)} clips stay quieter than the rest: their peaks allow no more")
    typer.echo(out)


@listen.command("links")
@door
def links(
    test: Folder,
    number: Annotated[int, typer.Option("-n", help="How many raters.", min=1, max=500)] = 1,
    url: Annotated[str, typer.Option(help="Where raters reach the server.")] = "http://127.0.0.1:8000",
) -> None:
    """Invite raters: print a new link for each, which is theirs alone."""
    from milonga.listening_test import sources as work

    for link in work.links(test, number, url):
        typer.echo(link)


@listen.command("serve")
@door
def serve(
    test: Folder,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for all.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0 takes a free one.", min=0, max=65535)] = 8000,
) -> None:
    """Serve the test until interrupted, and print the admin page's link; what was rated is kept."""
    from milonga.listening_test.server import serve as work

    work(test, host, port, typer.echo)


@listen.command("results")
@door
def results(test: Folder, as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False) -> None:
    """Show mean opinions, agreement and preferences with 95 % intervals, and who is excluded and why."""
    from milonga.listening_test import formatting as told
    from milonga.listening_test.results import results as work
    from milonga.listening_test.sessions import Sessions

    sessions = Sessions(test)
    found = work(sessions.test, sessions.ratings.ratings(sessions.test), sessions.verdicts())
    typer.echo(told.as_json(found) if as_json else told.as_text(found))


@listen.command("export")
@door
def export(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A listening test's or a studio's folder.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="A .csv or .parquet file, or a folder to make.")],
    form: Annotated[str, typer.Option("--as", metavar="FORM", help="table, takes, pairs or labels.")] = "table",
) -> None:
    """Write ratings or takes as a table, or as preference pairs or KTO labels beside their clips, and print where."""
    from milonga.studio import export as work

    typer.echo(work.export(folder, out, form))
