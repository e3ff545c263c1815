"""How far a reader walks from a command to its network, and how large the package is.

    python benchmarks/frames.py            # sizes, then the frames of generate, run, train and evaluate on nano
    python benchmarks/frames.py --sizes    # sizes alone

Frames are Python frames of files in milonga, from the command function (included) to the first forward pass of the
network (excluded, with its own methods): the denoiser for generate, run and train, a scorer for evaluate.
Comprehensions do not count. Work on an engine's threads has a stack of its own, so the stack that submitted it is put
above it.
"""

import argparse
import csv
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch.nn.modules.module import register_module_forward_pre_hook

import milonga

PACKAGE = Path(milonga.__file__).parent
LIMITS = {"generate": 4, "run": 8, "train": 7, "evaluate": 6}
MODULES, LINES, ROOM = 178, 36_764, 15  # a ratchet: new features need room that merging makes
COMPREHENSIONS = ("<listcomp>", "<dictcomp>", "<setcomp>", "<genexpr>")
RECIPE = """
name = "frames"
[models]
scorers = ["nano-clap-a"]
[prompts]
sources = ["world:train:4"]
[[plan.strategies]]
name = "1"
steps = [2, 2]
guidance = 1.0
[[train.systems]]
name = "tuned"
phases = [{ loss = "sft", epochs = 1 }]
"""


def sizes() -> dict[str, int]:
    """Modules (without `__init__.py`), lines of Python, and Python files of every room (with `__init__.py`)."""
    files = sorted(PACKAGE.rglob("*.py"))
    counts: Counter[str] = Counter()
    for path in files:
        parts = path.relative_to(PACKAGE).parts
        if len(parts) > 1:
            counts["/".join(parts[:-1])] += 1
    modules = sum(path.name != "__init__.py" for path in files)
    lines = sum(len(path.read_text(encoding="utf-8").splitlines()) for path in files)
    return {"modules": modules, "lines": lines, **counts}


def stack(frame: FrameType | None) -> list[str]:
    """The frames of milonga above `frame`, innermost first, across the submission of work to a pool of threads."""
    names: list[str] = []
    while frame is not None:
        if frame.f_code.co_name == "submitted_work":
            return [*names, *frame.f_locals["above"]]
        path, name = Path(frame.f_code.co_filename), frame.f_code.co_name
        inside = isinstance(frame.f_locals.get("self"), torch.nn.Module)
        if path.is_relative_to(PACKAGE) and not inside and name not in COMPREHENSIONS:
            names.append(f"{path.relative_to(PACKAGE).with_suffix('')}:{frame.f_code.co_qualname}")
        frame = frame.f_back
    return names


class Reached(BaseException):
    """The network is reached: nothing after it matters. No handler of errors may catch it."""


def path_of(command: str, words: list[str], networks: tuple[str, ...]) -> list[str]:
    """The frames from a command's function to the first forward of one of these network classes, outermost first."""
    from milonga.cli.main import app

    first: list[str] = []

    def hook(module: Any, inputs: Any) -> None:
        if not first and (not networks or type(module).__name__ in networks):
            first.extend(stack(sys._getframe(1)))
            raise Reached

    submit = ThreadPoolExecutor.submit

    def recorded(pool: ThreadPoolExecutor, work: Any, *args: Any, **options: Any) -> Any:
        above = stack(sys._getframe(1))

        def submitted_work(*inner: Any, **named: Any) -> Any:
            _ = above
            return work(*inner, **named)

        return submit(pool, submitted_work, *args, **options)

    handle = register_module_forward_pre_hook(hook)
    ThreadPoolExecutor.submit = recorded  # type: ignore[method-assign]
    try:
        app([command, *words], standalone_mode=False)
    except (Reached, SystemExit):
        pass
    finally:
        ThreadPoolExecutor.submit = submit  # type: ignore[method-assign]
        handle.remove()
    frames = first[::-1]
    own = (f":{command}", f":_{command}")
    begin = [place for place, name in enumerate(frames) if name.startswith("cli/") and name.endswith(own)]
    return frames[begin[-1] :] if begin else frames


def paths(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """(command, frames) of every command that has a limit, on nano with tiny settings; writes into `folder`."""
    import soundfile

    recipe = folder / "frames.toml"
    recipe.write_text(RECIPE)
    denoiser = ("UNet2DConditionModel",)
    yield "generate", path_of("generate", ["rain", "--steps", "2", "--out", str(folder)], denoiser)
    run = [str(recipe), "--out", str(folder / "run")]
    yield "run", path_of("run", run, denoiser)
    milonga.run(recipe, folder / "run", until="pair")
    yield "train", path_of("train", run, denoiser)
    pipe = milonga.load("nano")
    (folder / "clips").mkdir()
    soundfile.write(folder / "clips" / "a.wav", pipe("rain", seeds=0, num_inference_steps=2).audios[0], 16000)
    with (folder / "captions.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["clip", "caption"], ["a.wav", "rain"]])
    words = [str(folder / "clips"), "--captions", str(folder / "captions.csv"), "--weights", "nano"]
    yield "evaluate", path_of("evaluate", words, ())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", action="store_true", help="sizes alone")
    options = parser.parse_args()
    counts = sizes()
    modules, lines = counts.pop("modules"), counts.pop("lines")
    room = max(counts, key=lambda name: counts[name])
    print(f"modules {modules} (at most {MODULES}), lines {lines:,} (at most {LINES:,})")
    print(f"largest room {room} with {counts[room]} files (at most {ROOM})")
    if options.sizes:
        return
    with tempfile.TemporaryDirectory() as folder:
        for command, frames in paths(Path(folder)):
            print(f"{command}: {len(frames)} frames (at most {LIMITS[command]})")
            print("    " + " → ".join(frames))


if __name__ == "__main__":
    main()
