"""The studio: generate variations of a prompt, listen, edit, keep or discard them, and compare two of them.

```
STUDIO/
  generate/          the original clips, one shard per take, latents included
  files/             files that were dropped, and edits of them, in their own format
  playback/          the clips for playback: FLAC, matched in loudness
  ratings.sqlite     takes, decisions and comparisons
```

A listening test has the same names: a studio may be opened on a test's folder, and both are exported together.
"""

import hashlib
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from secrets import randbits
from typing import IO, Any

import numpy as np

from milonga.core.errors import RecipeError, StoreError
from milonga.core.ids import content_id
from milonga.core.protocols import Scorer
from milonga.core.records import Clip
from milonga.core.web import FieldError, NotNow, Unknown
from milonga.listening_test.database import FILE, now
from milonga.preference.candidates import best_first, score_clips
from milonga.studio.clips import PAGE, UPLOAD, Take, Takes
from milonga.studio.orders import MAX_PROMPT, Order, check_numbers, one_line
from milonga.studio.sounds import Sounds
from milonga.studio.worker import GenerationWorker, System

MAX_WAITING = 512  # takes in the queue
SEED_BITS = 31  # of a random seed: short enough to read aloud
ROOM = 200_000_000  # bytes that must be free on the disk for new takes


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
        self.takes, self.sounds = Takes(folder / FILE), Sounds(folder)
        self.worker = GenerationWorker(self.takes, self.systems, self.save, self._source, folder / "claims")

    def state(self, prompt_id: str = "") -> dict[str, Any]:
        """What the page shows: systems, the takes of one prompt (empty: the newest), and progress."""
        if not prompt_id:
            prompt_id = next((prompt.id for prompt in self.takes.history()[1]), "")
        ranks, takes = self._ranks(prompt_id), self.takes.of_prompt(prompt_id)
        ordinals = self.takes.ordinals(prompt_id)
        systems = [{"name": one.name, "steps": one.steps, "guidance": one.guidance} for one in self.systems.values()]
        return {
            "systems": systems,
            "scorers": [scorer.name for scorer in self.scorers],
            "prompt": {"id": prompt_id, "text": takes[0].prompt} if takes else None,
            "takes": [self._card(take) | {"rank": ranks.get(take.id), "ordinal": ordinals[take.id]} for take in takes],
            "current": self.worker.current(),
            "waiting": self.takes.num_waiting(),
            "trouble": self.worker.trouble,
            "stamp": self.takes.stamp(),
        }

    def history(self, words: str = "", start: int = 0) -> dict[str, Any]:
        """The number of prompts that contain `words`, and a page of them from `start` on, the newest first."""
        total, prompts = self.takes.history(words, max(0, start))
        return {"total": total, "size": PAGE, "prompts": [vars(prompt) for prompt in prompts]}

    def order(self, order: Order) -> dict[str, Any]:
        """Queues takes, the first of every system before any second one, and returns the state of their prompt.

        Existing takes are not generated again. Raises FieldError for a value that cannot be used, RecipeError for a
        full queue or a full disk.
        """
        source = self._take(order.source, generated=True) if order.source else None
        text = source.prompt if source else one_line("prompt", order.prompt)
        if not text:
            raise FieldError(
                "prompt", "The prompt is empty. Describe a sound, such as “a dog barks then a bell rings”."
            )
        words, negative = one_line("words", order.words), one_line("negative", order.negative)
        names = order.systems or ((source.system,) if source else ())
        unknown = [name for name in names if name not in self.systems]
        if unknown or not names:
            raise FieldError("systems", f"Choose a system. Available are {', '.join(self.systems)}.")
        check_numbers(order, self.view(source.id)["seconds"] if source else None)
        self._check_room(order.count * len(set(names)))
        seed = randbits(SEED_BITS) if order.seed is None else order.seed
        more = order.model_dump(include={"edit", "source", "start", "stop", "strength", "seconds", "scheduler"})
        takes = [
            Take.of(
                text, system.name, system.weights, system.steps if order.steps is None else order.steps,
                system.guidance if order.guidance is None else order.guidance, seed, number,
                words="" if words == text else words, negative=negative, **more,
            )
            for number in range(order.count)
            for system in (self.systems[name] for name in dict.fromkeys(names))
        ]  # fmt: skip
        self.takes.add(takes)
        self.worker.wake()
        return self.state(takes[0].prompt_id)

    def upload(self, name: str, prompt: str, data: bytes) -> dict[str, Any]:
        """Makes a take of an audio file, to start from, and returns the state of its prompt.

        Its prompt is the given one, else that of the file's tags, else its name. Raises AudioError for no audio.
        """
        text = one_line("prompt", prompt)
        self._check_room(1)
        digest = hashlib.sha256(data).hexdigest()[:16]
        clip, tagged = self.sounds.store_upload(digest, Path(name).name, data)
        stem = Path(name).stem.replace("_", " ").replace("-", " ")
        text = text or one_line("prompt", tagged[:MAX_PROMPT]) or one_line("prompt", stem[:MAX_PROMPT]) or UPLOAD
        take = Take.of(text, UPLOAD, digest, 1, 0.0, 0, edit=UPLOAD)
        self.sounds.adopt(digest, take)
        self.sounds.write(take, clip, None)
        self.takes.add([take.model_copy(update={"generated": now(), "title": Path(name).name[:MAX_PROMPT]})])
        return self.state(take.prompt_id)

    def retry(self, name: str) -> dict[str, Any]:
        """Queues a failed or cancelled take again and returns the state of its prompt."""
        take = self._take(name)
        self._check_room(1)
        self.takes.add([take])
        self.worker.wake()
        return self.state(take.prompt_id)

    def cancel(self, prompt_id: str) -> dict[str, Any]:
        """Takes a prompt's waiting takes out of the queue and returns the prompt's state; other prompts go on."""
        self.worker.cancel(prompt_id)
        return self.state(prompt_id)

    def decide(self, name: str, keep: bool | None) -> dict[str, Any]:
        """Keeps or discards a take, or undoes that (None), and returns its prompt's state. NotNow before generation."""
        take = self._take(name, generated=True)
        self.takes.decide(name, keep)
        return self.state(take.prompt_id)

    def rename(self, name: str, title: str) -> dict[str, Any]:
        """Gives a take a name of its own, or none, and returns its prompt's state."""
        take = self._take(name)
        self.takes.rename(name, one_line("title", title))
        return self.state(take.prompt_id)

    def delete(self, name: str, deleted: bool) -> dict[str, Any]:
        """Deletes a take, or restores it until the studio is started again, and returns its prompt's state."""
        take = self._take(name)
        self.takes.delete("id", name, deleted)
        if deleted:
            self.worker.abandon(name)
        return self.state(take.prompt_id)

    def delete_prompt(self, prompt_id: str, deleted: bool) -> dict[str, Any]:
        """Deletes a prompt with its takes, or restores it, and returns the state of the newest one, or of this one."""
        if deleted:
            self.worker.cancel(prompt_id)
        self.takes.delete("prompt_id", prompt_id, deleted)
        return self.state("" if deleted else prompt_id)

    def purge(self) -> None:
        """Removes the files of deleted takes, which could be restored until now."""
        for name in self.takes.purge():
            self.sounds.remove(name)

    def next_comparison(self, prompt_id: str) -> dict[str, Any]:
        """Two takes of a prompt that were not compared yet, neither discarded, and the number of such pairs.

        The least compared takes come first. A hash of their ids decides which one is A.
        """
        ids = {take.id for take in self.takes.of_prompt(prompt_id) if take.generated and take.keep is not False}
        done = {(choice.a, choice.b) for choice in self.takes.choices(prompt_id)}
        done = {pair for pair in done if ids.issuperset(pair)}
        left = len(ids) * (len(ids) - 1) // 2 - len(done)
        if not left:
            return {"left": 0}
        met = Counter(name for pair in done for name in pair)
        order = sorted(ids, key=lambda name: (met[name], content_id(name)))
        pairs = ((a, b) for place, a in enumerate(order) for b in order[place + 1 :])
        first, second = next(pair for pair in pairs if tuple(sorted(pair)) not in done)
        return {"left": left} | self._sides(first, second)

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

    def undo_choice(self, prompt_id: str) -> dict[str, Any]:
        """Takes back the last comparison of a prompt and returns its two takes; NotNow where there is none."""
        pair = self.takes.undo_choice(prompt_id)
        if pair is None:
            raise NotNow("there is no comparison to undo")
        left = self.next_comparison(prompt_id)["left"]
        return {"left": left} | self._sides(*pair)

    def sound(self, name: str) -> Path:
        """The playback file of a take; Unknown where there is none."""
        return self.sounds.playback(self._take(name, generated=True))

    def view(self, name: str) -> dict[str, Any]:
        """What the player draws of a take."""
        return self.sounds.view(self._take(name, generated=True))

    def original(self, name: str) -> tuple[str, bytes]:
        """A name for a take's file and its bytes: the original, with its settings in the tags."""
        return self.sounds.original(self._take(name, generated=True))

    def archive(self, prompt_id: str = "") -> IO[bytes]:
        """A ZIP of everything that is kept, or of what is kept of one prompt. NotNow where that is nothing."""
        takes = [take for take in self.takes.all_generated() if take.keep and prompt_id in ("", take.prompt_id)]
        if not takes:
            raise NotNow("nothing is kept yet")
        return self.sounds.archive(takes)

    def save(self, take: Take, clip: Clip, samples: np.ndarray | None = None) -> None:
        """Writes a take's files and its scores, then marks it as generated."""
        self.sounds.write(take, clip, samples)
        if self.scorers:
            self.takes.store_scores(take.id, score_clips([clip], [take.prompt], self.scorers, 1)[0])
        self.takes.mark_generated(take.id)

    def _source(self, take: Take) -> Any:
        return self.sounds.source(self._take(take.source, generated=True))

    def _sides(self, first: str, second: str) -> dict[str, Any]:
        low, high = sorted((first, second))
        a, b = (high, low) if int(content_id(low, high), 16) % 2 else (low, high)
        return {"a": self._card(self._take(a)), "b": self._card(self._take(b))}

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

    def _take(self, name: str, generated: bool = False) -> Take:
        take = self.takes.get(name)
        if take is None:
            raise Unknown("there is no such take")
        if generated and not take.generated:
            raise NotNow("this take is not generated yet")
        return take

    def _card(self, take: Take) -> dict[str, Any]:
        """A take as the page shows it. The seed is a string: it may have more bits than a number of JavaScript."""
        fields = take.model_dump(exclude={"prompt", "prompt_id", "weights"})
        offered = take.system in self.systems
        return fields | {"seed": str(take.seed), "generated": take.generated is not None, "offered": offered}

    def _check_room(self, count: int) -> None:
        waiting = self.takes.num_waiting()
        if waiting + count > MAX_WAITING:
            raise RecipeError(f"The queue has {waiting} takes, and {MAX_WAITING} are the limit. Wait, or cancel some.")
        free = shutil.disk_usage(self.folder).free
        if free < ROOM:
            raise RecipeError(
                f"Only {free / 1e6:.0f} MB are free on the disk, and {ROOM / 1e6:.0f} are needed. Make room."
            )
