"""What users hand in, tried on every reader: `python benchmarks/inputs.py [--write benchmarks/inputs.md]`.

    python benchmarks/inputs.py [--group audio] [--case "a cut FLAC"] [--write benchmarks/inputs.md]

Sound files, tables of captions, checkpoints and preference data, each made by this script: sound, unusual and damaged.
A case knows its right answer: the very samples, captions, weights and pairs, or a refusal that names the file (and the
line). Every reader of that kind of input must give it. Any other value, and any error that is not one of Milonga's own
in one line, is wrong. Prints a table as Markdown; exits with 1 when a case is wrong.
"""

import argparse
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from inputs_cases import Case, Group, Refused

from milonga.core.errors import MilongaError, MilongaWarning

BEGIN, END = "<!-- cases:begin -->", "<!-- cases:end -->"


def groups() -> dict[str, Group]:
    """All cases by kind of input."""
    import inputs_audio
    import inputs_checkpoints
    import inputs_pairs
    import inputs_tables

    modules = (inputs_audio, inputs_tables, inputs_checkpoints, inputs_pairs)
    return {module.__name__.removeprefix("inputs_"): module.group() for module in modules}


def outcome(read: Callable[[], Any]) -> tuple[Any, str, list[str]]:
    """What a reader gave: its value or None, its refusal or "", and its warnings. Raises what is no refusal."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            value, refusal = read(), ""
        except MilongaError as error:
            value, refusal = None, str(error)
    return value, refusal, [str(entry.message) for entry in caught if issubclass(entry.category, MilongaWarning)]


def judged(case: Case, group: Group, folder: Path) -> tuple[str, list[str]]:
    """What became of a case, in words, and what is wrong with it."""
    expected = case.make(folder)
    by_reader = {name: expected for name in group.readers if case.readers is None or name in case.readers}
    if isinstance(expected, dict) and expected and all(name in group.readers for name in expected):
        by_reader = expected
    told: dict[str, list[str]] = {}
    wrong = []
    for reader, right in by_reader.items():
        try:
            value, refusal, warned = outcome(lambda reader=reader: group.readers[reader](folder))
        except Exception as error:  # whatever it is, a user would see a traceback
            wrong.append(f"{reader}: {type(error).__name__}: {error}")
            traceback.print_exc()
            continue
        if isinstance(right, Refused):
            fault = right.fault(refusal, folder) if refusal else f"was read, as {str(value)[:200]}"
            words = f"refused: {shortened(refusal, folder)}"
        else:
            fault = f"was refused: {refusal}" if refusal else group.fault(value, right)
            words = "read right" + "".join(f"; warned: {shortened(line, folder)}" for line in warned)
        if fault:
            wrong.append(f"{reader}: {fault}")
        told.setdefault(words, []).append(reader)
    if len(told) == 1:
        return next(iter(told)), wrong
    return "; ".join(f"{', '.join(names)}: {words}" for words, names in told.items()), wrong


def shortened(line: str, folder: Path) -> str:
    """A message without the temporary folder, fit for a cell."""
    line = line.replace(f"{folder}/", "").replace(str(folder), "the folder").replace("|", "\\|")
    return line if len(line) < 300 else f"{line[:200]} … {line[-80:]}"


def page(rows: dict[str, list[tuple[str, str]]], titles: dict[str, str]) -> Iterator[str]:
    """The lines of the table."""
    for name, cases in rows.items():
        read = sum("read right" in told for _, told in cases)
        yield from ("", f"### {titles[name]}: {len(cases)} cases, {read} read, {len(cases) - read} refused", "")
        yield from ("| case | outcome |", "|---|---|")
        yield from (f"| {case} | {told} |" for case, told in cases)


def run(only: Sequence[str] = (), case_name: str | None = None) -> tuple[dict[str, list[tuple[str, str]]], list[str]]:
    """The outcomes by group, and every fault."""
    rows: dict[str, list[tuple[str, str]]] = {}
    faults = []
    for name, group in groups().items():
        if only and name not in only:
            continue
        for case in group.cases:
            if case_name is not None and case.name != case_name:
                continue
            with tempfile.TemporaryDirectory(prefix="inputs-") as folder:
                told, wrong = judged(case, group, Path(folder))
            rows.setdefault(name, []).append((case.name, told))
            faults += [f"{name}, {case.name}: {fault}" for fault in wrong]
    return rows, faults


def main() -> None:
    """Tries all cases and prints or writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--group", action="append", default=[], choices=list(groups()))
    parser.add_argument("--case", metavar="NAME")
    parser.add_argument("--write", type=Path, metavar="PAGE", help="write between the page's markers")
    arguments = parser.parse_args()
    began = time.perf_counter()
    rows, faults = run(arguments.group, arguments.case)
    text = "\n".join(page(rows, {name: group.title for name, group in groups().items()}))
    if arguments.write:
        before, _, rest = arguments.write.read_text().partition(BEGIN)
        _, _, after = rest.partition(END)
        arguments.write.write_text(f"{before}{BEGIN}{text}\n{END}{after}")
    print(text)
    count = sum(map(len, rows.values()))
    print(
        f"{count} cases in {time.perf_counter() - began:.0f} s, {len(faults)} faults",
        *faults,
        sep="\n",
        file=sys.stderr,
    )
    sys.exit(1 if faults or not count else 0)


if __name__ == "__main__":
    main()
