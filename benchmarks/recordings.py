"""193 real recordings of mixed formats, from the files to an exported model: `python benchmarks/recordings.py FOLDER`.

    python benchmarks/recordings.py FOLDER [--debs DIR] [--write benchmarks/inputs.md]

The recordings are those of Debian's packages `tuxpaint-stamps-default` (GPL-2) and `sonic-pi-samples` (CC0): 108 noises
of animals and things as Ogg Vorbis (5 to 44.1 kHz) and 85 drums, instruments and loops as FLAC, mono and stereo. The
packages are fetched by `apt-get download`, or taken from DIR. The script writes the tables of captions; of every fifth
recording the model sees nothing, and those are evaluated. Then nano is fine-tuned for a few steps, generates, is
evaluated, put before listeners and exported, each by the command that a user types. Prints the time and the memory of
each as Markdown; exits with 1 when a command fails or a recording is lost.
"""

import argparse
import csv
import json
import os
import re
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import soundfile

sys.path.append(str(Path(__file__).parents[1] / "tests" / "support"))  # the raters
PACKAGES = ("tuxpaint-stamps-default", "sonic-pi-samples")
STEPS = "10"  # of a clip: the model's own 200 take twenty times as long and show nothing more
STAMPS, SAMPLES = "usr/share/tuxpaint/stamps", "usr/share/sonic-pi/samples"
COUNT, HELD_OUT = 193, 5
BEGIN, END = "<!-- recordings:begin -->", "<!-- recordings:end -->"


class Cost(NamedTuple):
    """What a command cost: wall-clock and CPU seconds, peak memory in MB; and what it wrote."""

    wall: float
    cpu: float
    memory: float
    text: str


def unpack(folder: Path, debs: Path | None) -> Path:
    """The packages' files below a folder, fetched where they are not there yet."""
    root = folder / "root"
    if not root.is_dir():
        source = debs or folder
        if debs is None:
            subprocess.run(["apt-get", "download", *PACKAGES], cwd=folder, check=True, stdout=subprocess.DEVNULL)
        for name in PACKAGES:
            package = next(source.glob(f"{name}_*.deb"))
            subprocess.run(["dpkg-deb", "-x", package, root.with_suffix(".part")], check=True)
        root.with_suffix(".part").rename(root)
    return root


