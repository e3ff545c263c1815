"""A training as it is watched: live in the terminal, by trackers, and by ear on a few prompts that never change."""

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

from milonga.core.config import Phase, Settings
from milonga.core.errors import RecipeError
from milonga.core.progress import steps_shown

if TYPE_CHECKING:
    from milonga.data.examples import Examples
    from milonga.models.denoiser import Denoiser

Row = dict[str, Any]
OnStep = Callable[[Row], None]
PROMPTS = 8  # that are listened to
RECENT = 60  # losses in the little curve
BARS = "▁▂▃▄▅▆▇█"
# What the live view shows of a row, in its words.
SHOWN = {
    "loss": "loss",
    "delta_winner": "winners' error against the reference (Δw)",
    "delta_loser": "losers' (Δl)",
    "margin_p10": "margin, worst tenth",
    "margin_p50": "margin, median",
    "margin_p90": "margin, best tenth",
    "winner_worse": "winners that got worse",
    "accuracy": "pairs told apart",
    "heldout_accuracy": "held-out pairs told apart",
    "saturation": "gradient factor σ(−½βm)",
    "safeguard": "share of the losers' pull that is kept (λ)",
    "beta": "β",
    "distance": "distance from the reference",
    "grad_norm": "gradient norm",
    "lr": "learning rate",
}


class Watch:
    """Whoever looks on while a system is trained; `folder` is where what is heard goes."""

    def __init__(self, label: str, folder: Path, name: str) -> None:
        self.label, self.folder, self.name = label, folder, name

    @contextmanager
    def shown(self, trackers: Sequence[str], config: Row) -> Iterator[OnStep]:
        """A function that is told of each step; it draws, prints alarms, and tells the trackers."""
        with ExitStack() as stack:
            terminal = Console(stderr=True).is_terminal
            view = stack.enter_context(live(self.label) if terminal else steps_shown(self.label))
            told = [stack.enter_context(tracker(one, self.name, self.folder, config)) for one in trackers]

            def on_step(row: Row) -> None:
                for one in (view, *told):
                    one(row)

            yield on_step

    def listener(
        self, parts: Any, recipe: Any, denoiser: "Denoiser", settings: Settings
    ) -> "Callable[[int], dict[str, float]] | None":
        """Makes the fixed prompts' clips every so many steps, or None where nobody listens; the first of the recipe's
        scorers stands for what trains, its judge for what does not."""
        if not settings.listen_every:
            return None
        from milonga.core.records import Prompt

        held = parts.prompt_source(recipe.prompts.sources[0])[:PROMPTS]
        prompts: list[Prompt] = sorted(held, key=lambda one: one.id)
        whole = parts.generator_of(recipe.models.model, denoiser)
        scorer, judge = parts.scorer(recipe.models.scorers[0]), parts.scorer(recipe.models.judge)
        sampling = recipe.evaluate.steps, recipe.evaluate.guidance

        def listen(step: int) -> dict[str, float]:
            return heard(whole, prompts, sampling, recipe.seed, scorer, judge, self.folder / self.name / f"{step:08d}")

        return listen


def heard(
    model: Any,
    prompts: Sequence[Any],
    sampling: tuple[int, float],
    seed: int,
    scorer: Any,
    judge: Any,
    folder: Path,
) -> dict[str, float]:
    """Writes the prompts' clips, from the same seeds every time, into `folder`; the means of scorer and judge."""
    from milonga.core.audio import write_audio
    from milonga.core.records import Request

    requests = [Request.of(seed, one, one.text, *sampling, 0) for one in prompts]
    clips, texts = model.generate(requests), [one.text for one in prompts]
    for place, (clip, text) in enumerate(zip(clips, texts, strict=True)):
        write_audio(folder / f"{place}.wav", clip, {"prompt": text, "seed": str(seed)})
    means = {name: float(one.score(clips, texts).mean()) for name, one in (("scorer", scorer), ("judge", judge))}
    return {name: value for name, value in means.items() if math.isfinite(value)}


def tell_betas(phases: Sequence[Phase], examples: "Examples") -> None:
    """Says on stderr what each phase's β is in the field's other writings."""
    from milonga.maths.losses import LOSSES, beta_told

    elements = examples.batch([0], 0).winner[0].numel()
    for phase in phases:
        spec = LOSSES.get(phase.loss)
        if spec is not None and spec.needs_beta and spec.needs_reference:
            print(f"{phase.loss}: {beta_told(phase.beta, elements)}", file=sys.stderr)


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
    made: Any = tracking.LOGGER_TYPE_TO_CLASS[kind]
    place = {"logging_dir": str(folder / "tensorboard")} if kind == "tensorboard" else {}
    found = made(name if kind == "tensorboard" else f"milonga-{name}", **place)
    if hasattr(found, "start"):  # older releases of Accelerate begin at once
        found.start()
    if kind != "tensorboard":
        found.store_init_configuration(config)
    try:
        yield lambda row: found.log(numbers(row), step=row["step"])
    finally:
        found.finish()


def numbers(row: Row) -> dict[str, float]:
    """All numbers of a row but its step, by name, those of its tables as `table/name`; None is left out."""
    found: dict[str, float] = {}
    for name, value in row.items():
        if name == "step":
            continue
        if isinstance(value, dict):
            found |= {f"{name}/{inner}": float(one) for inner, one in value.items()}
        elif isinstance(value, int | float):
            found[name] = float(value)
    return found


@contextmanager
def live(label: str) -> Iterator[OnStep]:
    """A view that is drawn anew with each step: progress, a little curve of the loss, what matters, and alarms."""
    progress = Progress(
        TextColumn(f"{label:<9}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[phase]}"),
        TimeRemainingColumn(),
    )  # fmt: skip
    task, losses, known = progress.add_task(label, total=None, phase=""), [], {}
    alarms: list[str] = []

    def on_step(row: Row) -> None:
        losses.append(row["loss"])
        known.update({name: row[name] for name in SHOWN if row.get(name) is not None})
        if row.get("alarm"):
            alarms.append(f"step {row['step']}: {row['alarm']}")
        progress.update(task, total=row["total"], completed=row["step"], phase=f"{row['phase']}, epoch {row['epoch']}")
        view.update(Group(progress, table(known, losses[-RECENT:]), *(Text(one, "bold red") for one in alarms[-3:])))

    with Live(progress, console=Console(stderr=True), refresh_per_second=4) as view:
        yield on_step


def table(known: Row, losses: Sequence[float | None]) -> Table:
    """What is known of a training now, as two columns."""
    found = Table.grid(padding=(0, 2))
    for name, words in SHOWN.items():
        if name in known:
            found.add_row(words, f"{known[name]:.4g}", curve(losses) if name == "loss" else "")
    return found


def curve(values: Sequence[float | None]) -> str:
    """Values as a line of bars; those that are missing are blanks."""
    there = [value for value in values if value is not None]
    low, span = min(there, default=0.0), (max(there, default=0.0) - min(there, default=0.0)) or 1.0
    heights = (" " if one is None else BARS[int((one - low) / span * (len(BARS) - 1))] for one in values)
    return "".join(heights)
