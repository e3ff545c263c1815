"""Keeping freed memory instead of giving it back to the system, where the C library is glibc.

A network on a CPU frees and asks for the same large tensors at every step. By default glibc maps and unmaps each of
them, and the system must find and clear every page again: two fifths of the time of a vocoder's forward pass
(benchmarks/memory.md).
"""

import ctypes
import platform

# malloc.h: the most mappings at once, the free memory above which the heap shrinks, what it grows by.
M_MMAP_MAX, M_TRIM_THRESHOLD, M_TOP_PAD = -4, -1, -2
LARGEST = 2**31 - 1


def keep_freed() -> bool:
    """Tells malloc of this process to keep what is freed; False where there is no glibc to tell."""
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    wanted = ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, LARGEST), (M_TOP_PAD, 2**26))
    return all(bool(mallopt(key, value)) for key, value in wanted)
