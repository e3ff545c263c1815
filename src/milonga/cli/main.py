"""The command `milonga`: thin commands onto the package. Results go to stdout, progress and errors to stderr.

Exit status: 0 done; 1 a failure, reported in one line; 2 wrong usage; 130 interrupted and resumable.
"""

import signal
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from milonga.cli.errors import debug as _debug
from milonga.cli.errors import handle_errors, say, show_page
from milonga.cli.evaluate import evaluate
from milonga.cli.listen import listen, studio
from milonga.cli.nano import nano

RUNS_NETWORKS = ("generate", "edit", "run", "pair", "train", "evaluate", "studio", "nano")
app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, add_completion=False, rich_markup_mode=None)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(version("milonga"))
        raise typer.Exit


@app.callback()
def options(
    context: typer.Context,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of a failure.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Text-to-audio latent diffusion, aligned to preferences that it builds itself, measured with error bars."""
    _debug["on"] = _debug["on"] or debug
    if context.invoked_subcommand in RUNS_NETWORKS:
        from milonga.engines.local import keep_freed_memory

        keep_freed_memory()


@app.command()
@handle_errors
def generate(
    prompts: Annotated[
        list[str] | None,
        typer.Argument(metavar="PROMPT...", help="What the clip should sound like.", show_default=False),
    ] = None,
    prompts_file: Annotated[
        Path | None,
        typer.Option(
            "--prompts",
            metavar="FILE",
            help="Prompts of a table (.csv, .tsv, .json, .jsonl, .parquet), or of a text with one a line; "
            "clips that are there already are not generated again.",
        ),
    ] = None,
    model: Annotated[
        str, typer.Option(help="A model's name or folder, RUN/SYSTEM, or user/name[@revision] on the Hub.")
    ] = "nano",
    steps: Annotated[
        int | None, typer.Option(help="Number of denoising steps.", show_default="the model's own")
    ] = None,
    guidance: Annotated[
        float | None, typer.Option(help="Classifier-free guidance scale.", show_default="the model's own")
    ] = None,
    seed: Annotated[int, typer.Option(help="Random seed; the same seed gives the same clips.", min=0)] = 0,
    number: Annotated[int, typer.Option("-n", help="Clips per prompt.")] = 1,
    duration: Annotated[
        float | None, typer.Option(help="Length of a clip in seconds.", show_default="as the model was trained")
    ] = None,
    scheduler: Annotated[
        str | None,
        typer.Option(
            help="ddpm, ddim, dpm++, unipc or compat; for a flow model euler, dpm++ or unipc.",
            show_default="the model's own",
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="Output folder.")] = Path(),
) -> None:
    """Generate clips from prompts and print their paths; clips.jsonl beside them lists their settings."""
    from milonga.cli.generate import check, generate_clips, read_prompts
    from milonga.experiment.systems import system

    if not prompts and prompts_file is None:
        say("Missing argument 'PROMPT...': give prompts, or --prompts FILE")
        raise typer.Exit(2)
    texts = [*(prompts or ()), *(read_prompts(prompts_file) if prompts_file else ())]
    found = system(model)
    own_steps, own_guidance = found.sampling()
    steps, guidance = own_steps if steps is None else steps, own_guidance if guidance is None else guidance
    check(texts, steps, guidance, number, duration)
    loaded = found.load(scheduler, duration)
    options = {"scheduler": scheduler, "duration": duration, "weights": found.fingerprint()}
    details = {name: str(value) for name, value in options.items() if value is not None}
    resume = prompts_file is not None
    for path in generate_clips(loaded, texts, out, steps, guidance, seed, number, details, resume):
        typer.echo(path)


@app.command()
@handle_errors
def run(
    recipe: Annotated[str, typer.Argument(help="A .toml file, or a shipped recipe's name such as smoke.")],
    out: Annotated[Path | None, typer.Option(help="The run folder.", show_default="runs/NAME")] = None,
    until: Annotated[str | None, typer.Option(metavar="STAGE", help="Stop after this stage.")] = None,
    only: Annotated[str | None, typer.Option(metavar="STAGE", help="Run only this stage.")] = None,
    engine: Annotated[str, typer.Option(help="Where sharded work runs: local or ray.")] = "local",
    changes: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a recipe value.")
    ] = None,
) -> None:
    """Run a recipe's stages in a run folder. Re-run the same command to resume."""
    from milonga.evaluation.formatting import run_outcome
    from milonga.experiment import run as pipeline
    from milonga.experiment.recipe import load_recipe

    wanted = load_recipe(recipe, changes or ())
    done = pipeline.run(wanted, out, until, only, pipeline.engine_named(engine, wanted.workers))
    summary = run_outcome(done.path)
    if summary is not None:
        typer.echo(summary + "\n")
    report = done.path / "report.html"
    typer.echo(report if report.exists() else done.path)


@app.command()
@handle_errors
def train(
    target: Annotated[
        str, typer.Argument(metavar="RECIPE", help="A run folder, a .toml file, or a shipped recipe's name.")
    ],
    out: Annotated[Path | None, typer.Option(help="The folder to train in.", show_default="runs/NAME")] = None,
    changes: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a recipe value.")
    ] = None,
) -> None:
    """Train a recipe's systems; also under torchrun and accelerate launch -m milonga."""
    from milonga.experiment.recipe import load_recipe
    from milonga.experiment.run import train as train_systems

    folder = Path(target) if Path(target).is_dir() else out
    for system in train_systems(load_recipe(target, changes or ()), folder):
        typer.echo(system)


