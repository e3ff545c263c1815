"""The studio: a prompt's variations made, heard, kept or discarded, and compared two by two.

```
STUDIO/
  generate/          the clips as they came, one shard a take, latents included
  playback/          the clips as they are played: FLAC, matched in loudness
  ratings.sqlite     what was asked for, what was decided
```

These are the names that a listening test has: a studio may be opened on a test's folder, and exports alike.
"""

from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from secrets import randbits
from typing import Any

from pydantic import Field

from milonga.core.audio import clip_table, flac_bytes, from_flac, pack_latents, wav_bytes
from milonga.core.errors import DataError, RecipeError, StoreError
from milonga.core.ids import content_id
from milonga.core.records import Clip, Record
from milonga.core.store import Run, write_bytes
from milonga.core.web import NotNow, Unknown
from milonga.listening_test.database import FILE
from milonga.listening_test.playback import amplified, gain_of, loudness
from milonga.listening_test.records import STUDIO, Take
from milonga.studio.clips import Takes
from milonga.studio.worker import Maker, System

LONGEST_PROMPT = 500  # letters
TAGGED = 200  # letters of a prompt in a file's tags, which hold no more in a WAV
MOST_TAKES = 16  # variations of one prompt asked for at once, by each system
MOST_STEPS = 1000
MOST_GUIDANCE = 100.0
DRAWN_BITS = 31  # of a seed that nobody chose: short enough to be read out


class Order(Record):
    """What is asked for: `count` variations of a prompt by each system. Steps and guidance None: each system's own;
    seed None: drawn.
    """

    prompt: str
    systems: tuple[str, ...]
    count: int = 1
    steps: int | None = None
    guidance: float | None = Field(default=None, allow_inf_nan=False)
    seed: int | None = None


