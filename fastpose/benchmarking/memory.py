"""Memory that a call takes, and an allocator whose habits do not disturb the clock."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import itertools
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4


def keep_memory() -> bool:
    """Tell the C library to keep what is freed, for the rest of this process.

    glibc hands the pages of a freed 8 MB result back to the system, and whoever allocates next pays for faulting them in again:
    a millisecond here or there that has nothing to do with the op. All providers are measured with memory that is kept.

    Returns:
        Whether the C library can be told so.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    return mallopt is not None and all(mallopt(what, value) for what, value in ((_M_TRIM_THRESHOLD, 2**31 - 1), (_M_MMAP_MAX, 0)))


def peak_memory(call: Callable[[], Any], device: str) -> int:
    """Bytes of tensors that a call has alive at most, beyond what was alive before it; its results are among them.

    On a CPU these are the allocations that torch's profiler sees: not the scratch memory of oneDNN, nor NumPy's.
    """
    if device == "cuda":
        gc.collect()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with _silent(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        call()
    recorded = profiler.profiler.kineto_results.events()
    changes = sorted((event for event in recorded if event.name() == "[memory]"), key=lambda event: event.start_ns())
    return max(itertools.accumulate((event.nbytes() for event in changes), initial=0))


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Without the lines that the profiler of some torch versions writes to stderr whenever it starts and stops."""
    sys.stderr.flush()
    kept = os.dup(2)
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
