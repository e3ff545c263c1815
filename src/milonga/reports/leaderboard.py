"""The leaderboard: an evaluation as what the report's page tells of; the same tables, plots, pictures and players."""

from collections.abc import Mapping
from pathlib import Path

from milonga.core.audio import flac_bytes
from milonga.core.records import Clip, Prompt
from milonga.core.store import write_json, write_text
from milonga.evaluation.evaluate import Evaluation, events_of
from milonga.evaluation.formatting import rows
from milonga.evaluation.inputs import REFERENCE, Gathered, Sound
from milonga.evaluation.measure import Performance
from milonga.reports.html import page
from milonga.reports.material import Heard, Material


def write(found: Evaluation, folder: Path) -> Path:
    """Writes summary.json and comparisons.json in a run's form, and the page; gives the page's path."""
    write_json(folder / "summary.json", rows(found.summaries))
    write_json(folder / "comparisons.json", rows(found.comparisons))
    write_text(folder / "leaderboard.html", page(material(found)))
    return folder / "leaderboard.html"


def material(found: Evaluation) -> Material:
    """What the page shows: worst clips first come from the first CLAP; without captions a clip's name stands for it."""
    prompts = prompts_of(found.gathered, found.splits)
    systems = list(found.gathered.systems)

    def clips(system: str, names: set[str]) -> dict[str, bytes]:
        side = found.gathered.reference if system == REFERENCE else found.gathered.systems[system]
        return {key: _flac(side[key]) for key in names}

    return Material(
        name=found.gathered.name,
        clips=clips,
        kept=[],
        refused=[],
        summaries=found.summaries,
        comparisons=found.comparisons,
        training={},
        prompts=prompts,
        heard={one.name: _heard(one, prompts, found) for one in found.performances if set(prompts) & set(_keys(one))},
        recipe="",
        thresholds=[],
        manifest={},
        baseline="base" if "base" in systems else systems[0],
        whole=False,
        warnings=tuple(found.warnings),
    )


def prompts_of(gathered: Gathered, splits: Mapping[str, list[str]]) -> dict[str, Prompt]:
    """A prompt for every clip, by its key, tagged with the splits that it is in."""
    found = {}
    for key in splits["overall"]:
        known = gathered.prompts.get(key, Prompt(id=key, text=key, source="file"))
        tags = tuple(name for name, keys in splits.items() if name != "overall" and key in keys)
        found[key] = known.model_copy(update={"id": key, "tags": tags})
    return found


def _keys(one: Performance) -> list[str]:
    return list(next(iter(one.columns.values()), {}))


def _heard(one: Performance, prompts: Mapping[str, Prompt], found: Evaluation) -> dict[str, Heard]:
    judged = next((column for name, column in one.columns.items() if name.startswith("score ")), {})
    events = one.columns.get("events", {})
    return {
        key: Heard(
            key, key, float(judged.get(key, float("nan"))),
            events_of(events[key], found.classes) if key in events else (),
        )
        for key in _keys(one)
        if key in prompts
    }  # fmt: skip


def _flac(sound: Sound) -> bytes:
    samples, rate = sound.samples()
    return flac_bytes(Clip(samples.mean(axis=1), rate))
