"""What a case of `inputs.py` is: how its files are made, who reads them, and what the right answer is."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Refused:
    """The right answer is a refusal in one line that matches `pattern` and names something in `names`."""

    pattern: str

    def fault(self, line: str, folder: Path) -> str:
        """What is wrong with a refusal; "" for nothing."""
        if "\n" in line:
            return f"refused in several lines: {line!r}"
        if not re.search(self.pattern, line):
            return f"refused in other words than {self.pattern!r}: {line}"
        return "" if str(folder) in line else f"refused without the file's path: {line}"


@dataclass(frozen=True)
class Case:
    """`make` writes the files into a folder and gives the right answer: a value, `Refused`, or either by reader."""

    name: str
    make: Callable[[Path], Any]
    readers: Sequence[str] | None = None  # None: all of the group


@dataclass(frozen=True)
class Group:
    """A kind of input: its readers, each from a case's folder to a value, what is wrong with a value, and its cases."""

    title: str
    readers: Mapping[str, Callable[[Path], Any]]
    fault: Callable[[Any, Any], str]
    cases: Sequence[Case]
