"""Who closes a file descriptor."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from guestwire.errors import FrontendError


class FileDescriptor:
    """An open file descriptor and the duty to close it.

    Every descriptor that a frontend sends becomes one of these before anything is done with it.
    Whoever holds the object owns the descriptor; others borrow its number.
    """

    __slots__ = ("_number",)

    def __init__(self, number: int) -> None:
        self._number = number

    def __repr__(self) -> str:
        return f"FileDescriptor({self._number})"

    def fileno(self) -> int:
        """Return the number, to borrow; -1 once it is closed."""
        return self._number

    def close(self) -> None:
        """Close it, once; later calls do nothing."""
        number, self._number = self._number, -1
        if number >= 0:
            # Linux closes the descriptor even where close() reports an error (close(2), NOTES).
            with contextlib.suppress(OSError):
                os.close(number)


def close_all(*descriptors: FileDescriptor | None) -> None:
    """Close those descriptors that are there."""
    for descriptor in descriptors:
        if descriptor is not None:
            descriptor.close()


def number(descriptor: FileDescriptor | None) -> int | None:
    """Return a descriptor's number to borrow, or None for none."""
    return None if descriptor is None else descriptor.fileno()


_SIGNALS = ("anon_inode:[eventfd]", "pipe:[", "socket:[")  # as the kernel shows them


def require_signal(descriptor: FileDescriptor) -> None:
    """Keep whoever writes to it from being held up by a full pipe or socket.

    Raises:
        FrontendError: it is neither an eventfd, nor a pipe, nor a socket.
    """
    try:
        what = str(Path(f"/proc/self/fd/{descriptor.fileno()}").readlink())
        if not what.startswith(_SIGNALS):
            raise FrontendError(f"its file descriptor can signal nothing ({what})")
        os.set_blocking(descriptor.fileno(), False)
    except OSError as error:
        raise FrontendError(f"its file descriptor can signal nothing ({error.strerror})") from error
