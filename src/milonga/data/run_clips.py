"""The clips of a run folder, by their ids."""

from collections import OrderedDict
from dataclasses import dataclass

from milonga.core.errors import DataError, StoreError
from milonga.core.records import Prompt, Request
from milonga.core.store import Run, read_manifest

RECENT = 4  # shards of clips that are kept in memory: winner and loser were planned near each other


@dataclass(frozen=True)
class Planned:
    """Where a clip is: its place in the plan, the shard that holds it, and its guidance."""

    place: int
    shard: str
    guidance: float


class ClipBytes:
    """The FLAC bytes of a run's clips by id, read shard by shard; the last few shards stay in memory."""

    def __init__(self, run: Run) -> None:
        self._shards, self._recent = run.stage("generate"), OrderedDict[str, dict[str, bytes]]()

    def get(self, clip: str, shard: str) -> bytes:
        """One clip's file; DataError when its shard does not hold it."""
        if shard not in self._recent:
            rows = self._shards.read_table(shard, ["id", "audio"]).to_pylist()
            self._recent[shard] = {row["id"]: row["audio"]["bytes"] for row in rows}
        self._recent.move_to_end(shard)
        while len(self._recent) > RECENT:
            self._recent.popitem(last=False)
        if clip not in self._recent[shard]:
            raise DataError(f"{self._shards.path}: shard {shard} lacks clip {clip}; delete it and run again")
        return self._recent[shard][clip]


def planned(run: Run) -> dict[str, Planned]:
    """Where every clip of a run is, by its id; the plan is small, and the clips' shards are named after its own."""
    shards, found = run.stage("plan"), {}
    for shard in shards.names():
        table = shards.read_table(shard, ["id", "guidance"])
        for clip, guidance in zip(table["id"].to_pylist(), table["guidance"].to_pylist(), strict=True):
            found[clip] = Planned(len(found), shard, guidance)
    return found


def evaluation_requests(run: Run) -> list[tuple[Prompt, Request]]:
    """The held-out prompts of an evaluated run, each with the request that all of its systems' clips answer.

    Raises StoreError when the folder is no run.
    """
    manifest = read_manifest(run)
    if manifest is None:
        raise StoreError(f"{run.path} is no run folder: make one with `milonga run RECIPE --out {run.path}`")
    recipe, prompts = manifest["recipe"], run.stage("evaluate/prompts").read_records(Prompt)
    steps, guidance = recipe["evaluate"]["steps"], recipe["evaluate"]["guidance"]
    return [(one, Request.of(recipe["seed"], one, one.text, steps, guidance)) for one in prompts]
