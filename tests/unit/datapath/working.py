"""Queue pairs in the hands of a worker, for tests of the compiled core."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from guestwire.datapath.queue_pair import QueuePair
from guestwire.worker import Worker


@contextlib.contextmanager
def working(*pairs: QueuePair, poll_us: int = 50) -> Iterator[Worker]:
    """Have a worker work on these pairs, and on what is added to it; at the end on none."""
    worker = Worker("test", None, poll_us)
    try:
        for pair in pairs:
            worker.add(pair)
        yield worker
    finally:
        for pair in list(worker.loop.pairs.values()):
            worker.remove(pair)
