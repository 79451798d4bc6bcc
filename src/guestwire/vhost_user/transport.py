"""The wire under a session: it reads messages and descriptors from a socket and writes replies.

Together with `guestwire.vhost_user.endpoint` the only place of the protocol that does input and
output.

The header of a message is read first and then exactly its payload.  Descriptors arrive with the
bytes they were sent with, and no read goes beyond those bytes (unix(7), SCM_RIGHTS): by never
reading past the end of a message its descriptors are kept apart from the next one's.  Which of them
this process takes `guestwire.vhost_user.inspection` says.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import logging
import os
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from guestwire.vhost_user.constants import MAX_SCM_RIGHTS_FDS
from guestwire.vhost_user.endpoint import Endpoint
from guestwire.vhost_user.inspection import Inspector, out_of_descriptors
from guestwire.vhost_user.session import Session

_Result = TypeVar("_Result")

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Received:
    """Bytes of a message, and the files that came with them (`Session.receive`)."""

    data: bytes
    descriptors: tuple[int, ...] = ()
    refused: str = ""


_ANCILLARY_SIZE = socket.CMSG_SPACE(MAX_SCM_RIGHTS_FDS * array.array("i").itemsize)


async def _receive(connection: socket.socket, size: int, inspector: Inspector) -> Received:
    """Wait for at most `size` bytes, and the files that came with them, if these are harmless.

    Raises:
        HostError: the files were lost, or cannot be looked at.
    """
    size, files_ahead = await _peek(connection, size)
    if not files_ahead:
        return Received(connection.recv(size))
    verdict = await inspector.inspect(connection, size)
    # The kernel drops what there is no room for.
    room = _ANCILLARY_SIZE if verdict.harmless else 0
    data, ancillary, flags, _ = connection.recvmsg(size, room, socket.MSG_CMSG_CLOEXEC)
    dropped = bool(flags & socket.MSG_CTRUNC)
    descriptors = array.array("i")
    for level, kind, content in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            descriptors.frombytes(content)
    if not descriptors and not dropped:
        return Received(data)  # they come with later bytes
    await inspector.forget()
    if verdict.refused:
        return Received(data, (-1,) * verdict.count, verdict.refused)
    if dropped:
        # There was room for all that the kernel passes: it could not open them, here or in the helper.
        for descriptor in descriptors:
            os.close(descriptor)
        raise out_of_descriptors()
    return Received(data, tuple(descriptors))


async def _peek(connection: socket.socket, most: int) -> tuple[int, bool]:
    """Wait for at most so many bytes; return how many are there, and whether files come, then or later."""
    arrived = asyncio.Event()
    loop = asyncio.get_running_loop()
    while True:
        try:
            # Without room for any files: the kernel says that there are some, and opens none.
            data, _, flags, _ = connection.recvmsg(most, 0, socket.MSG_PEEK)
        except BlockingIOError:
            arrived.clear()
            loop.add_reader(connection, arrived.set)
            try:
                await arrived.wait()
            finally:
                loop.remove_reader(connection)
        else:
            return len(data), bool(flags & socket.MSG_CTRUNC)


async def _in_thread(function: Callable[[], _Result]) -> _Result:
    """Run a function in a thread to its end, also when this task is cancelled meanwhile.

    Nothing may happen to a session before the thread that works on it is done.
    """
    work = asyncio.ensure_future(asyncio.to_thread(function))
    cancelled = False
    while not work.done():
        try:
            await asyncio.wait((work,))
        except asyncio.CancelledError:
            cancelled = True
    if cancelled:
        work.exception()  # it is known; the cancellation goes first
        raise asyncio.CancelledError
    return work.result()


class Connection:
    """A session on a socket.

    Args:
        connection: a non-blocking stream socket; closed when `run` ends.
        session: closed when `run` ends.
        inspector: looks at the files that come.
        changed: set whenever the device configuration space has changed; cleared by `run`, which tells
            the frontend.
    """

    def __init__(
        self,
        connection: socket.socket,
        session: Session,
        inspector: Inspector,
        changed: asyncio.Event | None = None,
    ) -> None:
        self._socket = connection
        # Else a peek and a read could see different messages.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
        self._session = session
        self._inspector = inspector
        self._changed = changed or asyncio.Event()
        self._one_at_a_time = asyncio.Lock()

    async def run(self) -> None:
        """Serve the frontend until it goes away.

        Raises:
            FrontendError: the frontend broke the protocol.
            GuestwireError: the device could not go on.
        """
        announcing = asyncio.create_task(self._announce_changes())
        try:
            while await self._serve_message():
                pass
        except (BrokenPipeError, ConnectionResetError):
            _log.debug("the frontend has gone")
        finally:
            announcing.cancel()
            self._socket.close()
            try:
                async with self._one_at_a_time:
                    await _in_thread(self._session.close)
            finally:
                await self._inspector.forget()
                self._inspector.rest()

    async def _serve_message(self) -> bool:
        """Receive a message and answer it; return whether another may follow."""
        complete = False
        while not complete:
            received = await _receive(self._socket, self._session.bytes_wanted, self._inspector)
            complete = self._session.receive(received.data, received.descriptors, received.refused)
            if not received.data:
                self._session.end_of_stream()
                return False
        async with self._one_at_a_time:
            reply = await _in_thread(self._session.handle)
        if reply:
            await asyncio.get_running_loop().sock_sendall(self._socket, reply)
        return True

    async def _announce_changes(self) -> None:
        while await self._changed.wait():
            self._changed.clear()
            await self.announce_config_change()

    async def announce_config_change(self) -> None:
        """Tell the frontend that the device configuration space has changed, if it wants to know.

        The message is written by a thread of its own: O_NONBLOCK belongs to the open file, which the
        frontend shares, so it can take that off again, and make us wait for as long as it likes.
        Nobody waits but the caller.
        """
        async with self._one_at_a_time:
            change = self._session.config_change()
            if change is None:
                return
            descriptor, message = change
            try:
                descriptor = os.dup(descriptor)
            except OSError as error:
                _log.warning("cannot announce a configuration change: %s", error.strerror)
                return
        loop = asyncio.get_running_loop()
        written = asyncio.Event()

        def write() -> None:
            _write(descriptor, message)
            with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
                loop.call_soon_threadsafe(written.set)

        threading.Thread(target=write, name="configuration change", daemon=True).start()
        await written.wait()


def _write(descriptor: int, message: bytes) -> None:
    """Write a message to a descriptor, which is closed then."""
    try:
        if os.write(descriptor, message) != len(message):
            _log.warning("cannot announce a configuration change: the frontend does not read")
    except OSError as error:
        _log.warning("cannot announce a configuration change: %s", error.strerror)
    finally:
        os.close(descriptor)


async def serve(
    endpoint: Endpoint,
    open_session: Callable[[], Session],
    ended: Callable[[Exception], None],
    changed: asyncio.Event | None = None,
) -> None:
    """Run a session on each connection of an endpoint, one after the other, until it has no more.

    Args:
        endpoint: closed at the end, also when this task is cancelled.
        open_session: makes the session for a connection.
        ended: is told why a session ended, unless the frontend just went away.  The next connection
            is waited for all the same.
        changed: as for `Connection`.
    """
    inspector = Inspector()
    try:
        while (connection := await endpoint.connection()) is not None:
            try:
                await Connection(connection, open_session(), inspector, changed).run()
            except Exception as error:  # whatever became of one frontend, the next is served
                connection.close()
                ended(error)
    finally:
        endpoint.close()
        inspector.close()
