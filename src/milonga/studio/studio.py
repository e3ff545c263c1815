"""The studio: generate variations of a prompt, listen, keep or discard them, and compare two of them.

```
STUDIO/
  generate/          the original clips, one shard per take, latents included
  playback/          the clips for playback: FLAC, matched in loudness
  ratings.sqlite     takes, decisions and comparisons
```

A listening test has the same names: a studio may be opened on a test's folder, and both are exported together.
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
from milonga.core.protocols import Scorer
from milonga.core.records import Clip, Record
from milonga.core.store import Run, write_bytes
from milonga.core.web import NotNow, Unknown
from milonga.listening_test.database import FILE
from milonga.listening_test.material import amplified, playback_gain
from milonga.maths.clip_view import loudness
from milonga.preference.candidates import best_first, score_clips
from milonga.studio.clips import STUDIO, Take, Takes
from milonga.studio.worker import GenerationWorker, System

MAX_PROMPT = 500  # characters
MAX_TAG = 200  # characters of a prompt in a WAV file's tags, which hold no more
MAX_TAKES = 16  # variations of one prompt per request and system
MAX_STEPS = 1000
MAX_GUIDANCE = 100.0
SEED_BITS = 31  # of a random seed: short enough to read aloud


class Order(Record):
    """A request for `count` variations of a prompt by each system. Steps and guidance None: each system's own;
    seed None: random.
    """

    prompt: str
    systems: tuple[str, ...]
    count: int = 1
    steps: int | None = None
    guidance: float | None = Field(default=None, allow_inf_nan=False)
    seed: int | None = None


class Studio:
    """A studio's folder while it is served: what the page's routes do. `systems` are those that it offers; `scorers`
    score every new take, so that the page can show the best of a prompt first.
    """

    def __init__(self, folder: Path, systems: Sequence[System], scorers: Sequence[Scorer] = ()) -> None:
        self.scorers = scorers
        self.folder, self.systems = folder, {system.name: system for system in systems}
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"cannot create {folder}: {error.strerror}; choose another --out") from error
        self.takes = Takes(folder / FILE)
        self.worker = GenerationWorker(self.takes, self.systems, self.save)

    def state(self, prompt_id: str = "") -> dict[str, Any]:
        """What the page shows: systems, prompts, the takes of one prompt (empty: the newest), and progress."""
        prompts = self.takes.prompts()
        shown = prompt_id or (prompts[0].id if prompts else "")
        systems = [
            {"name": system.name, "steps": system.steps, "guidance": system.guidance}
            for system in self.systems.values()
        ]
        ranks = self._ranks(shown)
        return {
            "systems": systems,
            "scorers": [scorer.name for scorer in self.scorers],
            "prompts": [vars(prompt) for prompt in prompts],
            "prompt": shown,
            "takes": [self._card(take) | {"rank": ranks.get(take.id)} for take in self.takes.of_prompt(shown)],
            "current": self.worker.current(),
            "waiting": self.takes.num_waiting(),
        }

    def order(self, order: Order) -> dict[str, Any]:
        """Queues takes, the first of every system before any second one, and returns the state of their prompt.

        Existing takes are not generated again. Raises DataError for a prompt, RecipeError for numbers and systems that
        cannot be used.
        """
        text = " ".join(order.prompt.split())
        self._check(order, text)
        seed = randbits(SEED_BITS) if order.seed is None else order.seed
        takes = [
            Take.of(
                text, system.name, system.weights, system.steps if order.steps is None else order.steps,
                system.guidance if order.guidance is None else order.guidance, seed, number,
            )
            for number in range(order.count)
            for system in (self.systems[name] for name in dict.fromkeys(order.systems))
        ]  # fmt: skip
        self.takes.add(takes)
        self.worker.wake()
        return self.state(takes[0].prompt_id)

    def retry(self, name: str) -> dict[str, Any]:
        """Queues a failed take again and returns the state of its prompt."""
        take = self._take(name)
        self.takes.add([take])
        self.worker.wake()
        return self.state(take.prompt_id)

    def cancel(self, prompt_id: str = "") -> dict[str, Any]:
        """Deletes all takes that are not generated yet and returns the state."""
        self.worker.cancel()
        return self.state(prompt_id)

    def decide(self, name: str, keep: bool | None) -> dict[str, Any]:
        """Keeps or discards a take, or undoes that (None), and returns its prompt's state. NotNow before generation."""
        take = self._take(name, generated=True)
        self.takes.decide(name, keep)
        return self.state(take.prompt_id)

    def next_comparison(self, prompt_id: str) -> dict[str, Any]:
        """Two takes of a prompt that were not compared yet, neither discarded, and the number of such pairs.

        The least compared takes come first. A hash of their ids decides which one is A.
        """
        takes = self.takes.of_prompt(prompt_id)
        ids = {take.id for take in takes if take.generated and take.keep is not False}
        done = {(choice.a, choice.b) for choice in self.takes.choices()}
        met = {name: sum(name in pair for pair in done if ids.issuperset(pair)) for name in ids}
        left = [pair for pair in combinations(sorted(ids), 2) if pair not in done]
        if not left:
            return {"left": 0}
        low, high = min(left, key=lambda pair: (met[pair[0]] + met[pair[1]], content_id(*pair)))
        first, second = (low, high) if int(content_id(low, high), 16) % 2 else (high, low)
        return {"left": len(left), "a": self._card(self._take(first)), "b": self._card(self._take(second))}

    def choose(self, a: str, b: str, better: str) -> dict[str, Any]:
        """Records which of two takes of one prompt is better (`a`, `b` or `same`) and returns the next two.

        Raises NotNow for two takes that cannot be compared.
        """
        first, second = self._take(a, generated=True), self._take(b, generated=True)
        if first.id == second.id or first.prompt_id != second.prompt_id:
            raise NotNow("only two takes of one prompt can be compared")
        if better not in ("a", "b", "same"):
            raise NotNow("the answer is a, b or same")
        self.takes.choose(a, b, {"a": a, "b": b, "same": ""}[better])
        return self.next_comparison(first.prompt_id)

    def playback_file(self, name: str) -> Path:
        """The playback file of a take; Unknown where there is none."""
        return self._playback_path(self._take(name, generated=True))

    def wav(self, name: str) -> tuple[str, bytes]:
        """A name for a take's WAV file and its bytes: the original clip, with its settings in the tags."""
        take = self._take(name, generated=True)
        [row] = Run(self.folder).stage("generate").read_table(shard_of(take), ["audio"]).to_pylist()
        request = {"model": take.system, "seed": take.seed, "number": take.number, "steps": take.steps}
        tags = {"prompt": take.prompt[:MAX_TAG]} | {key: str(value) for key, value in request.items()}
        data = wav_bytes(from_flac(row["audio"]["bytes"]), tags | {"guidance": str(take.guidance)})
        return f"{STUDIO}-{take.id}.wav", data

    def save(self, take: Take, clip: Clip) -> None:
        """Writes a take's original clip, its playback file and its scores, then marks it as generated."""
        table = clip_table([take.id], [clip], [pack_latents(clip.latents)])
        Run(self.folder).stage("generate").write_table(shard_of(take), table)
        write_bytes(self._playback_path(take), flac_bytes(amplified(clip, playback_gain(clip, loudness(clip)))))
        if self.scorers:
            self.takes.store_scores(take.id, score_clips([clip], [take.prompt], self.scorers, 1)[0])
        self.takes.mark_generated(take.id)

    def _ranks(self, prompt_id: str) -> dict[str, int]:
        """The ranks, from 1, of a prompt's takes that all of this studio's scorers scored (`best_first`)."""
        names = [scorer.name for scorer in self.scorers]
        scores = {
            take: {name: row[name] for name in names}
            for take, row in self.takes.scores(prompt_id).items()
            if names and row.keys() >= set(names)
        }
        takes = list(scores)
        order = best_first(list(scores.values())) if scores else []
        return {takes[place]: rank for rank, (place, _) in enumerate(order, 1)}

    def _playback_path(self, take: Take) -> Path:
        return self.folder / "playback" / f"{take.id}.flac"

    def _take(self, name: str, generated: bool = False) -> Take:
        take = self.takes.get(name)
        if take is None:
            raise Unknown("there is no such take")
        if generated and not take.generated:
            raise NotNow("this take is not generated yet")
        return take

    def _card(self, take: Take) -> dict[str, Any]:
        """A take as the page shows it. The seed is a string: it may have more bits than a number of JavaScript."""
        fields = take.model_dump(include={"id", "system", "steps", "guidance", "number", "trouble", "keep"})
        offered = take.system in self.systems
        return fields | {"seed": str(take.seed), "generated": take.generated is not None, "offered": offered}

    def _check(self, order: Order, text: str) -> None:
        if not text:
            raise DataError("the prompt is empty: describe a sound, such as “a dog barks then a bell rings”")
        if len(text) > MAX_PROMPT:
            raise DataError(f"the prompt has {len(text)} characters: the limit is {MAX_PROMPT}")
        unknown = [name for name in order.systems if name not in self.systems]
        if unknown or not order.systems:
            raise RecipeError(f"choose a system: available are {', '.join(self.systems)}")
        _check_range("variations", order.count, 1, MAX_TAKES)
        _check_range("steps", order.steps, 1, MAX_STEPS)
        _check_range("guidance", order.guidance, 0, MAX_GUIDANCE)
        _check_range("seed", order.seed, 0, 2**63 - 1)


def shard_of(take: Take) -> str:
    """The name of a take's shard in `generate`."""
    return f"take-{take.id}"


def _check_range(what: str, value: float | None, low: int, high: float) -> None:
    if value is not None and not low <= value <= high:
        raise RecipeError(f"{what} must be between {low} and {high:.0f}, not {value:g}")
