"""A look at the queue pairs of a backend's guest, each by itself."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from backend.process import Backend
from guestwire.metrics import PairCounters, read_counters


def pair_counters(backend: Backend, name: str = "guest") -> Sequence[PairCounters]:
    """The counters of a guest's queue pairs, from the file that anybody may read."""
    return read_counters(backend.log.parent / "run" / str(backend.pid) / f"{name}.counters")


def cpu_nanoseconds(backend: Backend) -> int:
    """CPU time of all threads that the process has now, finer than /proc/PID/stat tells it."""
    tasks = Path(f"/proc/{backend.pid}/task")
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks.iterdir())
