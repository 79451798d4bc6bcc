"""Event descriptors that a frontend shares with us: it keeps the file, and may do with it what it likes."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import threading

from guestwire.errors import FrontendError


def require_kick(index: int, fd: int) -> None:
    """Refuse a file that cannot be waited for, such as a regular one (epoll_ctl(2), EPERM).

    Raises:
        FrontendError: the file is none that can kick a ring.
        OSError: this process has no descriptor left.
    """
    with select.epoll() as probe:
        try:
            probe.register(fd, select.EPOLLIN)
        except OSError as error:
            raise FrontendError(f"ring {index}: its kick cannot be waited for: {error.strerror}") from error


MOST_LEFT = 8  # threads of a guest that wait for frontends which have gone


class Signals:
    """Signals to a guest's rings that are not a worker's to give.

    O_NONBLOCK belongs to the open file: a frontend can take it off again, fill the file, and make us wait.
    So a signal is written by a thread of its own, and there is one for each ring and purpose at most. Few may
    still wait for earlier frontends: beyond `MOST_LEFT` nothing is signalled.
    """

    def __init__(self) -> None:
        self._threads: dict[tuple[str, int], threading.Thread] = {}
        self._left: list[threading.Thread] = []

    def reset(self) -> None:
        """Begin anew with another frontend."""
        self._left = [thread for thread in (*self._left, *self._threads.values()) if thread.is_alive()]
        self._threads.clear()

    def send(self, purpose: str, index: int, fd: int) -> None:
        """Signal a ring's call or error descriptor, unless the last such signal is not through yet.

        Raises:
            OSError: this process has no descriptor or no thread left.
        """
        earlier = self._threads.get((purpose, index))
        if earlier is not None and earlier.is_alive():
            return
        if sum(thread.is_alive() for thread in self._left) >= MOST_LEFT:
            return
        ours = os.dup(fd)
        thread = threading.Thread(
            target=_signal, args=(ours,), name=f"{purpose} of ring {index}", daemon=True
        )
        try:
            thread.start()
        except RuntimeError as error:
            os.close(ours)
            raise OSError(errno.EAGAIN, f"no thread to be had: {error}") from error
        self._threads[purpose, index] = thread


def _signal(fd: int) -> None:
    with contextlib.suppress(OSError):
        os.write(fd, (1).to_bytes(8, "little"))
    os.close(fd)
