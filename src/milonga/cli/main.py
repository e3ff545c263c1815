"""The command `milonga`: thin commands onto the package. Results go to stdout, progress and errors to stderr.

Exit status: 0 done; 1 a failure, reported in one line; 2 wrong usage; 130 interrupted and resumable.
"""

import io
import signal
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from milonga.cli.common import AsJson, Changes, Device, Guidance, ModelName, Steps, handle_errors, say, show_page
from milonga.cli.common import debug as _debug
from milonga.cli.distil import distil
from milonga.cli.edit import edit
from milonga.cli.judge import evaluate, studio
from milonga.cli.listen import listen
from milonga.cli.nano import nano
from milonga.core.errors import RecipeError

RUNS_NETWORKS = ("generate", "edit", "run", "pair", "train", "distil", "evaluate", "studio", "nano")
app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, add_completion=False, rich_markup_mode=None)


def _version(show: bool) -> None:
    if show:
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
    """Generate audio from text with latent diffusion, build preference data, align models to it, and evaluate them."""
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
            help="A table of prompts (.csv, .tsv, .json, .jsonl, .parquet), or a text file with one prompt per line; "
            "existing clips are not generated again.",
        ),
    ] = None,
    model: ModelName = "nano",
    steps: Steps = None,
    guidance: Guidance = None,
    seed: Annotated[int, typer.Option(help="Random seed; the same seed gives the same clips.", min=0)] = 0,
    number: Annotated[int, typer.Option("-n", help="Clips per prompt.")] = 1,
    best_of: Annotated[
        int | None, typer.Option("--best-of", metavar="N", help="Generate N clips per prompt and save the -n best.")
    ] = None,
    by: Annotated[
        str | None,
        typer.Option(
            metavar="SCORER[,SCORER...]",
            help="Scorers that choose the best: their scores are z-scored within the prompt and averaged.",
            show_default="nano's two CLAPs and nano-events, for nano only",
        ),
    ] = None,
    keep_all: Annotated[bool, typer.Option("--keep-all", help="With --best-of: save all N clips, ranked.")] = False,
    duration: Annotated[
        float | None, typer.Option(help="Length of a clip in seconds.", show_default="as the model was trained")
    ] = None,
    negative: Annotated[str, typer.Option(metavar="TEXT", help="What the clips should not sound like.")] = "",
    timeline: Annotated[
        str | None,
        typer.Option(metavar="TEXT", help='Words by seconds, in place of a prompt: "0-4 rain; 4-10 thunder".'),
    ] = None,
    scheduler: Annotated[
        str | None,
        typer.Option(
            help="ddpm, ddim, dpm++, unipc or compat; for a flow model euler, dpm++ or unipc; for a distilled one lcm.",
            show_default="the model's own",
        ),
    ] = None,
    precision: Annotated[
        str, typer.Option(help="fp32, bf16, or auto: whichever this machine was measured to be faster in.")
    ] = "fp32",
    out: Annotated[Path, typer.Option(help="Output folder.")] = Path(),
    device: Device = "auto",
) -> None:
    """Generate clips from prompts and print their paths; clips.jsonl beside them lists their settings."""
    from milonga.cli.generate import check, generate_best, generate_clips, read_prompts
    from milonga.models.load import system
    from milonga.preference.candidates import search_scorers
    from milonga.scorers.load import fingerprint, scorer

    if not prompts and prompts_file is None and timeline is None:
        say("Missing argument 'PROMPT...': give prompts, --prompts FILE or --timeline TEXT")
        raise typer.Exit(2)
    texts = [*(prompts or ()), *(read_prompts(prompts_file) if prompts_file else ())]
    if best_of is None and (by or keep_all):
        say("--by and --keep-all choose among clips: give --best-of N")
        raise typer.Exit(2)
    if timeline is not None and (texts or duration is not None or best_of is not None):
        raise RecipeError("--timeline has its own words and length: leave prompts, --duration and --best-of out")
    texts = [timeline] if timeline is not None else texts
    names = search_scorers(model, [name.strip() for name in (by or "").split(",") if name.strip()]) if best_of else ()
    selected = system(model)
    own_steps, own_guidance = selected.sampling()
    steps, guidance = own_steps if steps is None else steps, own_guidance if guidance is None else guidance
    check([*texts, *filter(None, [negative])], steps, guidance, number, duration, best_of, negative)
    options = {"scheduler": scheduler, "duration": duration, "negative": negative or None, "timeline": timeline}
    options |= {"weights": selected.fingerprint()}
    resume = prompts_file is not None
    more: dict[str, Any] = {"negative": negative} if negative else {}
    if timeline is not None:
        from milonga.models.editing import parse_timeline

        more["timeline"] = parse_timeline(timeline)
    pipe = selected.load(scheduler, duration, device)
    if precision != "fp32":
        if not hasattr(pipe, "pipeline") or not hasattr(pipe.pipeline, "set_precision"):
            raise RecipeError(f"{model} has no choice of precision: leave --precision out")
        options["precision"] = pipe.pipeline.set_precision(precision).precision
    if timeline is not None and not hasattr(pipe, "denoiser"):
        raise RecipeError(f"{model} runs by a pipeline of its own, which has no timeline")
    if best_of is None:
        details = {name: str(value) for name, value in options.items() if value is not None}
        paths = generate_clips(pipe, texts, out, steps, guidance, seed, number, details, resume, more)
    else:
        options |= {"best_of": best_of, "by": ", ".join(f"{name}@{fingerprint(name)[:8]}" for name in names)}
        details = {name: str(value) for name, value in options.items() if value is not None}
        saved, scorers = best_of if keep_all else number, [scorer(name, device) for name in names]
        paths = generate_best(pipe, texts, out, steps, guidance, scorers, best_of, seed, saved, details, resume, more)
    for path in paths:
        typer.echo(path)


