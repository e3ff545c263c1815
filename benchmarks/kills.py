"""A run killed at random moments and resumed: `python benchmarks/kills.py FOLDER [--recipe smoke] [--kills 20]`.

Runs the recipe once undisturbed (FOLDER/whole), then again (FOLDER/killed) with SIGKILLs at random moments, spread over
the files that the first run wrote and so over all of its stages. After each kill every shard must be complete; at the
end no shard that was finished at a kill may have been written again, and all shards must equal those of the undisturbed
run. Prints the result as JSON; exit status 1 when a rule is broken.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from milonga.core.records import Pair
from milonga.core.store import PART, Run, Shards

Times = dict[str, int]


def files(path: Path) -> set[str]:
    """All finished files of a run folder."""
    found = (
        file
        for file in path.rglob("*")
        if file.is_file() and PART not in "".join(file.suffixes) and file.name != "lock"
    )
    return {str(file.relative_to(path)) for file in found}


def sound(path: Path) -> Times:
    """When each shard was written; raises StoreError when one is damaged."""
    shards = sorted(path.rglob("*.parquet"))
    for file in shards:
        Shards(file.parent).read_table(file.stem)
    return {str(file.relative_to(path)): file.stat().st_mtime_ns for file in shards}


def command(asked: argparse.Namespace, out: Path) -> list[str]:
    """`milonga run` of the recipe in a folder."""
    words = [sys.executable, "-m", "milonga", "run", asked.recipe, "--out", str(out), "--engine", asked.engine]
    return words + [word for change in asked.set for word in ("--set", change)]


def killed_at(words: list[str], out: Path, count: int, wait: float) -> str:
    """Runs until `count` files were seen, waits, and kills; the newest file then, or "" when it ended before."""
    with (out.parent / "log").open("a") as log:
        process = subprocess.Popen(words, stdout=log, stderr=log)
        seen: set[str] = set()
        while process.poll() is None and len(seen) < count:
            seen |= files(out)
            time.sleep(0.02)
        time.sleep(wait)
        if process.poll() is not None:
            return ""
        process.kill()
        process.wait()
    return max(files(out), key=lambda name: (out / name).stat().st_mtime_ns, default="nothing yet")


def ordeal(asked: argparse.Namespace) -> dict[str, Any]:
    """Both runs, and their comparison."""
    whole, out = asked.folder / "whole", asked.folder / "killed"
    asked.folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(command(asked, whole), check=True, stdout=subprocess.DEVNULL)
    chance, last = np.random.default_rng(asked.seed), len(files(whole))
    told, finished = [], {}
    for count in sorted(chance.integers(0, last, asked.kills).tolist()):
        after = killed_at(command(asked, out), out, count, float(chance.uniform(0, 2)))
        told.append({"files": count, "after": after, "unfinished": len(list(out.rglob(f"*{PART}")))})
        finished |= {name: at for name, at in sound(out).items() if name not in finished}
    subprocess.run(command(asked, out), check=True, stdout=subprocess.DEVNULL)
    return {"kills": told} | compared(whole, out, finished)


def compared(whole: Path, out: Path, finished: Times) -> dict[str, Any]:
    """What must hold between the undisturbed run and the killed one."""
    pairs = [[one.model_dump_json() for one in Run(path).stage("pair").read_records(Pair)] for path in (whole, out)]
    at, expected = sound(out), sound(whole)
    same = sum((whole / name).read_bytes() == (out / name).read_bytes() for name in expected if name in at)
    return {
        "finished at some kill": len(finished),
        "of these written again": sum(at.get(name) != when for name, when in finished.items()),
        "pairs": len(pairs[0]),
        "pairs identical": pairs[0] == pairs[1],
        "shards": len(expected),
        "shards identical": same,
        "left unfinished": len(list(out.rglob(f"*{PART}"))),
    }


def main() -> None:
    """Runs both and prints the comparison."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--recipe", default="smoke")
    parser.add_argument("--engine", default="local")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    found = ordeal(parser.parse_args())
    print(json.dumps(found, indent=1))
    held = found["pairs identical"] and found["shards identical"] == found["shards"] and not found["left unfinished"]
    sys.exit(0 if held and not found["of these written again"] else 1)


if __name__ == "__main__":
    main()