class Studio:
    """A studio's folder at work: everything that the page's doors do. `systems` are those that it offers."""

    def __init__(self, folder: Path, systems: Sequence[System]) -> None:
        self.folder, self.systems = folder, {one.name: one for one in systems}
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"cannot make {folder}: {error.strerror}; choose another --out") from error
        self.takes = Takes(folder / FILE)
        self.maker = Maker(self.takes, self.systems, self.keep)

    def state(self, prompt_id: str = "") -> dict[str, Any]:
        """What the page shows: systems, prompts, the takes of one prompt (empty: the newest), what is being made."""
        prompts = self.takes.prompts()
        shown = prompt_id or (prompts[0].id if prompts else "")
        offered = [{"name": one.name, "steps": one.steps, "guidance": one.guidance} for one in self.systems.values()]
        return {
            "systems": offered,
            "prompts": [vars(one) for one in prompts],
            "prompt": shown,
            "takes": [self._told(take) for take in self.takes.of(shown)],
            "making": self.maker.now(),
            "waiting": self.takes.waiting(),
        }

    def order(self, order: Order) -> dict[str, Any]:
        """Has takes made, the first of every system before anyone's second; the state of their prompt.

        Takes that are there already are not made again. Raises DataError for a prompt, RecipeError for numbers and
        systems that cannot be used.
        """
        text = " ".join(order.prompt.split())
        self._check(order, text)
        seed = randbits(DRAWN_BITS) if order.seed is None else order.seed
        wanted = [
            Take.of(
                text, one.name, one.weights, one.steps if order.steps is None else order.steps,
                one.guidance if order.guidance is None else order.guidance, seed, number,
            )
            for number in range(order.count) for one in (self.systems[name] for name in dict.fromkeys(order.systems))
        ]  # fmt: skip
        self.takes.want(wanted)
        self.maker.wake()
        return self.state(wanted[0].prompt_id)

    def retry(self, name: str) -> dict[str, Any]:
        """Has a take that could not be made tried again; the state of its prompt."""
        take = self._take(name)
        self.takes.want([take])
        self.maker.wake()
        return self.state(take.prompt_id)

    def cancel(self, prompt_id: str = "") -> dict[str, Any]:
        """Forgets all that is not made yet; the state."""
        self.maker.cancel()
        return self.state(prompt_id)

    def decide(self, name: str, kept: bool | None) -> dict[str, Any]:
        """Keeps or discards a take, or takes that back; the state of its prompt. NotNow for one that is not made."""
        take = self._take(name, made=True)
        self.takes.decide(name, kept)
        return self.state(take.prompt_id)

    def duel(self, prompt_id: str) -> dict[str, Any]:
        """Two takes of a prompt that were not compared yet, neither discarded, and how many such twos there are.

        Those that were compared least come first; which is A is left to their ids, which nobody chose.
        """
        there = [one for one in self.takes.of(prompt_id) if one.made and one.kept is not False]
        ids, done = {one.id for one in there}, {(one.a, one.b) for one in self.takes.choices()}
        met = {one: sum(one in pair for pair in done if ids.issuperset(pair)) for one in ids}
        left = [pair for pair in combinations(sorted(ids), 2) if pair not in done]
        if not left:
            return {"left": 0}
        low, high = min(left, key=lambda pair: (met[pair[0]] + met[pair[1]], content_id(*pair)))
        first, second = (low, high) if int(content_id(low, high), 16) % 2 else (high, low)
        return {"left": len(left), "a": self._told(self._take(first)), "b": self._told(self._take(second))}

    def choose(self, a: str, b: str, better: str) -> dict[str, Any]:
        """Notes which of two takes of one prompt is better (`a`, `b` or `same`); the next two.

        Raises NotNow for two takes that cannot be compared.
        """
        first, second = self._take(a, made=True), self._take(b, made=True)
        if first.id == second.id or first.prompt_id != second.prompt_id:
            raise NotNow("only two takes of one prompt can be compared")
        if better not in ("a", "b", "same"):
            raise NotNow("the answer is a, b or same")
        self.takes.choose(a, b, {"a": a, "b": b, "same": ""}[better])
        return self.duel(first.prompt_id)

    def played(self, name: str) -> Path:
        """The file of a take as it is played; Unknown where there is none."""
        return self._playback(self._take(name, made=True))

    def wav(self, name: str) -> tuple[str, bytes]:
        """A take as it came, as a WAV file with its making in its tags, and a name for that file."""
        take = self._take(name, made=True)
        [row] = Run(self.folder).stage("generate").read_table(shard_of(take), ["audio"]).to_pylist()
        asked = {"model": take.system, "seed": take.seed, "number": take.number, "steps": take.steps}
        tags = {"prompt": take.prompt[:TAGGED]} | {key: str(value) for key, value in asked.items()}
        data = wav_bytes(from_flac(row["audio"]["bytes"]), tags | {"guidance": str(take.guidance)})
        return f"{STUDIO}-{take.id}.wav", data

    def keep(self, take: Take, clip: Clip) -> None:
        """Writes a take's clip as it came and as it is played; then it counts as made."""
        table = clip_table([take.id], [clip], [pack_latents(clip.latents)])
        Run(self.folder).stage("generate").write_table(shard_of(take), table)
        write_bytes(self._playback(take), flac_bytes(amplified(clip, gain_of(clip, loudness(clip)))))
        self.takes.made(take.id)

    def _playback(self, take: Take) -> Path:
        return self.folder / "playback" / f"{take.id}.flac"

    def _take(self, name: str, made: bool = False) -> Take:
        found = self.takes.get(name)
        if found is None:
            raise Unknown("there is no such take")
        if made and not found.made:
            raise NotNow("this take is not made yet")
        return found

    def _told(self, take: Take) -> dict[str, Any]:
        # Seeds may have more bits than a number of JavaScript holds.
        told = take.model_dump(include={"id", "system", "steps", "guidance", "number", "trouble", "kept"})
        return told | {"seed": str(take.seed), "made": take.made is not None, "offered": take.system in self.systems}

    def _check(self, order: Order, text: str) -> None:
        if not text:
            raise DataError("the prompt is empty: say what to hear, such as “a dog barks then a bell rings”")
        if len(text) > LONGEST_PROMPT:
            raise DataError(f"the prompt has {len(text)} letters: {LONGEST_PROMPT} is the most")
        unknown = [name for name in order.systems if name not in self.systems]
        if unknown or not order.systems:
            there = ", ".join(self.systems)
            raise RecipeError(f"choose a system: there {'is' if len(self.systems) == 1 else 'are'} {there}")
        _within("variations", order.count, 1, MOST_TAKES)
        _within("steps", order.steps, 1, MOST_STEPS)
        _within("guidance", order.guidance, 0, MOST_GUIDANCE)
        _within("seed", order.seed, 0, 2**63 - 1)


def shard_of(take: Take) -> str:
    """The name of a take's shard in `generate`."""
    return f"take-{take.id}"


def _within(what: str, value: float | None, low: int, high: float) -> None:
    if value is not None and not low <= value <= high:
        raise RecipeError(f"{what} must be from {low} to {high:.0f}, not {value:g}")
