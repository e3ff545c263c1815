"""Where the recorded numbers of the original code lie: `$MILONGA_REFERENCE`, or beside this checkout."""

import json
import os
import runpy
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

NAMED = os.environ.get("MILONGA_REFERENCE")
FOLDER = Path(NAMED) if NAMED else Path(__file__).parents[3] / "shared" / "reference"
TANGO, EVALUATION = FOLDER / "tango", FOLDER / "evaluation"

if NAMED and not FOLDER.is_dir():
    raise FileNotFoundError(f"MILONGA_REFERENCE={NAMED} is no folder: nothing would be compared")


def needed(path: Path) -> pytest.MarkDecorator:
    """Skips tests where a file or folder of the recorded numbers is not there, and says so."""
    reason = f"no recorded numbers at {path} (set MILONGA_REFERENCE to the folder that holds them)"
    return pytest.mark.skipif(not path.exists(), reason=reason)


def manifest(folder: Path = TANGO) -> dict[str, Any]:
    """Names, shapes, prompts and step counts of what was recorded."""
    return json.loads((folder / "manifest.json").read_text())


def rule() -> dict[str, Any]:
    """`draw` and `init_from_key`, by which weights and inputs are rebuilt from names."""
    return runpy.run_path(str(TANGO / "init_rule.py"))


def keys(path: Path) -> list[str]:
    """The names of the arrays in a .safetensors file, sorted; none where there is no file, so that tests can skip."""
    if not path.is_file():
        return []
    with safe_open(path, "pt") as file:
        return sorted(file.keys())
