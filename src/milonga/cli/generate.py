"""The command `generate`: prompts in, playable files out, with their settings in their tags and in a manifest.

Two requests that differ in anything never share a file: its name ends in a hash of everything that the clip depends on.
The manifest `clips.jsonl` beside the clips is a table that `clips:`, `captions:` and `evaluate --captions` read.
"""

import json
import os
import sys
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from milonga.core.audio import write_audio
from milonga.core.errors import DataError, RecipeError, StoreError
from milonga.core.ids import clip_seed, content_id
from milonga.core.progress import tracked
from milonga.core.protocols import Model
from milonga.core.records import Prompt, Request
from milonga.core.store import write_bytes

BATCH = 8  # clips that are generated at once; a clip is the same in any batch
MANIFEST = "clips.jsonl"
SHORTEST = 0.01  # seconds: less is not even one row of a latent picture
SLUG_BYTES = 120  # of a prompt in a file's name; most file systems allow 255 for all of it


def generate_clips(
    model: Model,
    prompts: Sequence[str],
    out: Path,
    steps: int,
    guidance: float,
    seed: int = 0,
    count: int = 1,
    details: Mapping[str, str] | None = None,
    resume: bool = False,
) -> Iterator[Path]:
    """Writes `count` clips of each prompt into `out` as `a-dog-barks-SEED-NUMBER-HASH.wav`; gives their paths in order.

    A clip's seed derives from `seed`, its prompt's text and its number: the same arguments replace the same files,
    other steps start from the same noise. `details` are what the clips depend on beside the arguments (scheduler,
    duration, the hash of the weights); they go into the name's hash, the tags and the manifest. With `resume` a clip
    that the manifest names and that is there is not generated again. Raises StoreError when the disk refuses.
    """
    requests: dict[str, tuple[Request, dict[str, object]]] = {}
    for text in prompts:
        for number in range(count):
            words = " ".join(text.split())
            request = Request.of(seed, Prompt.of(words, "command line"), words, int(steps), float(guidance), number)
            settings = {
                "prompt": words, "model": model.name, "seed": seed, "number": number, "steps": request.steps,
                "guidance": request.guidance, **(details or {}),
            }  # fmt: skip
            name = f"{slug(words)}-{seed}-{number}-{content_id(settings)[:10]}.wav"
            requests[name] = request.model_copy(update={"seed": clip_seed(seed, words, number)}), settings
    listed = _listed(out / MANIFEST)
    finished = {name for name in requests if resume and name in listed and (out / name).is_file()}
    yield from (out / name for name in requests if name in finished)
    missing = [name for name in requests if name not in finished]
    with tracked("generate", len(requests), len(finished)) as advance:
        for first in range(0, len(missing), BATCH):
            batch = missing[first : first + BATCH]
            for name, clip in zip(batch, model.generate([requests[name][0] for name in batch]), strict=True):
                settings = requests[name][1]
                write_audio(out / name, clip, {key: str(value) for key, value in settings.items()})
                if name not in listed:
                    _append(out / MANIFEST, {"file_name": name, **settings})
                advance(1)
                yield out / name


def check(prompts: Sequence[str], steps: int, guidance: float, count: int, duration: float | None) -> None:
    """Raises DataError for a prompt that is empty or not UTF-8, RecipeError for numbers that make no sense: before a
    model is loaded."""
    if not prompts or any(not text.strip() for text in prompts):
        raise DataError('a prompt is empty: say what to hear, such as "a dog barks then a bell rings"')
    for text in prompts:
        if not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text):
            shown = text.encode(errors="surrogateescape").decode(errors="backslashreplace")
            raise DataError(f"the prompt {shown!r} is not UTF-8: type it in a terminal whose encoding is UTF-8")
    if steps < 1 or count < 1:
        raise RecipeError("--steps and -n must be at least 1")
    if not 0 <= guidance < float("inf"):
        raise RecipeError("--guidance must be 0 or a positive number")
    if duration is not None and 0 < duration < SHORTEST:
        raise RecipeError(f"--duration must be at least {SHORTEST} seconds")
    if duration is not None and not 0 < duration < float("inf"):
        raise RecipeError("--duration must be more than 0 seconds")


def read_prompts(path: Path) -> list[str]:
    """The prompts of a file: of a table (.csv, .tsv, .json, .jsonl, .parquet) its captions, of other text its lines.

    Raises DataError for a file that cannot be read or holds no prompt.
    """
    from milonga.data.captions import caption_texts
    from milonga.data.tables import TABLE_SUFFIXES, read_text

    if path.suffix.lower() in TABLE_SUFFIXES:
        return list(caption_texts(path))
    prompts = [line.strip() for line in read_text(path).splitlines() if line.strip()]
    if not prompts:
        raise DataError(f"{path} holds no prompt: write one a line")
    return prompts


def slug(text: str, length: int = 60) -> str:
    """A prompt as a part of a file's name: small letters and digits of any script, and dashes; `clip` where nothing is
    left, or where the file system's encoding has not these letters."""
    letters = unicodedata.normalize("NFC", text.lower())
    words = "".join(letter if unicodedata.category(letter)[0] in "LNM" else " " for letter in letters).split()
    name = "-".join(words)[:length].encode()[:SLUG_BYTES].decode(errors="ignore").strip("-")
    try:
        name.encode(sys.getfilesystemencoding())
    except UnicodeEncodeError:
        return slug(name.encode("ascii", "ignore").decode())
    return name or "clip"


def _listed(manifest: Path) -> set[str]:
    """The files that a manifest names; a last line that a crash cut off is removed."""
    try:
        data = manifest.read_bytes() if manifest.exists() else b""
        if data and not data.endswith(b"\n"):
            data = data[: data.rfind(b"\n") + 1]
            write_bytes(manifest, data)
        return {json.loads(line)["file_name"] for line in data.splitlines() if line.strip()}
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise StoreError(
            f"{manifest} is no manifest of clips ({error}): move it away, or choose another --out"
        ) from error


def _append(manifest: Path, entry: Mapping[str, object]) -> None:
    """Adds a line to the manifest and asks the disk to keep it; StoreError when the disk refuses."""
    try:
        with manifest.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry, ensure_ascii=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise StoreError(f"cannot write {manifest}: {error.strerror}; make room or choose another --out") from error
