"""The doors `milonga nano ...`: the weights that ship, made and examined."""

from pathlib import Path
from typing import Annotated

import typer

from milonga.cli.errors import door

nano = typer.Typer(no_args_is_help=True, help="Make and examine the weights that ship with Milonga.")


@nano.command("train")
@door
def nano_train(
    out: Annotated[Path, typer.Option(help="Where the finished weights go.")] = Path("nano-training/weights"),
    work: Annotated[Path, typer.Option(help="Where the work lies, to be gone on with.")] = Path("nano-training"),
) -> None:
    """Train all of nano's weights from nothing; run it again after a stop, and it goes on."""
    from milonga.experiment.nano_train import make

    typer.echo(make(work, out))


@nano.command("exam")
@door
def nano_exam(
    clips: Annotated[int, typer.Option(help="Real clips for the listeners.", min=2)] = 1000,
    captions: Annotated[int, typer.Option(help="Held-out captions for the base.", min=2)] = 400,
    seed: Annotated[int, typer.Option(help="Seed of the base's clips.", min=0)] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Measure nano's listeners on real clips and its base on held-out captions, with 95 % intervals."""
    import json
    from dataclasses import asdict

    from milonga.experiment.nano_benchmark import exam

    found = exam(clips, captions, seed)
    if as_json:
        typer.echo(json.dumps({name: asdict(interval) for name, interval in found.items()}, indent=1))
        return
    for name, one in found.items():
        typer.echo(f"{name:<42} {one.value:.3f}  [{one.low:.3f}, {one.high:.3f}]  n {one.n}")
