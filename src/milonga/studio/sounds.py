"""The files of the studio's takes: originals, what the page plays and draws, WAVs, a ZIP of what is kept, uploads.

A take's original is one shard of `generate`. A file that was dropped, and what edits make of it, is in `files/`
too, with its own rate, channels and subtype.
"""

from functools import lru_cache
from pathlib import Path
from tempfile import SpooledTemporaryFile
from typing import IO, Any
from zipfile import ZIP_STORED, ZipFile

import numpy as np

from milonga.core.audio import (
    clip_table,
    flac_bytes,
    from_flac,
    pack_latents,
    read_samples,
    read_tags,
    wav_bytes,
    write_samples,
)
from milonga.core.errors import AudioError
from milonga.core.ids import slug
from milonga.core.records import Clip
from milonga.core.store import PART, Run, write_bytes
from milonga.listening_test.export import as_csv
from milonga.listening_test.material import amplified, playback_gain
from milonga.maths.clip_view import clip_view, loudness
from milonga.studio.clips import Take
from milonga.studio.worker import Source

MAX_TAG = 200  # characters of a prompt in a WAV file's tags, which hold no more
MAX_UPLOAD = 64 * 2**20  # bytes
MAX_SECONDS = 600  # of an upload
IN_MEMORY = 32 * 2**20  # bytes of a ZIP, before it goes to a temporary file
VIEWS = 512  # that are held in memory


class Sounds:
    """A studio's files, by take."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._views = lru_cache(VIEWS)(lambda shard: clip_view(self._clip(shard)))

    def write(self, take: Take, clip: Clip, samples: np.ndarray | None) -> None:
        """Writes a take's original clip and its playback file; `samples` of an edit also in its source's format."""
        path = self.file(take.source) if take.source else None
        if path is not None and samples is not None:
            _, rate, suffix, subtype = read_samples(path)
            write_samples(self.folder / "files" / f"{take.id}{suffix}", samples, rate, subtype, _tags(take))
        table = clip_table([take.id], [clip], [pack_latents(clip.latents)])
        Run(self.folder).stage("generate").write_table(shard_of(take), table)
        write_bytes(self.playback(take), flac_bytes(amplified(clip, playback_gain(clip, loudness(clip)))))

    def playback(self, take: Take) -> Path:
        """The file that the page plays, matched in loudness."""
        return self.folder / "playback" / f"{take.id}.flac"

    def file(self, name: str) -> Path | None:
        """The file of an upload, or of an edit of one; None for any other take."""
        files = (self.folder / "files").glob(f"{name}.*")
        return next((file for file in files if file.suffix != PART), None)

    def clip(self, take: Take) -> Clip:
        """A take's original."""
        return self._clip(shard_of(take))

    def _clip(self, shard: str) -> Clip:
        [row] = Run(self.folder).stage("generate").read_table(shard, ["audio"]).to_pylist()
        return from_flac(row["audio"]["bytes"])

    def view(self, take: Take) -> dict[str, Any]:
        """What the player draws; the level is the original's."""
        return self._views(shard_of(take))

    def source(self, take: Take) -> Source:
        """What an edit of a take starts from."""
        path = self.file(take.id)
        if path is not None:
            return Source(*read_samples(path)[:2])
        clip = self.clip(take)
        return Source(clip.samples.astype(np.float64), clip.rate)

    def original(self, take: Take) -> tuple[str, bytes]:
        """A name with the take's words, and the bytes of its file: the original, with its settings in the tags."""
        path = self.file(take.id)
        name = f"{slug(take.title or take.prompt)}-{take.seed}-{take.number}-{take.id[:6]}"
        if path is not None:
            return f"{name}{path.suffix}", path.read_bytes()
        return f"{name}.wav", wav_bytes(self.clip(take), _tags(take))

    def archive(self, takes: list[Take]) -> IO[bytes]:
        """A ZIP of the takes' files and of the table `takes.csv`, open at its beginning."""
        data: IO[bytes] = SpooledTemporaryFile(IN_MEMORY)  # noqa: SIM115  # the caller reads it
        with ZipFile(data, "w", ZIP_STORED) as file:
            for take in takes:
                file.writestr(*self.original(take))
            file.writestr("takes.csv", as_csv(takes, Take))
        data.seek(0)
        return data

    def store_upload(self, digest: str, name: str, data: bytes) -> tuple[Clip, str]:
        """Writes an uploaded file as `files/DIGEST` and returns it as a mono clip, with the prompt in its tags.

        What is neither WAV nor FLAC becomes a WAV with its decoded samples. Raises AudioError for what is no audio.
        """
        part = self.folder / "files" / f".{digest}{Path(name).suffix.lower()[:6]}"
        write_bytes(part, data)
        try:
            samples, rate, suffix, subtype = read_samples(part)
            if len(samples) > MAX_SECONDS * rate:
                raise AudioError(f"the file has {len(samples) / rate:.0f} s: the limit is {MAX_SECONDS} s")
            prompt = read_tags(part).get("prompt", "")
            if suffix == part.suffix:
                part.replace(part.with_name(f"{digest}{suffix}"))
            else:
                write_samples(part.with_name(f"{digest}{suffix}"), samples, rate, subtype, {})
        except AudioError as error:
            raise AudioError(str(error).replace(str(part), name or "the file")) from None
        finally:
            part.unlink(missing_ok=True)
        return Clip.of(samples.astype(np.float32), rate), prompt

    def adopt(self, digest: str, take: Take) -> None:
        """Makes an uploaded file that of a take."""
        path = self.file(digest)
        if path is not None:
            path.replace(path.with_name(f"{take.id}{path.suffix}"))

    def remove(self, name: str) -> None:
        """Deletes a take's files."""
        shard = self.folder / "generate" / f"take-{name}.parquet"
        for path in (shard, self.folder / "playback" / f"{name}.flac", self.file(name)):
            if path is not None:
                path.unlink(missing_ok=True)


def shard_of(take: Take) -> str:
    """The name of a take's shard in `generate`."""
    return f"take-{take.id}"


def _tags(take: Take) -> dict[str, str]:
    request = {"model": take.system, "seed": take.seed, "number": take.number, "steps": take.steps}
    request |= {"guidance": take.guidance, "negative": take.negative, "scheduler": take.scheduler, "edit": take.edit}
    return {"prompt": take.prompt[:MAX_TAG]} | {key: str(value) for key, value in request.items() if value != ""}