@app.command()
@handle_errors
def run(
    recipe: Annotated[str, typer.Argument(help="A .toml file, or the name of a shipped recipe such as smoke.")],
    out: Annotated[Path | None, typer.Option(help="The run folder.", show_default="runs/NAME")] = None,
    until: Annotated[str | None, typer.Option(metavar="STAGE", help="Stop after this stage.")] = None,
    only: Annotated[str | None, typer.Option(metavar="STAGE", help="Run only this stage.")] = None,
    engine: Annotated[str, typer.Option(help="Where sharded work runs: local or ray.")] = "local",
    changes: Changes = None,
    rehearse: Annotated[
        bool,
        typer.Option(
            "--rehearse",
            help="Walk all stages at full size with two captions; print what each takes, and the real run will take.",
        ),
    ] = False,
) -> None:
    """Run a recipe's stages in a run folder. Re-run the same command to resume."""
    from milonga.core.store import Run
    from milonga.evaluation.formatting import run_outcome
    from milonga.experiment import run as pipeline
    from milonga.experiment.recipe import load_recipe
    from milonga.experiment.registry import Registry
    from milonga.experiment.rehearsal.cost import projection
    from milonga.experiment.rehearsal.rehearse import as_table
    from milonga.experiment.rehearsal.rehearse import rehearse as rehearse_run

    loaded = load_recipe(recipe, changes or ())
    if rehearse:
        if until or only:
            raise RecipeError("--rehearse walks all stages: leave --until and --only out")
        typer.echo(as_table(rehearse_run(loaded, out)))
        return
    folder = pipeline.run(loaded, out, until, only, pipeline.engine_named(engine, loaded.workers)).path
    for line in projection(loaded, Run(folder), Registry()) if until == "plan" else ():
        typer.echo(line)
    summary = run_outcome(folder)
    if summary is not None:
        typer.echo(summary + "\n")
    report = folder / "report.html"
    typer.echo(report if report.exists() else folder)


@app.command()
@handle_errors
def train(
    target: Annotated[
        str, typer.Argument(metavar="RECIPE", help="A run folder, a .toml file, or a shipped recipe's name.")
    ],
    out: Annotated[Path | None, typer.Option(help="The folder to train in.", show_default="runs/NAME")] = None,
    changes: Changes = None,
    allow_missing: Annotated[
        bool,
        typer.Option("--allow-missing", help="Train also where more than half of the clips or pairs cannot be used."),
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Train again what was trained there with other data, settings or seed.")
    ] = False,
) -> None:
    """Train a recipe's systems; also under torchrun and accelerate launch -m milonga."""
    from milonga.experiment.recipe import load_recipe
    from milonga.experiment.run import train as train_systems

    folder = out or (Path(target) if Path(target).is_dir() else None)
    overrides = [*(changes or ()), *(["train.allow_missing=true"] if allow_missing else [])]
    for system in train_systems(load_recipe(target, overrides), folder, overwrite=overwrite):
        typer.echo(system)


