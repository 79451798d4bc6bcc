"""Accepting connections, also while the process is out of descriptors."""

from __future__ import annotations

import asyncio
import errno
import logging
import math
import socket

_PASSING_ERRORS = (errno.ECONNABORTED, errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_PAUSE_SECONDS = 1.0
_SILENT_SECONDS = 60.0

log = logging.getLogger(__name__)


def passes(error: OSError) -> bool:
    """Tell whether a connection may come about later, without anything being done here."""
    return error.errno in _PASSING_ERRORS


class Acceptor:
    """Accepts the connections of a socket, one after the other.

    While the process has no descriptor left for one, it waits, and so do those behind it; that is said once a
    minute at most.

    Args:
        listening: non-blocking; it stays the caller's.
        whose: who connects, in words.
    """

    def __init__(self, listening: socket.socket, whose: str) -> None:
        self._listening, self._whose = listening, whose
        self._silent_until = -math.inf

    async def accept(self) -> socket.socket:
        """Wait for a connection; it is non-blocking.

        Raises:
            OSError: none can come any more.
        """
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, _ = await loop.sock_accept(self._listening)
            except OSError as error:
                if not passes(error):
                    raise
                if loop.time() >= self._silent_until:
                    self._silent_until = loop.time() + _SILENT_SECONDS
                    log.warning("cannot accept %s connection yet: %s", self._whose, error.strerror)
                await asyncio.sleep(_PAUSE_SECONDS)
            else:
                return connection
