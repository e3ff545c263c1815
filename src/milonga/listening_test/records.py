"""Records of a listening test: its clips, its design, and the trials of a session."""

from typing import Literal

from pydantic import Field

from milonga.core.records import Prompt, Rating, Record

Kind = Literal["rate", "compare"]
Check = Literal["", "reference", "broken", "pair"]
KINDS: tuple[Kind, ...] = ("rate", "compare")
# The system of the attention checks' broken clips, which are also the low anchor.
BROKEN = "broken"


class PlaybackClip(Record):
    """One clip of a test: its system and settings, and its playback gain. `lufs` is None for silence, `gain` in dB.

    `steps` and `seed` are 0 where the clip came as a file and they are unknown.
    """

    id: str
    prompt_id: str
    system: str
    steps: int = 0
    seed: int = 0
    lufs: float | None = None
    gain: float = 0.0


class Test(Record):
    """A listening test; `reference` is the system of real clips, empty where there is none.

    `prompts` are judged, `check_prompts` serve attention checks only, `example` is played before the first trial.
    """

    __test__ = False  # not a test case of pytest

    title: str
    kinds: tuple[Kind, ...] = Field(min_length=1)
    systems: tuple[str, ...] = Field(min_length=1)
    reference: str
    prompts: tuple[Prompt, ...] = Field(min_length=1)
    check_prompts: tuple[Prompt, ...]
    example: Prompt
    clips: tuple[PlaybackClip, ...]
    per_rater: int = Field(ge=1)
    raters_per_clip: int = Field(ge=1)
    seed: int = Field(ge=0)

    def clip(self, prompt_id: str, system: str) -> PlaybackClip:
        """A system's clip for a prompt; KeyError where it is not part of this test."""
        return {(clip.prompt_id, clip.system): clip for clip in self.clips}[prompt_id, system]

    def prompt(self, prompt_id: str) -> Prompt:
        """The prompt with that id; KeyError where it is not part of this test."""
        return {prompt.id: prompt for prompt in (*self.prompts, *self.check_prompts, self.example)}[prompt_id]


class Trial(Record):
    """One clip (`b` empty) or two to judge; `check` is the kind of attention check, empty for none."""

    kind: Kind
    check: Check
    prompt_id: str
    a: str
    b: str = ""


class ScreenedRating(Rating):
    """A rating and the reason why its rater is excluded; empty where it counts."""

    excluded: str


class Preference(Record):
    """The rate at which raters preferred `a` to `b`, ties counting half, with its 95 % interval; 0.5: no difference."""

    a: str
    b: str
    rate: float
    low: float
    high: float
    wins: int
    losses: int
    ties: int
