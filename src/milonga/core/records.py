"""The nouns: every record that Milonga's stages exchange and its run folder stores.

Records are frozen and strict: a field that is not listed here does not exist. New information gets a typed field
first, then the step that fills it.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from milonga.core.ids import content_id, derive_seed

# What a caption asks for, where that is known: groups in order of time; the sounds of one group overlap.
# "a dog barks while it rains, then a bell" is (("Dog", "Rain"), ("Bell",)).
Scene = tuple[tuple[str, ...], ...]


class Record(BaseModel):
    """Base of all records: immutable, and unknown fields are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Prompt(Record):
    """A caption with an id, its source, its tags (`temporal`, `multi-concept`) and, where known, its scene.

    `diverse` says that it is one of τ1 (§4.1.1); a prompt that is not is there for its temporal word alone (τ2).
    """

    id: str
    text: str
    source: str
    tags: tuple[str, ...] = ()
    scene: Scene | None = None
    diverse: bool = True

    @classmethod
    def of(cls, text: str, source: str, tags: tuple[str, ...] = (), scene: Scene | None = None) -> "Prompt":
        """A prompt whose id is the hash of its text: the same caption has the same id wherever it comes from."""
        return cls(id=content_id(text), text=text, source=source, tags=tags, scene=scene)


class Request(Record):
    """One clip to make: the prompt it stands for and the words really used, which differ when they are perturbed.

    One clip may serve several strategies (x_τ of strategies 2 and 3 is also a sample of strategy 1.2), so the id
    leaves them out and `strategies` lists them.
    """

    id: str
    prompt_id: str
    prompt: str
    words: str
    strategies: tuple[str, ...]
    steps: int
    guidance: float
    number: int
    seed: int

    @classmethod
    def of(
        cls,
        run_seed: int,
        prompt: Prompt,
        words: str,
        steps: int,
        guidance: float,
        number: int = 0,
        strategies: tuple[str, ...] = (),
    ) -> "Request":
        """A request whose id is the hash of what it asks for, and whose seed derives from `run_seed` and that id."""
        name = content_id(prompt.id, words, steps, guidance, number)
        return cls(
            id=name,
            prompt_id=prompt.id,
            prompt=prompt.text,
            words=words,
            strategies=strategies,
            steps=steps,
            guidance=guidance,
            number=number,
            seed=derive_seed(run_seed, name),
        )

    @property
    def key(self) -> str:
        """Its clip's name in an evaluation: the prompt's id, with the number of each further clip of that prompt."""
        return f"{self.prompt_id}.{self.number}" if self.number else self.prompt_id

    @property
    def faithful(self) -> bool:
        """Whether the clip is made from the prompt's own words."""
        return self.words == self.prompt


class Candidate(Record):
    """A request whose clip was made, with its scores against the prompt's own words, one per scorer (may be NaN)."""

    request: Request
    scores: dict[str, float]


class Pair(Record):
    """A winner and a loser for one prompt, with everything needed to make or judge them again.

    `refused` is empty for a pair that is kept; otherwise it names the condition that refused it. A localised pair
    differs in a `region` alone, seconds from and to.
    """

    id: str
    prompt_id: str
    prompt: str
    strategy: str
    chosen_id: str
    rejected_id: str
    chosen_words: str
    rejected_words: str
    chosen_steps: int
    rejected_steps: int
    chosen_seed: int
    rejected_seed: int
    chosen_scores: dict[str, float]
    rejected_scores: dict[str, float]
    refused: str = ""
    region: tuple[float, float] | None = None

    @classmethod
    def of(cls, winner: Candidate, loser: Candidate, strategy: str, refused: str = "") -> "Pair":
        """The pair of two candidates of one prompt; its id is the hash of the strategy and the two clips' ids."""
        chosen, rejected = winner.request, loser.request
        return cls(
            id=content_id(strategy, chosen.id, rejected.id),
            prompt_id=chosen.prompt_id,
            prompt=chosen.prompt,
            strategy=strategy,
            chosen_id=chosen.id,
            rejected_id=rejected.id,
            chosen_words=chosen.words,
            rejected_words=rejected.words,
            chosen_steps=chosen.steps,
            rejected_steps=rejected.steps,
            chosen_seed=chosen.seed,
            rejected_seed=rejected.seed,
            chosen_scores=winner.scores,
            rejected_scores=loser.scores,
            refused=refused,
        )


class Rating(Record):
    """One rater's judgement at a UTC time: of a clip (`ovl` and `rel`, 1 to 5), of two (which is `better`), or of one
    clip on a slider beside others of its prompt (`score`, 0 to 100).

    `a` and `b` are the systems; `b` is empty where one clip was rated. `prompt` is the text that was shown. `check` is
    empty for a judgement that counts; otherwise it is the kind of attention check. `place` is the position in the
    session, `seconds` the time it took by the page's clock, `elapsed` the time since the clips were sent by the
    server's, and `revision` counts the answers to this trial: the last one counts.
    """

    rater: str
    place: int
    kind: Literal["rate", "compare", "mushra"]
    check: Literal["", "reference", "broken", "pair", "caption"]
    prompt_id: str
    prompt: str
    a: str
    b: str
    ovl: int | None
    rel: int | None
    better: Literal["a", "b", "same"] | None
    seconds: float
    given: str
    score: int | None = None
    elapsed: float | None = None
    revision: int = 1


