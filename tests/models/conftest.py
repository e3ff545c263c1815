"""A tiny checkpoint in the original's layout, which several files of tests load."""

from collections.abc import Iterator
from pathlib import Path

import original_folder
import pytest


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The seven-file layout; while it is in use the original's vocoder is a small one."""
    with pytest.MonkeyPatch.context() as patch:
        original_folder.shrink_vocoder(patch)
        yield original_folder.write(tmp_path_factory.mktemp("original") / "tango")
