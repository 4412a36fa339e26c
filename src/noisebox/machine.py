"""A process made ready to compute: how many threads it uses, and that it keeps the memory it frees."""

import contextlib
import ctypes

import torch

# Options of glibc's mallopt(3), and values: nothing is mapped apart or handed back, and the heap grows by 64 MiB.
M_TRIM_THRESHOLD, NEVER = -1, -1
M_TOP_PAD, GROWTH = -2, 64 << 20
M_MMAP_MAX, NONE = -4, 0


def prepare(threads: int) -> None:
    """Set the number of threads, which is part of the result because sums are split over them, and keep freed memory.

    A training step frees and asks for the same hundreds of megabytes again. By default the C library hands each large
    tensor back to the system, and getting it anew costs as much as the arithmetic on it; where it is not glibc, this
    stays so.
    """
    torch.set_num_threads(threads)
    with contextlib.suppress(AttributeError, TypeError, OSError):
        mallopt = ctypes.CDLL(None).mallopt
        for option, value in ((M_TRIM_THRESHOLD, NEVER), (M_TOP_PAD, GROWTH), (M_MMAP_MAX, NONE)):
            mallopt(option, value)