class Label(Record):
    """One clip with a verdict of its own, as KTO and reward models take it: desirable or not, and by whose opinion.

    `system` made the clip (empty: a run's model, for its pairs). `opinion` is what was said of it, on the scale of who
    said it: a mean of marks from 1 to 5 by `raters` people, or 1 and 0 by a tagger (no raters); None where the clip was
    kept or discarded in the studio.
    """

    id: str
    prompt_id: str
    prompt: str
    system: str
    desirable: bool
    opinion: float | None
    raters: int


class Round(Record):
    """A policy after one iteration of online training (0: the base), judged on captions that decide whether to go on.

    Of `clips` made, `pairs` or `groups` (all clips of a caption) were trained on. `judge` is the judge's mean
    similarity over `n` captions, `gain` its paired difference to the best policy before, both with their 95 % intervals
    (0 wide for the base's gain); `present`, `order` (`order_detected`: where all events are detected), `exact` and
    `extra` are means of the events' metrics where scenes are known. `reward` is the rewarding scorers' gain over the
    base in standard deviations, `diversity` how far clips of one caption are apart, `loudness` in dB; `alert` names
    signs of reward hacking. What was not measured is NaN.
    """

    system: str
    number: int
    clips: int
    pairs: int
    groups: int = 0
    judge: float = math.nan
    low: float = math.nan
    high: float = math.nan
    n: int = 0
    gain: float = math.nan
    gain_low: float = math.nan
    gain_high: float = math.nan
    present: float = math.nan
    order: float = math.nan
    order_detected: float = math.nan
    exact: float = math.nan
    extra: float = math.nan
    reward: float = math.nan
    diversity: float = math.nan
    silent: float = math.nan
    clipped: float = math.nan
    loudness: float = math.nan
    alert: str = ""


class Refusal(Record):
    """Something that could not go on, at which stage, and why; the refused are kept."""

    stage: str
    id: str
    reason: str


class Event(Record):
    """One sound heard or placed in a clip: its class, and when it begins and ends in seconds."""

    label: str
    onset: float
    offset: float


class Summary(Record):
    """A metric's value for one system on one split, with its 95 % interval and the protocol that made it."""

    system: str
    split: str
    metric: str
    value: float
    low: float
    high: float
    n: int
    protocol: str


class Comparison(Record):
    """Two systems over the same prompts: difference = a − b, its 95 % interval, and which is better (or neither).

    `p` is of this comparison alone; `holm` is corrected for all that were made with it, where that was done.
    """

    split: str
    metric: str
    a: str
    b: str
    difference: float
    low: float
    high: float
    p: float
    n: int
    better: str
    holm: float | None = None


class SearchPoint(Record):
    """One point of a search's curve: a metric of the best of `n` clips of `system`, chosen by `scorers`.

    `value` and `gain` (over the best of 1) are means over `captions` captions with their 95 % intervals. `chosen` is
    the N of the search itself. A clip costs `passes` of the network and `seconds` of a worker.
    """

    search: str
    system: str
    scorers: tuple[str, ...]
    chosen: int
    metric: str
    n: int
    value: float
    low: float
    high: float
    gain: float
    gain_low: float
    gain_high: float
    captions: int
    passes: int
    seconds: float


class RewardReport(Record):
    """What a reward model learnt, measured on labels of captions that it never saw.

    `accuracy` is the share of them called right, with its 95 % interval; `majority` what the commoner answer would get;
    `auc` how often a good clip is placed above a bad one, and `cosine_auc` the same by the CLAP's bare similarity.
    """

    scorer: str
    taught: int
    held_out: int
    desirable: float
    accuracy: float
    low: float
    high: float
    majority: float
    auc: float
    cosine_auc: float


@dataclass(frozen=True)
class Clip:
    """A mono waveform, float32 in [-1, 1] with shape (samples,), and its sampling rate in Hz.

    Of a clip with several channels `waveform` is their mean, which is what scorers are given, and `channels`, (samples,
    channels), are what is written, played and encoded.
    A clip that a latent diffusion model made may carry its scaled latents, shape (C, T/r, F/r): training on them needs
    no VAE and loses nothing to a round trip through the vocoder. A clip that is the beginning of a longer one carries
    the `mean` of the whole. A clip that never passed a vocoder has no samples, but its log-mel picture `mel`, (frames,
    bands), in the front end `mel_config`.
    """

    waveform: np.ndarray
    rate: int
    latents: np.ndarray | None = None
    mean: float | None = None
    mel: np.ndarray | None = None
    mel_config: Any = None
    channels: np.ndarray | None = None

    @classmethod
    def of(cls, samples: np.ndarray, rate: int, latents: np.ndarray | None = None, mean: float | None = None) -> "Clip":
        """A clip of samples (samples,) or (samples, channels), float32."""
        if samples.ndim == 1 or samples.shape[1] == 1:
            return cls(np.ascontiguousarray(samples.reshape(-1)), rate, latents, mean)
        return cls(samples.mean(axis=1), rate, latents, mean, channels=samples)

    @property
    def samples(self) -> np.ndarray:
        """All channels, (samples, channels)."""
        return self.waveform[:, None] if self.channels is None else self.channels

    @property
    def seconds(self) -> float:
        """The clip's length in seconds."""
        samples = len(self.waveform) if self.mel is None else len(self.mel) * self.mel_config.hop
        return samples / self.rate
