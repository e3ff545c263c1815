"""Freed memory is kept: the same large tensors cost no new pages, which a process of its own counts."""

import platform
import subprocess
import sys

import pytest

COUNT = """
import resource, sys
if sys.argv[1] == "kept":
    from milonga.engines.local import keep_freed_memory
    assert keep_freed_memory()
import numpy as np
def work():
    for _ in range(5):
        np.ones(12_000_000)  # 96 MB, as a batch's activations are
work()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
work()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(how: str) -> int:
    done = subprocess.run([sys.executable, "-c", COUNT, how], capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told")
def test_kept_memory_costs_no_new_pages() -> None:
    assert 10 * faults("kept") < faults("as usual")
