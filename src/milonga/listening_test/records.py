"""What a listening test is made of: its clips, its plan, and the trials of a session."""

from typing import Literal

from pydantic import Field

from milonga.core.ids import clip_seed, content_id
from milonga.core.records import Prompt, Rating, Record, Request

Kind = Literal["rate", "compare"]
Check = Literal["", "reference", "broken", "pair"]
KINDS: tuple[Kind, ...] = ("rate", "compare")
# The system that attention checks and the low anchor are heard as: a real clip, torn to pieces.
BROKEN = "broken"
STUDIO = "studio"  # where the prompts of the studio come from


class Played(Record):
    """One clip of a test: who made it, how, and how it is played. `lufs` is None for silence, `gain` in dB.

    `steps` and `seed` are 0 where the clip came as a file and they are not known.
    """

    id: str
    prompt_id: str
    system: str
    steps: int = 0
    seed: int = 0
    lufs: float | None = None
    gain: float = 0.0


class Test(Record):
    """A whole listening test; `reference` is the system of real clips, empty where there is none.

    `prompts` are judged, `check_prompts` serve attention checks alone, `example` is heard before the first trial.
    """

    __test__ = False  # no test of pytest's, whatever its name

    title: str
    kinds: tuple[Kind, ...] = Field(min_length=1)
    systems: tuple[str, ...] = Field(min_length=1)
    reference: str
    prompts: tuple[Prompt, ...] = Field(min_length=1)
    check_prompts: tuple[Prompt, ...]
    example: Prompt
    clips: tuple[Played, ...]
    per_rater: int = Field(ge=1)
    raters_per_clip: int = Field(ge=1)
    seed: int = Field(ge=0)

    def clip(self, prompt_id: str, system: str) -> Played:
        """The clip that a system made for a prompt; KeyError where it is not of this test."""
        return {(one.prompt_id, one.system): one for one in self.clips}[prompt_id, system]

    def prompt(self, prompt_id: str) -> Prompt:
        """The prompt of that id; KeyError where it is not of this test."""
        return {one.id: one for one in (*self.prompts, *self.check_prompts, self.example)}[prompt_id]


class Trial(Record):
    """One thing to judge: a clip (`b` empty) or two, and whether it is an attention check."""

    kind: Kind
    check: Check
    prompt_id: str
    a: str
    b: str = ""


class ScreenedRating(Rating):
    """A rating, and why its rater is excluded; empty where it counts."""

    excluded: str


class Preference(Record):
    """How often listeners preferred `a` to `b`, a tie counting half, with the 95 % interval (0.5: no difference)."""

    a: str
    b: str
    rate: float
    low: float
    high: float
    wins: int
    losses: int
    ties: int


class Take(Record):
    """One clip of the studio: what it was asked of whom, when it was made (UTC; None: not yet), and what was decided.

    `seed` and `number` are what was asked for, as `milonga generate --seed S -n N` counts; the clip's own seed follows
    from them. `trouble` says why it could not be made, `kept` is None until it is kept (True) or discarded.
    """

    id: str
    prompt_id: str
    prompt: str
    system: str
    weights: str
    steps: int
    guidance: float
    seed: int
    number: int
    made: str | None = None
    trouble: str = ""
    kept: bool | None = None

    @classmethod
    def of(
        cls, text: str, system: str, weights: str, steps: int, guidance: float, seed: int, number: int = 0
    ) -> "Take":
        """A take whose id is the hash of what it asks for, of which weights: asked for again, it is the same take."""
        prompt = Prompt.of(text, STUDIO)
        request = Request.of(seed, prompt, text, steps, guidance, number)
        return cls(
            id=content_id(system, weights, request.id, seed), prompt_id=prompt.id, prompt=text, system=system,
            weights=weights, steps=steps, guidance=guidance, seed=seed, number=number,
        )  # fmt: skip

    def request(self) -> Request:
        """The request that a model makes it from, the same as that of `milonga generate`."""
        prompt = Prompt.of(self.prompt, STUDIO)
        made = Request.of(self.seed, prompt, self.prompt, self.steps, self.guidance, self.number)
        return made.model_copy(update={"seed": clip_seed(self.seed, self.prompt, self.number)})


class Choice(Record):
    """Two takes of one prompt that were compared: `better` is the id of one of them, or empty where neither is."""

    a: str
    b: str
    better: str
