"""One evaluator: inputs, features, metrics with intervals. `EvalConfig` is the only list of its options."""

from dataclasses import dataclass, field, fields
from typing import Any

PROTOCOLS = ("milonga", "tango", "audioldm")


def _option(default: Any, help: str, *flags: str, **more: Any) -> Any:
    """A field with its text and flags on the command line; `more` goes to the command line's option."""
    return field(default=default, metadata={"help": help, "flags": flags, **more})


@dataclass(frozen=True)
class EvalConfig:
    """The options of `milonga evaluate` and of `milonga.evaluate`: which weights and metrics, and how.

    With no weights named, a run is evaluated with the judge and tagger of its recipe; other audio is refused.
    """

    weights: str | None = _option(
        None, "published: LAION-CLAP, PANNs and VGGish; nano: nano's CLAP and tagger (26 classes).", metavar="SET"
    )
    metrics: tuple[Any, ...] = _option(
        (), "Only this metric; may be repeated.", "--metric", metavar="NAME", show_default="all that the weights allow"
    )
    scorers: tuple[Any, ...] = _option(
        (), "A CLAP, or package.module:Class; may be repeated, the first CLAP leads.", "--clap", "--scorer",
        metavar="NAME|DIR",
    )  # fmt: skip
    tagger: str | None = _option(None, "A tagger, for events and order.", metavar="NAME|DIR")
    panns: str | None = _option(
        None, "The classifier of FD, KAD, KL and IS: a file of PANNs', OWNER/NAME:FILE, or passt.", metavar="FILE|passt"
    )
    vggish: str | None = _option(None, "VGGish weights, for FAD; or OWNER/NAME:FILE.", metavar="FILE")
    protocol: str = _option("milonga", "How files are loaded: milonga, tango or audioldm.")
    seconds: float = _option(60.0, "How much of a clip is measured, from its beginning, in seconds.", min=1.0)
    splits: tuple[str, ...] = _option((), "Split by a column of the captions too.", "--split", metavar="COLUMN")
    labels: str | None = _option(
        None, "Class labels, divided by commas: split by their number, and report the agreement.", metavar="COLUMN"
    )
    against: str | None = _option(
        None, "People's ratings: measure how well each metric agrees with them.", metavar="TABLE"
    )
    scales: tuple[str, ...] = _option(
        (), "A column of those ratings; may be repeated.", "--scale", metavar="COLUMN",
        show_default="the usual names",
    )  # fmt: skip
    sigmoid: bool = _option(False, "The toolkit's sigmoid KL as well.", "--kl-sigmoid")
    reconstruction: bool = _option(
        False, "PSNR, SSIM and LSD against the reference of the same name.", "--reconstruction"
    )
    resamples: int | None = _option(None, "Draws of the bootstrap.", min=100, show_default="the run's, else 1000")
    seed: int | None = _option(None, "Seed of the bootstrap.", min=0, show_default="the run's, else 0")
    device: str = _option("auto", "Where networks run: auto, cpu, cuda, cuda:1, mps.")
    force: bool = _option(False, "Where systems have different clips, evaluate those that all have.", "--force")
    fetch: bool = _option(False, "Download weights that are not on this machine.", "--fetch")
    cache: bool = _option(True, "Keep features of clips for the next evaluation.", "--cache/--no-cache")

    @classmethod
    def of(cls, options: dict[str, Any]) -> "EvalConfig":
        """The configuration with these options. Raises RecipeError for an unknown option or weight set."""
        from milonga.core.errors import RecipeError

        names = [one.name for one in fields(cls)]
        unknown = sorted(set(options) - set(names))
        if unknown:
            raise RecipeError(f"evaluate has no option {unknown[0]!r}: there are {', '.join(names)}")
        values = dict(options)
        for name in {"metrics", "scorers", "splits", "scales"} & set(values):
            values[name] = tuple(values[name] or ())
        return cls(**values)
