"""The commands `milonga nano ...`: train and measure the weights that ship with Milonga."""

from functools import wraps
from pathlib import Path
from typing import Annotated, Any

import typer

from milonga.cli.common import AsJson, handle_errors

nano = typer.Typer(no_args_is_help=True, help="Train and measure the weights that ship with Milonga.")


@nano.command("train")
@handle_errors
def nano_train(
    out: Annotated[Path, typer.Option(help="Folder for the finished weights.")] = Path("nano-training/weights"),
    work: Annotated[Path, typer.Option(help="Work directory; re-run to resume.")] = Path("nano-training"),
    only: Annotated[
        str, typer.Option(help="Networks to train, separated by commas, such as tagger-b,clap-a.", show_default="all")
    ] = "",
) -> None:
    """Train nano's weights from scratch. Re-run the same command to resume.

    Scorers trained without the pipeline take VAE and vocoder from --out, or from the weights that ship.
    """
    from milonga.experiment.nano.train import NETWORKS, make

    typer.echo(make(work, out, only.split(",") if only else NETWORKS))


@nano.command("benchmark")
@handle_errors
def nano_benchmark(
    clips: Annotated[int, typer.Option(help="Real clips for the scorers.", min=2)] = 1000,
    captions: Annotated[int, typer.Option(help="Held-out captions for the base model.", min=2)] = 400,
    seed: Annotated[int, typer.Option(help="Seed of the base model's clips.", min=0)] = 0,
    ranked: Annotated[
        int, typer.Option(help="Held-out captions whose eight clips rankers order; 0: none.", min=0)
    ] = 160,
    gate: Annotated[bool, typer.Option("--gate", help="Exit with 1 where a target is missed.")] = False,
    as_json: AsJson = False,
) -> None:
    """Measure nano's scorers on real clips and its base model on held-out captions, with 95 % intervals and targets."""
    import json
    from dataclasses import asdict

    from milonga.experiment.nano.benchmark import benchmark, target

    intervals = benchmark(clips, captions, seed, ranked)
    wanted = {name: limits for name in intervals if (limits := target(name))}
    missed = [name for name, (least, most) in wanted.items() if not least <= intervals[name].value <= most]
    if as_json:
        rows = {name: {**asdict(interval), "target": wanted.get(name)} for name, interval in intervals.items()}
        typer.echo(json.dumps(rows, indent=1))
    else:
        for name, interval in intervals.items():
            limits, aim = f"[{interval.low:.3f}, {interval.high:.3f}]", ""
            if name in wanted:
                aim = "  target {:.2f} to {:.2f}".format(*wanted[name]) + (": missed" if name in missed else "")
            typer.echo(f"{name:<53} {interval.value:.3f}  {limits}  n {interval.n:<6}{aim}".rstrip())
    if gate and missed:
        typer.echo(f"milonga: {len(missed)} of {len(wanted)} targets missed: {', '.join(missed)}", err=True)
        raise typer.Exit(1)


@nano.command("exam", hidden=True)
@wraps(nano_benchmark)
def nano_exam(**options: Any) -> None:
    """The old name of `benchmark`, accepted for one version."""
    typer.echo("milonga: `nano exam` is deprecated: use `nano benchmark`", err=True)
    nano_benchmark(**options)
