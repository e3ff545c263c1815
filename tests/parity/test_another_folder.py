"""The parity tests pass unchanged on another folder of recorded numbers: other seeds, names, shapes, prompts."""

import os
import subprocess
import sys
from pathlib import Path

import another_reference
import pytest
import reference

pytestmark = [pytest.mark.slow, reference.needed(another_reference.SOURCE)]

HERE = Path(__file__).parent
# What a folder without the answers of full-size networks has numbers for.
COVERED = ("tango", "denoise", "losses", "noise", "mel", "metrics")


@pytest.mark.timeout(1800)
def test_parity_holds_on_another_folder(tmp_path: Path) -> None:
    folder = another_reference.write(tmp_path / "reference")
    files = [str(HERE / f"test_{name}_parity.py") for name in COVERED]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not slow", *files],
        env=os.environ | {"MILONGA_REFERENCE": str(folder)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert " skipped" not in done.stdout
    assert int(done.stdout.split(" passed")[0].split()[-1]) > 30
