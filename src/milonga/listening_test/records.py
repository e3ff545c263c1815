"""Records of a listening test: its clips, its design, and the trials of a session."""

from typing import Literal

from pydantic import Field

from milonga.core.records import Comparison, Prompt, Rating, Record, Summary

Kind = Literal["rate", "compare", "mushra"]
Check = Literal["", "reference", "broken", "pair", "caption"]
KINDS: tuple[Kind, ...] = ("rate", "compare", "mushra")
DEFAULT_KINDS: tuple[Kind, ...] = ("rate", "compare")
# The system of the attention checks' broken clips, which are also the low end of the example.
BROKEN = "broken"
ANCHOR = "anchor"  # the system of MUSHRA's anchor: the reference without its treble


class PlaybackClip(Record):
    """One clip of a test: its system and settings, and its playback gain. `lufs` is None for silence, `gain` in dB.

    `steps` and `seed` are 0 where the clip came as a file and they are unknown. `seconds` is its length, 0 in a test of
    an earlier version.
    """

    id: str
    prompt_id: str
    system: str
    steps: int = 0
    seed: int = 0
    lufs: float | None = None
    gain: float = 0.0
    seconds: float = 0.0


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
    """One clip (`b` empty), two, or several on sliders (`sliders`, systems in order) to judge.

    `check` is the kind of attention check, empty for none. `shown_id` is the prompt whose text is shown, where that is
    not the clip's own.
    """

    kind: Kind
    check: Check
    prompt_id: str
    a: str = ""
    b: str = ""
    shown_id: str = ""
    sliders: tuple[str, ...] = ()

    @property
    def sides(self) -> dict[str, str]:
        """The trial's systems by the letter under which the page knows them."""
        systems = self.sliders or tuple(filter(None, (self.a, self.b)))
        return dict(zip("abcdefghijklmnopqrstuvwxyz", systems, strict=False))


class ScreenedRating(Rating):
    """A rating and the reason why its rater is excluded; empty where it counts."""

    excluded: str


class RaterRow(Record):
    """A rater as a platform needs them: who came by which parameters, how far they got, and why they are excluded.

    `parameters`, `answers` (to the questions) are JSON; `minutes` is the time that the answers took.
    """

    rater: str
    participant: str
    parameters: str
    tones: int
    trials: int
    judged: int
    minutes: float
    checks: int
    failed: int
    early: int
    excluded: str
    answers: str
    comment: str


class Preference(Record):
    """The rate at which raters preferred `a` to `b`, ties counting half, with its 95 % interval; 0.5: no difference.

    `p` is of "no difference", after Holm's correction for all pairs of systems that were compared.
    """

    a: str
    b: str
    rate: float
    low: float
    high: float
    p: float
    wins: int
    losses: int
    ties: int
    raters: int
    prompts: int


class Opinion(Summary):
    """A summary of ratings with the numbers of raters and of prompts behind it."""

    raters: int
    prompts: int


class OpinionDifference(Comparison):
    """Two systems over the same raters and prompts; `p` is after Holm's correction.

    `effect` is the difference over the standard deviation of single differences (Cohen's d for paired values).
    """

    effect: float
    raters: int
    prompts: int


class ScaleTest(Record):
    """Of one scale: the test of "all systems are alike", and the standard deviations of raters, prompts and the rest.

    `f` has `between` and `within` degrees of freedom. The deviations are of single ratings about their system's mean.
    """

    scale: str
    f: float
    between: float
    within: float
    p: float
    rater_sd: float
    prompt_sd: float
    rest_sd: float
