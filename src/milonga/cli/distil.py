"""The command `distil`: a model in, a student of a few passes out."""

from pathlib import Path
from typing import Annotated

import typer

from milonga.cli.common import handle_errors
from milonga.core.errors import RecipeError


@handle_errors
def distil(
    model: Annotated[
        str, typer.Argument(help="The teacher: a model's name or folder, RUN/SYSTEM, or user/name[@revision].")
    ],
    data: Annotated[
        str,
        typer.Argument(help="Clips with captions: a run folder or pairs, whose winners count, or clips:metadata.csv."),
    ],
    out: Annotated[Path, typer.Option(help="Folder for the student; re-run to resume.", show_default=False)],
    epochs: Annotated[int, typer.Option(help="Passes over the clips.", min=1)] = 20,
    consistency: Annotated[
        bool, typer.Option("--consistency", help="Then distil consistency, as many epochs: for 1 or 2 passes.")
    ] = False,
    guidance: Annotated[
        str, typer.Option(metavar="LOW-HIGH", help="The guidance scales that the student learns.")
    ] = "1-6",
    learning_rate: Annotated[float, typer.Option(help="Peak learning rate.")] = 1e-5,
    batch_size: Annotated[int, typer.Option(help="Clips a step.", min=1)] = 16,
    seed: Annotated[int, typer.Option(help="Random seed.", min=0)] = 0,
) -> None:
    """Distil a model to a student that needs no second pass for guidance, and print its folder.

    The student is sampled with 4 steps by default, at any of the scales: 4 passes.
    """
    from milonga.core.config import Phase
    from milonga.training.align import AlignConfig, AlignTrainer

    ends = guidance.split("-")
    try:
        low, high = float(ends[0]), float(ends[-1])
    except ValueError:
        raise RecipeError(f"--guidance {guidance!r} is not read: write two scales, such as 1-6") from None
    if not 1 <= low <= high <= 100 or len(ends) > 2:
        raise RecipeError(f"--guidance {guidance!r} is no range: write two scales from 1 to 100, such as 1-6")
    config = AlignConfig(
        output_dir=out,
        phases=tuple(Phase(loss=loss, epochs=epochs) for loss in ("distil-guidance", "distil")[: 1 + consistency]),
        distil_guidance=(low, high),
        learning_rate=learning_rate,
        batch_size=batch_size,
        ema=0.95,
        seed=seed,
    )
    typer.echo(AlignTrainer(model, data, config).train())
