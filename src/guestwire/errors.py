"""What can go wrong, whose fault it is, and what to do about it.

Every error shown to a person is one of these.  ``str(error)`` says what happened and why;
``error.remedy`` says what to type or change next.
"""

from __future__ import annotations

import errno
import logging
import os


class GuestwireError(Exception):
    """The root of all errors that guestwire raises on purpose.

    Args:
        message: what happened and why, with the names and numbers involved.
        remedy: what to do about it: a command to type or a setting to change.
    """

    exit_code = 1

    def __init__(self, message: str, remedy: str | None = None) -> None:
        super().__init__(message)
        self.remedy = remedy


class ConfigurationError(GuestwireError):
    """The description of guests and ports contradicts itself or names what does not exist."""

    exit_code = 2


class HostError(GuestwireError):
    """This machine refuses or lacks something: a permission, an interface, memory, a kernel feature."""

    exit_code = 3


class FrontendError(GuestwireError):
    """The vhost-user frontend broke the protocol; its session ends, other guests go on."""

    exit_code = 4


class GuestError(GuestwireError):
    """The guest's driver broke the virtio rules; its ring stops, other rings go on."""

    exit_code = 5


def shortage_remedy(error: OSError, directory: str | os.PathLike[str]) -> str | None:
    """Return what helps a machine that is out of something, if it is: of descriptors, or of room.

    Args:
        error: what the kernel said.
        directory: where a file was to be made.
    """
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return "raise the limit on open files: ulimit -n 65536, or LimitNOFILE= in a systemd unit"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"make room: df -h {os.fspath(directory)}"
    return None


def log_error(log: logging.Logger, what: str, error: Exception) -> None:
    """Log what went wrong: a sentence and its remedy, or a traceback if it is our fault."""
    if not isinstance(error, GuestwireError):
        log.error("%s: %s", what, error, exc_info=error)
        return
    log.error("%s: %s%s", what, error, f"; {error.remedy}" if error.remedy else "")
