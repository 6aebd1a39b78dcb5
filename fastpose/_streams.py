"""Branches of a network on CUDA streams of their own, while a CUDA graph is captured."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

_branches: Branches | None = None


class Branches:
    """Streams for branches that contain one another.

    A tensor of a branch may be freed without telling the allocator of other streams that use it: its memory is given again only
    to a branch of the same depth, which waits for all that was queued before it.
    """

    def __init__(self) -> None:
        self._streams: list[torch.cuda.Stream] = []
        self._depth = 0

    @property
    def were_used(self) -> bool:
        return bool(self._streams)

    def beside(self, branch: Callable[[], torch.Tensor], others: Callable[[], torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """What both return; the GPU may work on them at the same time."""
        if self._depth == len(self._streams):
            self._streams.append(torch.cuda.Stream())
        stream, current = self._streams[self._depth], torch.cuda.current_stream()
        stream.wait_stream(current)
        with torch.cuda.stream(stream):
            first = branch()
        self._depth += 1
        second = others()
        self._depth -= 1
        current.wait_stream(stream)
        return first, second


def branches() -> Branches | None:
    """The streams to use, or None to do one thing after the other."""
    return _branches


@contextmanager
def overlapping_branches() -> Iterator[Branches]:
    """Lets branches overlap inside a ``with`` block, whose stream should have a higher priority than theirs, the default."""
    global _branches
    before, _branches = _branches, Branches()
    try:
        yield _branches
    finally:
        _branches = before