@app.command()
@handle_errors
def status(run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")], as_json: AsJson = False) -> None:
    """Show a run's progress."""
    from milonga.experiment import manifest as state

    rows = state.status(run)
    typer.echo(state.as_json(rows) if as_json else state.as_table(rows))


@app.command()
@handle_errors
def pair(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")],
    sweep: Annotated[
        bool, typer.Option("--sweep", help="Change nothing; show how many pairs other values of each threshold keep.")
    ] = False,
    changes: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a value of the recipe's [pair].")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Pair a run's stored scores again with other thresholds, without generating clips or loading models."""
    from milonga.experiment import pair as pairing

    if sweep:
        table = pairing.sweep(run, changes or ())
        typer.echo(pairing.as_json(table) if as_json else pairing.sweep_text(table))
        return
    summary = pairing.pair(run, changes or ())
    typer.echo(pairing.as_json(summary) if as_json else pairing.pairing_text(summary))


@app.command()
@handle_errors
def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder with pairs or trained systems.")],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The folder to create.")],
    system: Annotated[
        str | None, typer.Option(metavar="NAME", help="Export this trained system instead of the pairs.")
    ] = None,
    validation: Annotated[
        float | None,
        typer.Option(help="Fraction of captions whose pairs form the validation split.", show_default="0.05"),
    ] = None,
    adapter: Annotated[
        int | None, typer.Option(metavar="RANK", help="With --system: export a LoRA adapter of this rank.")
    ] = None,
    push: Annotated[
        str | None, typer.Option(metavar="USER/NAME", help="Upload to the Hugging Face Hub under this name.")
    ] = None,
    public: Annotated[bool, typer.Option("--public", help="Make the uploaded repository public.")] = False,
) -> None:
    """Export a run's pairs as a data set in Audio-alpaca's layout, or a trained system as a model in diffusers' layout
    or as a LoRA adapter, with its card, and print the folder.
    """
    from milonga.experiment.export import export_any

    for line in export_any(run, folder, system, validation, adapter, push, public):
        typer.echo(line)


@app.command()
@handle_errors
def pairs(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder with pairs.")],
    port: Annotated[int, typer.Option(help="Port on this machine; 0 picks a free one.")] = 0,
    no_open: Annotated[bool, typer.Option("--no-open", help="Print the address without opening a browser.")] = False,
) -> None:
    """Browse a run's pairs and listen to winners and losers. Stop with Ctrl-C."""
    import contextlib

    from milonga.reports.pairs import serve

    with contextlib.suppress(KeyboardInterrupt):  # Ctrl-C is the normal way to stop the server
        serve(run, port, lambda address: show_page(address, no_open))


@handle_errors
def convert(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SRC", help="A folder or repository with the original Tango or TangoFlux, or LAION-CLAP's .pt."
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
    """Convert a checkpoint of the original Tango, Tango 2 or TangoFlux to a diffusers pipeline, TangoFlux's pipeline
    back to its published files, or a LAION-CLAP checkpoint to transformers' layout, and print the folder.
    """
    from milonga.core.weights import folder_of
    from milonga.models.load import convert as convert_model
    from milonga.scorers.load import convert as convert_laion_clap

    if Path(source).is_file():
        typer.echo(convert_laion_clap(Path(source), destination, None if tokenizer is None else Path(tokenizer)))
    else:
        typer.echo(convert_model(folder_of(source), destination, tokenizer))


app.command()(edit)
app.command()(distil)
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
    if isinstance(
        sys.stdout, io.TextIOWrapper
    ):  # in a locale that is not UTF-8 a − or a caption must not stop a result
        sys.stdout.reconfigure(errors="backslashreplace")
    app([word for place, word in enumerate(arguments) if word != "--debug" or place > end], prog_name="milonga")


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt
