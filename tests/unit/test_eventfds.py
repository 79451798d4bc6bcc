"""Signals to a frontend that makes whoever gives them wait."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from guestwire.eventfds import MOST_LEFT, Signals

FULL = (1 << 64) - 2


@pytest.fixture
def blocking() -> Iterator[int]:
    """An eventfd that whoever writes to waits for."""
    fd = os.eventfd(0)
    os.eventfd_write(fd, FULL)
    yield fd
    os.eventfd_read(fd)  # there is room for all who wait
    os.close(fd)


def copies(fd: int) -> int:
    """How many descriptors of this process are of the same eventfd."""

    def number(of: str) -> str:
        with contextlib.suppress(OSError):  # closed meanwhile, by others
            text = Path(f"/proc/self/fdinfo/{of}").read_text()
            return next((line for line in text.splitlines() if line.startswith("eventfd-id")), "")
        return ""

    listed = [path.name for path in Path("/proc/self/fd").iterdir()]
    return sum(number(each) == number(str(fd)) for each in listed)


def test_frontends_that_come_and_go_leave_few_threads(blocking: int) -> None:
    signals = Signals()
    for _ in range(100):
        signals.send("call", 0, blocking)
        signals.reset()
    # Each thread has a descriptor of its own.
    assert copies(blocking) == 1 + MOST_LEFT


def test_a_thread_that_is_not_to_be_had_costs_no_descriptor(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    fd = os.eventfd(0)
    with pytest.raises(OSError, match="no thread to be had"):
        Signals().send("call", 0, fd)
    assert copies(fd) == 1
    os.close(fd)
