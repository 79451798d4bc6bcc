"""Messages with file descriptors over a Unix socket, as the frontend's end sees them."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from guestwire.testing.faults import BackendError
from guestwire.vhost_user import messages
from guestwire.vhost_user.constants import HEADER_SIZE, MAX_SCM_RIGHTS_FDS, BackendRequest

LOOK_AT_BACKEND = "look at the backend's log"


@dataclass(frozen=True)
class BackendMessage:
    """What a backend said on the channel that SET_BACKEND_REQ_FD gave it.

    Attributes:
        request: what it is.
        body: its payload, undecoded.
        need_reply: whether the backend waits for `BackendChannel.reply`.
        fds: file descriptors that came with it; they are the receiver's to close.
    """

    request: BackendRequest
    body: bytes
    need_reply: bool
    fds: tuple[int, ...]


class Connection:
    """Messages and their file descriptors over a socket, with a limit on every wait.

    Args:
        connection: a connected Unix stream socket; it is closed with this object.
        timeout: seconds to wait for the other end, each time.
    """

    def __init__(self, connection: socket.socket, timeout: float) -> None:
        self.socket = connection
        self.timeout = timeout

    def send(self, data: bytes, fds: Sequence[int] = ()) -> None:
        """Send bytes as they are, with file descriptors beside them.

        Raises:
            BackendError: the backend has closed the connection, or does not read from it.
        """
        self.socket.settimeout(self.timeout)
        try:
            sent = socket.send_fds(self.socket, [data], list(fds))
            # Sending nothing fails, too, if the backend has hung up meanwhile.
            if sent < len(data):
                self.socket.sendall(data[sent:])
        except TimeoutError:
            raise BackendError(
                f"the backend has not read {len(data)} bytes in {self.timeout:g} s", LOOK_AT_BACKEND
            ) from None
        except (BrokenPipeError, ConnectionResetError):
            raise BackendError("the backend has closed the connection", LOOK_AT_BACKEND) from None

    def receive(self, timeout: float | None = None) -> tuple[messages.Header, bytes, list[int]]:
        """Return the next message: its header, payload and file descriptors.

        Raises:
            BackendError: none came in time, the connection was closed, or it is no message.
        """
        deadline = time.monotonic() + (self.timeout if timeout is None else timeout)
        fds: list[int] = []
        try:
            header = messages.Header.decode(self._read(HEADER_SIZE, deadline, fds))
            return header, self._read(header.size, deadline, fds), fds
        except BaseException as error:
            for fd in fds:
                os.close(fd)
            if isinstance(error, messages.MalformedMessageError):
                raise BackendError(f"the backend sent no message: {error}") from error
            raise

    def _read(self, size: int, deadline: float, fds: list[int]) -> bytes:
        data = b""
        while len(data) < size:
            try:
                self.socket.settimeout(max(0.0, deadline - time.monotonic()) or 1e-6)
                part, new, _, _ = socket.recv_fds(self.socket, size - len(data), MAX_SCM_RIGHTS_FDS)
            except TimeoutError:
                raise BackendError("the backend has not answered in time", LOOK_AT_BACKEND) from None
            except ConnectionResetError:
                part, new = b"", []
            fds += new
            if not part:
                raise BackendError(
                    f"the backend closed the connection where {size - len(data)} more bytes were expected",
                    LOOK_AT_BACKEND,
                )
            data += part
        return data

    def close(self) -> None:
        """Close the connection."""
        self.socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class BackendChannel(Connection):
    """The frontend's end of the socket on which a backend makes requests of its own."""

    def next(self, timeout: float | None = None) -> BackendMessage:
        """Return the backend's next request.

        Raises:
            BackendError: none came in time, or it is no request.
        """
        header, body, fds = self.receive(timeout)
        try:
            request = BackendRequest(header.request)
        except ValueError:
            for fd in fds:
                os.close(fd)
            raise BackendError(f"the backend made an unknown request {header.request}") from None
        return BackendMessage(request, body, header.need_reply, tuple(fds))

    def reply(self, message: BackendMessage, result: int = 0) -> None:
        """Acknowledge a request: 0 is success."""
        self.send(messages.encode_reply(message.request, messages.U64(result)))
