"""The door `milonga evaluate`."""

from pathlib import Path
from typing import Annotated

import typer

from milonga.cli.errors import handle_errors, say

Many = list[str] | None


@handle_errors
def evaluate(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE...",
            help="A run folder; folders of audio files (DIR or NAME=DIR), the last being the reference; or a .csv.",
            show_default=False,
        ),
    ],
    reference: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Real clips; all folders before are then systems.")
    ] = None,
    captions: Annotated[
        Path | None, typer.Option(metavar="CSV", help="Columns clip and caption, and any to split by.")
    ] = None,
    panns: Annotated[
        str | None, typer.Option(metavar="FILE", help="Cnn14_16k weights, for FD, KL, IS and KAD; or OWNER/NAME:FILE.")
    ] = None,
    vggish: Annotated[str | None, typer.Option(metavar="FILE", help="VGGish weights, for FAD.")] = None,
    claps: Annotated[
        Many, typer.Option("--clap", metavar="NAME|DIR", help="A CLAP; may be repeated, the first leads.")
    ] = None,
    tagger: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|DIR", help="A tagger, for events and order.", show_default="nano's, if none is named"
        ),
    ] = None,
    protocol: Annotated[str, typer.Option(help="How files are loaded: milonga, tango or audioldm.")] = "milonga",
    splits: Annotated[
        Many, typer.Option("--split", metavar="COLUMN", help="Split by a column of the captions too.")
    ] = None,
    labels: Annotated[
        str | None,
        typer.Option(metavar="COLUMN", help="Class labels, divided by commas: split by their number, tell agreement."),
    ] = None,
    sigmoid: Annotated[bool, typer.Option("--kl-sigmoid", help="The toolkit's sigmoid KL as well.")] = False,
    reconstruction: Annotated[
        bool, typer.Option("--reconstruction", help="PSNR, SSIM and LSD against the reference of the same name.")
    ] = False,
    resamples: Annotated[int, typer.Option(help="Draws of the bootstrap.", min=100)] = 1000,
    seed: Annotated[int, typer.Option(help="Seed of the bootstrap.", min=0)] = 0,
    force: Annotated[
        bool, typer.Option("--force", help="Where systems have different clips, take those that all have.")
    ] = False,
    fetch: Annotated[bool, typer.Option("--fetch", help="Download weights of the Hub that are not here.")] = False,
    no_cache: Annotated[bool, typer.Option("--no-cache", help="Keep and take up nothing that was heard.")] = False,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write summary, comparisons and leaderboard.html there.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Measure systems' clips: Tables 3 to 5 with 95 % intervals, paired differences, and how each number was made."""
    from milonga.evaluation import formatting as told
    from milonga.evaluation.evaluate import Asked, evaluate
    from milonga.evaluation.features import cache_folder
    from milonga.reports.leaderboard import write

    asked = Asked(
        panns=panns, vggish=vggish, claps=tuple(claps or ()), tagger=tagger, protocol=protocol,
        splits=tuple(splits or ()), labels=labels, sigmoid=sigmoid, reconstruction=reconstruction,
        resamples=resamples, seed=seed, force=force, fetch=fetch, cache=None if no_cache else cache_folder(),
    )  # fmt: skip
    found = evaluate(sources, reference, captions, asked)
    typer.echo(told.as_json(found) if as_json else told.as_text(found))
    if out is not None:
        page = write(found, out)
        say(f"leaderboard: {page}")
