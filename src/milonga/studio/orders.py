"""What the page asks the studio to generate: a record, and its checks, each of which names the form's field."""

from typing import Annotated

from pydantic import Field

from milonga.core.records import Record
from milonga.core.web import FieldError
from milonga.studio.clips import CONTINUE, LOOP, REGION, VARY

MAX_PROMPT = 500  # characters
MAX_TAKES = 16  # variations of one prompt per request and system
MAX_STEPS = 1000
MAX_GUIDANCE = 100.0
MAX_SECONDS = 120.0  # of a clip, or of a continuation
MAX_SEED = 2**63 - 1
Whole = Annotated[int, Field(strict=True)]
Real = Annotated[float, Field(allow_inf_nan=False, strict=True)]


class Order(Record):
    """A request for `count` variations of a prompt by each system. Steps and guidance None: each system's own;
    seed None: random; `seconds` None: the trained length; no `scheduler`: the model's own.

    With a `source`, a take's id, it is an `edit` of that take under its prompt (see `Take`), by its own system where
    none is named; `words` empty are the prompt.
    """

    prompt: str = ""
    systems: tuple[str, ...] = ()
    count: Whole = 1
    steps: Whole | None = None
    guidance: Real | None = None
    seed: Whole | None = None
    negative: str = ""
    scheduler: str = ""
    seconds: Real | None = None
    edit: str = ""
    source: str = ""
    words: str = ""
    start: Real | None = None
    stop: Real | None = None
    strength: Real | None = None


def check_numbers(order: Order, length: float | None) -> None:
    """Raises FieldError for a number, a scheduler or an edit that cannot be used; `length` is that of the source's clip
    in seconds, None where nothing is edited."""
    _check_range("count", "Variations", order.count, 1, MAX_TAKES)
    _check_range("steps", "Steps", order.steps, 1, MAX_STEPS)
    _check_range("guidance", "Guidance", order.guidance, 0, MAX_GUIDANCE)
    _check_range("seed", "Seed", order.seed, 0, MAX_SEED)
    _check_range("seconds", "Length", order.seconds, 0.1, MAX_SECONDS)
    _check_range("strength", "Strength", order.strength, 0.01, 1)
    if order.scheduler and order.scheduler not in (known := scheduler_names()):
        raise FieldError("scheduler", f"There is no scheduler {order.scheduler!r}. Choose one of {', '.join(known)}.")
    if order.negative and order.guidance is not None and order.guidance <= 1:
        raise FieldError("negative", "A negative prompt needs guidance above 1.")
    if order.edit not in ({""} if length is None else {REGION, CONTINUE, LOOP, VARY}):
        raise FieldError("edit", "An edit of a take is a region, a continuation, a loop or a variation.")
    if length is None:
        return
    start, stop = (-1.0 if edge is None else edge for edge in (order.start, order.stop))
    if order.edit == REGION and not 0 <= start < stop <= length:
        raise FieldError(
            "start", f"The region must be inside the clip, which has {length:.2f} s. Drag on the waveform."
        )
    if order.edit == CONTINUE and order.seconds is None:
        raise FieldError("seconds", "Say by how many seconds to continue.")
    if order.edit == LOOP and length <= 1:
        raise FieldError("edit", f"A loop needs more than 1 s, and the clip has {length:.2f} s.")


def scheduler_names() -> tuple[str, ...]:
    """The names of all schedulers; the first call loads torch."""
    from milonga.models.schedulers import NAMES

    return NAMES


def one_line(field: str, text: str) -> str:
    """A text in one line; FieldError where it is too long or no Unicode text."""
    text = " ".join(text.split())
    if len(text) > MAX_PROMPT:
        raise FieldError(field, f"The text has {len(text)} characters, and {MAX_PROMPT} are the limit.")
    if any("\ud800" <= letter <= "\udfff" for letter in text):
        raise FieldError(field, "The text has half a character (a lone surrogate). Type it again.")
    return text


def _check_range(field: str, name: str, value: float | None, low: float, high: float) -> None:
    if value is not None and not low <= value <= high:
        limit = high if isinstance(high, int) else f"{high:g}"
        raise FieldError(field, f"{name} must be between {low:g} and {limit}, not {value:g}.")