def recordings(root: Path) -> list[tuple[Path, str]]:
    """(file, caption) of the 193: a stamp's noise by the stamp's own English description, a sample by its name."""
    noises = [file for file in (root / STAMPS).rglob("*.ogg") if "_desc" not in file.name]
    rows = []
    for file in sorted(
        noise for noise in noises if "symbols" not in noise.parts
    ):  # those are spoken letters and digits
        text = file.with_suffix(".txt")
        described = text.read_text().splitlines()[0] if text.is_file() else file.stem.replace("_", " ")
        rows.append((file, described.strip().rstrip(".!")))
    samples = sorted((root / SAMPLES).glob("*.flac"))
    wanted = COUNT - len(rows)
    chosen = [samples[place * len(samples) // wanted] for place in range(wanted)]
    return rows + [(file, f"the sound of {file.stem.replace('_', ' ')}") for file in chosen]


def write_tables(folder: Path, rows: list[tuple[Path, str]]) -> None:
    """`train.csv`, `held-out.csv` (each row a file and its caption), and the held-out recordings in `real/`."""
    (folder / "real").mkdir(exist_ok=True)
    tables = {"train": [], "held-out": []}
    for place, (file, caption) in enumerate(rows):
        held_out = place % HELD_OUT == 0
        tables["held-out" if held_out else "train"].append((file.relative_to(folder), caption))
        if held_out and not (link := folder / "real" / f"{place:03d}{file.suffix}").exists():
            link.symlink_to(file.resolve())
    for name, cells in tables.items():
        with (folder / f"{name}.csv").open("w", newline="") as table:
            csv.writer(table).writerows([("file_name", "caption"), *cells])


def pair_up(folder: Path, made: Path, system: str) -> None:
    """Links the clips that `generate` made of the held-out captions under the names of the real ones."""
    clips = folder / "systems" / system
    clips.mkdir(parents=True, exist_ok=True)
    entries = [json.loads(line) for line in (made / "clips.jsonl").read_text().splitlines()]
    files = {entry["prompt"]: (made / entry["file_name"]).resolve() for entry in entries}
    rows = []
    with (folder / "held-out.csv").open(newline="") as table:
        for real, row in zip(sorted((folder / "real").iterdir()), csv.DictReader(table), strict=True):
            if not (link := clips / f"{real.stem}.wav").exists():
                link.symlink_to(files[row["caption"]])
            rows.append((real.stem, row["caption"]))
    with (folder / "captions.csv").open("w", newline="") as table:
        csv.writer(table).writerows([("clip", "caption"), *rows])


def milonga(folder: Path, *words: str) -> Cost:
    """Runs a command in a folder; what it cost, and what it wrote."""
    began, log = time.perf_counter(), folder / "log"
    with log.open("w") as file:
        process = subprocess.Popen([sys.executable, "-m", "milonga", *words], cwd=folder, stdout=file, stderr=file)
        _, status, usage = os.wait4(process.pid, 0)
    text = log.read_text()
    if status or "Traceback" in text:
        raise SystemExit(f"milonga {' '.join(words)}: exit {os.waitstatus_to_exitcode(status)}\n{text}")
    return Cost(time.perf_counter() - began, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024, text)


def listened(folder: Path) -> Cost:
    """Serves the listening test and lets two raters hear and judge every clip, over HTTP."""
    from small_test import Rater

    from milonga.listening_test.material import read_test

    began = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "milonga", "listen", "serve", "test", "--port", "0"],
        cwd=folder, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    assert process.stdout is not None
    link = process.stdout.readline().strip()
    base, test, judged = link.partition("/admin/")[0], read_test(folder / "test"), 0
    links = milonga(folder, "listen", "links", "test", "-n", "2").text
    for number, token in enumerate(re.findall(r"/r/(\S+)", links), 1):
        rater = Rater(base, token, number, test)
        rater.session()
        judged += len(rater.given)
    process.terminate()
    _, _, usage = os.wait4(process.pid, 0)
    cpu, text = usage.ru_utime + usage.ru_stime, f"{judged} judgements of two raters over HTTP"
    return Cost(time.perf_counter() - began, cpu, usage.ru_maxrss / 1024, text)


def measured(folder: Path, debs: Path | None, epochs: int) -> list[str]:
    """The lines of the page: what the recordings are, and each command with its time and memory."""
    rows = recordings(unpack(folder, debs))
    if len(rows) != COUNT:
        raise SystemExit(f"{len(rows)} recordings, not {COUNT}: another version of the packages")
    write_tables(folder, rows)
    infos = [soundfile.info(file) for file, _ in rows]
    kinds = Counter((info.format, info.samplerate, info.channels) for info in infos)
    parts = [f"{count} {kind} of {rate:,} Hz in {channels}" for (kind, rate, channels), count in sorted(kinds.items())]
    seconds = [info.duration for info in infos]
    phases = f"train.systems.0.phases.0.epochs={epochs}"
    train = ("train", "finetune", "--set", 'train.clips="clips:train.csv"', "--set", phases, "--out", "run")
    folders = ("base=systems/base", "finetuned=systems/finetuned", "--reference", "real", "--captions", "captions.csv")
    steps, tuned = ("--steps", STEPS), ("run/finetuned", "--out", "made-finetuned")
    jobs = [
        ("fine-tuned", train),
        ("made by the base", ("generate", "--prompts", "held-out.csv", *steps, "--out", "made-base")),
        ("made by it", ("generate", "--prompts", "held-out.csv", *steps, "--model", *tuned)),
        ("evaluated", ("evaluate", *folders, "--weights", "nano", "--no-cache", "--out", "leaderboard")),
        (
            "a listening test",
            ("listen", "make", "systems", "--captions", "captions.csv", "--out", "test", "--seed", "1"),
        ),
        ("listened to", ()),
        ("its results", ("listen", "results", "test")),
        ("its judgements", ("listen", "export", "test", "judgements.csv")),
        ("exported", ("export", "run", "exported", "--system", "finetuned")),
        ("the export used", ("generate", "A dog", *steps, "--model", "exported", "--out", "used")),
    ]
    table, stored = [], folder / "costs.json"
    costs = json.loads(stored.read_text()) if stored.is_file() else {}  # a script that was stopped goes on where it was
    for name, words in jobs:
        if name not in costs:
            costs[name] = milonga(folder, *words) if words else listened(folder)
            if name.startswith("made by"):
                pair_up(folder, folder / words[-1], words[-1].removeprefix("made-"))
            if name == "made by it":  # the real clips are a system of the listening test
                (folder / "systems" / "reference").symlink_to(folder / "real")
            stored.write_text(json.dumps(costs))
        wall, cpu, memory, text = costs[name]
        if "left out" in text:
            raise SystemExit(f"a recording was left out: {text}")
        shown = f"`milonga {' '.join(words)}`" if words else f"`milonga listen serve test`: {text}"
        table.append(f"| {name} | {shown} | {wall:.0f} s | {cpu:.0f} s | {memory:,.0f} MB |")
    return [
        f"{COUNT} recordings, {sum(seconds):.0f} s in all, {min(seconds):.2f} to {max(seconds):.1f} s each: "
        f"{', '.join(parts)} channels. {COUNT - len(list((folder / 'real').iterdir()))} are trained on; no recording "
        "was left out.",
        "",
        "| what | command | wall | CPU | peak memory |",
        "|---|---|--:|--:|--:|",
        *table,
    ]


def main() -> None:
    """Runs all commands and prints the page's part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="an empty folder")
    parser.add_argument("--debs", type=Path, metavar="DIR", help="where the two packages are already")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--write", type=Path, metavar="PAGE", help="write between the page's markers")
    arguments = parser.parse_args()
    folder = arguments.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    text = "\n".join(measured(folder, arguments.debs, arguments.epochs))
    if arguments.write:
        before, _, rest = arguments.write.read_text().partition(BEGIN)
        _, _, after = rest.partition(END)
        arguments.write.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}")
    print(text)


if __name__ == "__main__":
    main()
