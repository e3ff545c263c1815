"""Names made from content, and seeds made from names.

An id is a hash of what a thing *is*, so the same request has the same id in every run, shard, batch and engine; a
clip's seed is derived from the run's seed and that id, so no two requests share a noise by accident and no result
depends on batch size, order or the moment of a crash.
"""

import hashlib
import json
import sys
import unicodedata
from pathlib import Path
from typing import Any

SLUG_BYTES = 120  # of a prompt in a file's name; most file systems allow 255 for all of it
# Created once: `json.dumps` creates an encoder in every call, which is half of the time that an id takes.
_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def content_id(*parts: Any) -> str:
    """The first 16 hex digits of the SHA-256 of `parts` written as canonical JSON."""
    text = _CANONICAL.encode(parts)
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:16]  # a file's name may be no text


def derive_seed(seed: int, *parts: Any) -> int:
    """A 63-bit seed that depends on the run's `seed` and on every one of `parts` (non-negative, fits int64)."""
    return int(content_id(seed, *parts), 16) >> 1


def clip_seed(seed: int, text: str, number: int) -> int:
    """The seed of a prompt's clip by its text and its number, whatever its steps, guidance and scheduler.

    So two clips that differ only in how they were denoised start from the same noise.
    """
    return derive_seed(seed, "clip", " ".join(text.split()), number)


def file_hash(path: Path) -> str:
    """SHA-256 of a file's bytes, as hex; read in blocks, so any size will do."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
