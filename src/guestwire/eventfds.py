"""Event descriptors that a frontend shares with us: it keeps the file, and may do with it what it likes."""

from __future__ import annotations

import contextlib
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


class Signals:
    """Signals to a guest's rings that are not a worker's to give.

    O_NONBLOCK belongs to the open file: a frontend can take it off again, fill the file, and make us wait.
    So a signal is written by a thread of its own, and there is one for each ring and purpose at most.
    """

    def __init__(self) -> None:
        self._threads: dict[tuple[str, int], threading.Thread] = {}

    def send(self, purpose: str, index: int, fd: int) -> None:
        """Signal a ring's call or error descriptor, unless the last such signal is not through yet.

        Raises:
            OSError: this process has no descriptor left.
        """
        earlier = self._threads.get((purpose, index))
        if earlier is not None and earlier.is_alive():
            return
        thread = threading.Thread(
            target=_signal, args=(os.dup(fd),), name=f"{purpose} of ring {index}", daemon=True
        )
        self._threads[purpose, index] = thread
        thread.start()


def _signal(fd: int) -> None:
    with contextlib.suppress(OSError):
        os.write(fd, (1).to_bytes(8, "little"))
    os.close(fd)