@app.command()
@handle_errors
def status(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show a run's progress."""
    from milonga.experiment import status as state

    rows = state.status(run)
    typer.echo(state.as_json(rows) if as_json else state.as_table(rows))


@app.command()
@handle_errors
def pair(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")],
    sweep: Annotated[
        bool, typer.Option("--sweep", help="Change nothing: show what other values of each threshold would keep.")
    ] = False,
    changes: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a value of the recipe's [pair].")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Pair a run's stored scores again, by other thresholds; no clip is made, no model loaded."""
    from milonga.experiment import pair as pairing

    if sweep:
        swept = pairing.sweep(run, changes or ())
        typer.echo(pairing.as_json(swept) if as_json else pairing.sweep_text(swept))
        return
    found = pairing.pair(run, changes or ())
    typer.echo(pairing.as_json(found) if as_json else pairing.pairing_text(found))


@app.command()
@handle_errors
def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder that has pairs, or trained systems.")],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The folder to create.")],
    system: Annotated[
        str | None, typer.Option(metavar="NAME", help="Export this trained system and not the pairs.")
    ] = None,
    validation: Annotated[
        float | None, typer.Option(help="Share of the captions whose pairs form that split.", show_default="0.05")
    ] = None,
    push: Annotated[
        str | None, typer.Option(metavar="USER/NAME", help="Upload it to the Hugging Face Hub under that name.")
    ] = None,
    public: Annotated[bool, typer.Option("--public", help="Make what --push creates public.")] = False,
) -> None:
    """Write a run's kept pairs as a data set in Audio-alpaca's layout, or with --system a trained model in diffusers'
    layout, each with its card, and print where it is.
    """
    from milonga.experiment.export_system import export_any

    for line in export_any(run, folder, system, validation, push, public):
        typer.echo(line)


@app.command()
@handle_errors
def pairs(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder that has pairs.")],
    port: Annotated[int, typer.Option(help="Port on this machine; 0 takes any that is free.")] = 0,
    no_open: Annotated[bool, typer.Option("--no-open", help="Only print the address, open no browser.")] = False,
) -> None:
    """Look through a run's pairs in the browser, hearing winner and loser; Ctrl-C ends it."""
    import contextlib

    from milonga.reports.pairs import serve

    with contextlib.suppress(KeyboardInterrupt):  # the way to end it, not an interruption
        serve(run, port, lambda address: show_page(address, no_open))


@handle_errors
def convert(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SRC", help="A folder or repository with the files of the original Tango, or LAION-CLAP's .pt."
        ),
    ],
    destination: Annotated[Path, typer.Argument(metavar="DST", help="The folder to create.")],
    tokenizer: Annotated[
        str | None,
        typer.Option(
            metavar="DIR",
            help="The text encoder's tokenizer: a folder, or a repository on the Hub.",
            show_default="SRC, then the Hub",
        ),
    ] = None,
) -> None:
    """Convert a checkpoint of the original Tango or Tango 2 to a diffusers pipeline, or a LAION-CLAP checkpoint to
    transformers' layout, and print the folder.
    """
    from milonga.core.weights import folder_of
    from milonga.models.original.load import convert as convert_tango
    from milonga.scorers.load import convert as convert_laion_clap

    if Path(source).is_file():
        typer.echo(convert_laion_clap(Path(source), destination, None if tokenizer is None else Path(tokenizer)))
    else:
        typer.echo(convert_tango(folder_of(source), destination, tokenizer))


app.command()(studio)
app.command()(convert)
app.command()(evaluate)
app.add_typer(listen, name="listen")
app.add_typer(nano, name="nano")


def main() -> None:
    """The entry point. `--debug` is accepted anywhere in the line, and SIGTERM counts as an interruption."""
    arguments = sys.argv[1:]
    end = arguments.index("--") if "--" in arguments else len(arguments)
    _debug["on"] = "--debug" in arguments[:end]
    signal.signal(signal.SIGTERM, _interrupt)
    app([word for place, word in enumerate(arguments) if word != "--debug" or place > end], prog_name="milonga")


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt
