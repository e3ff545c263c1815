"""A training on display: live in the terminal, in trackers, and as clips of a few prompts that never change."""

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from milonga.core.config import Phase
from milonga.core.errors import RecipeError
from milonga.core.progress import steps_shown

if TYPE_CHECKING:
    from milonga.core.protocols import Model, Scorer
    from milonga.core.records import Prompt
    from milonga.data.examples import Examples

Row = dict[str, Any]
OnStep = Callable[[Row], None]
SAMPLED_PROMPTS = 8  # of a recipe's prompts
RECENT = 60  # losses in the little curve
BARS = "▁▂▃▄▅▆▇█"
# What the live view shows of a row, in its words.
SHOWN = {
    "loss": "loss",
    "reward": "reward over the model as given, in standard deviations",
    "delta_winner": "winners' error against the reference (Δw)",
    "delta_loser": "losers' (Δl)",
    "margin_p10": "margin, worst tenth",
    "margin_p50": "margin, median",
    "margin_p90": "margin, best tenth",
    "winner_worse": "winners that got worse",
    "accuracy": "preference accuracy",
    "val_accuracy": "preference accuracy on validation pairs",
    "saturation": "gradient factor σ(−½βm)",
    "safeguard": "scale of the losers' gradient (λ)",
    "beta": "β",
    "distance": "distance from the reference",
    "grad_norm": "gradient norm",
    "lr": "learning rate",
}


@contextmanager
def show_training(label: str, name: str, folder: Path, trackers: Sequence[str], config: Row) -> Iterator[OnStep]:
    """A function to be called after each step: it draws progress and alerts in the terminal and feeds the trackers.

    Raises RecipeError for a tracker whose package is missing.
    """
    with ExitStack() as stack:
        terminal = Console(stderr=True).is_terminal
        view = stack.enter_context(live(label) if terminal else steps_shown(label))
        outputs = [view, *(stack.enter_context(tracker(kind, name, folder, config)) for kind in trackers)]

        def on_step(row: Row) -> None:
            for output in outputs:
                output(row)

        yield on_step


def sample_prompts(
    model: "Model",
    prompts: "Sequence[Prompt]",
    sampling: tuple[int, float],
    seed: int,
    scorer: "Scorer",
    judge: "Scorer",
    folder: Path,
) -> dict[str, float]:
    """Writes the prompts' clips, from the same seeds every time, into `folder`; the means of scorer and judge."""
    from milonga.core.audio import write_audio
    from milonga.core.records import Request

    requests = [Request.of(seed, prompt, prompt.text, *sampling, 0) for prompt in prompts]
    clips, texts = model.generate(requests), [prompt.text for prompt in prompts]
    for place, (clip, text) in enumerate(zip(clips, texts, strict=True)):
        write_audio(folder / f"{place}.wav", clip, {"prompt": text, "seed": str(seed)})
    means = {name: float(by.score(clips, texts).mean()) for name, by in (("scorer", scorer), ("judge", judge))}
    return {name: value for name, value in means.items() if math.isfinite(value)}


def print_betas(phases: Sequence[Phase], examples: "Examples") -> None:
    """Says on stderr what each phase's β is in the field's other writings."""
    from milonga.maths.losses import LOSSES, format_beta

    elements = examples.batch([0], 0).winner[0].numel()
    for phase in phases:
        spec = LOSSES.get(phase.loss)
        if spec is not None and spec.needs_beta and spec.needs_reference:
            print(f"{phase.loss}: {format_beta(phase.beta, elements)}", file=sys.stderr)


@contextmanager
def tracker(kind: str, name: str, folder: Path, config: Row) -> Iterator[OnStep]:
    """TensorBoard (files in `folder`/tensorboard), W&B or trackio, told of every number of a row.

    Raises RecipeError when its package is missing.
    """
    from accelerate import PartialState, tracking

    kinds = {
        "tensorboard": tracking.is_tensorboard_available,
        "wandb": tracking.is_wandb_available,
        "trackio": tracking.is_trackio_available,
    }
    if not kinds[kind]():
        raise RecipeError(f"trackers has {kind}, which is not installed: pip install 'milonga[{kind}]'")
    PartialState()
    tracker_class: Any = tracking.LOGGER_TYPE_TO_CLASS[kind]
    place = {"logging_dir": str(folder / "tensorboard")} if kind == "tensorboard" else {}
    run = tracker_class(name if kind == "tensorboard" else f"milonga-{name}", **place)
    if hasattr(run, "start"):  # older releases of Accelerate start at once
        run.start()
    if kind != "tensorboard":
        run.store_init_configuration(config)
    try:
        yield lambda row: run.log(numbers(row), step=row["step"])
    finally:
        run.finish()


def numbers(row: Row) -> dict[str, float]:
    """All numbers of a row but its step, by name, those of its tables as `table/name`; None is left out."""
    values: dict[str, float] = {}
    for name, value in row.items():
        if isinstance(value, dict):
            values |= {f"{name}/{inner}": float(number) for inner, number in value.items()}
        elif isinstance(value, int | float) and name != "step":
            values[name] = float(value)
    return values


@contextmanager
def live(label: str) -> Iterator[OnStep]:
    """A view that is drawn anew with each step: progress, a little curve of the loss, what matters, and alerts."""
    progress = Progress(
        TextColumn(f"{label:<9}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[phase]}"),
        TimeRemainingColumn(),
    )  # fmt: skip
    task, losses, known = progress.add_task(label, total=None, phase=""), [], {}
    alerts: list[str] = []

    def on_step(row: Row) -> None:
        losses.append(row["loss"])
        known.update({name: row[name] for name in SHOWN if row.get(name) is not None})
        if row.get("alert"):
            alerts.append(f"step {row['step']}: {row['alert']}")
        progress.update(task, total=row["total"], completed=row["step"], phase=f"{row['phase']}, epoch {row['epoch']}")
        view.update(Group(progress, table(known, losses[-RECENT:]), *(Text(text, "bold red") for text in alerts[-3:])))

    with Live(progress, console=Console(stderr=True), refresh_per_second=4) as view:
        yield on_step


def table(known: Row, losses: Sequence[float | None]) -> Table:
    """What is known of a training now, as two columns."""
    grid = Table.grid(padding=(0, 2))
    for name, words in SHOWN.items():
        if name in known:
            grid.add_row(words, f"{known[name]:.4g}", curve(losses) if name == "loss" else "")
    return grid


def curve(values: Sequence[float | None]) -> str:
    """Values as a line of bars; those that are missing are blanks."""
    present = [value for value in values if value is not None]
    low, span = min(present, default=0.0), (max(present, default=0.0) - min(present, default=0.0)) or 1.0
    heights = (" " if value is None else BARS[int((value - low) / span * (len(BARS) - 1))] for value in values)
    return "".join(heights)
