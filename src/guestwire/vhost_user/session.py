"""One frontend's session: bytes and file descriptors in, replies and effects on the device out.

Theory of operation.  The session does no input or output.  Whoever does it hands over what arrived,
never more than `Session.bytes_wanted` at once, so that descriptors cannot be taken for another
message's.  When a message is complete, `Session.handle` acts on it and returns the bytes to send
back, often none.  That may take long, since memory is mapped and pinned and rings are drained in
it; it may run in any thread, one message at a time.

What becomes of a request that fails is decided here and nowhere else:

- A message that is malformed or unknown, or not legal by the table in `guestwire.vhost_user.state`,
  ends the session with a `FrontendError`.
- One that is legal but cannot be followed (a ring outside memory, memory that cannot be mapped) is
  answered with a non-zero acknowledgement if the frontend asked for one, and the session goes on as
  it was.  If it did not ask, it would never know: the error ends the session.

Every descriptor is owned from the moment it is received.  What a request keeps is taken; the rest
is closed when the message has been dealt with, however that went.

Source: QEMU, docs/interop/vhost-user.rst.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable

from guestwire.errors import FrontendError, GuestwireError
from guestwire.vhost_user.backend import Backend
from guestwire.vhost_user.constants import (
    HEADER_SIZE,
    MAX_MEMORY_TABLE_REGIONS,
    BackendRequest,
    ProtocolFeature,
    Request,
)
from guestwire.vhost_user.descriptor import FileDescriptor, close_all
from guestwire.vhost_user.device import Device
from guestwire.vhost_user.messages import (
    FORMATS,
    U64,
    Empty,
    Header,
    MalformedMessageError,
    decode_request,
    encode_reply,
    encode_request,
    name_of,
)

_log = logging.getLogger(__name__)

_FAULT = "the fault is the frontend's: update it, or report this message to its developers"
_ONLY_HARMLESS = "a file whose file system others could make wait; only shared memory and signals are taken"
_HARMLESS = (
    "share memory of a memfd, of tmpfs or of hugetlbfs (-object memory-backend-memfd,share=on), and signal "
    "by an eventfd, a pipe or a Unix socket"
)
_SUCCESS, _FAILURE = U64(0), U64(1)


def _log_refusal(error: GuestwireError) -> None:
    _log.warning("refused: %s", error)


class Session:
    """The backend's end of one vhost-user connection.

    Args:
        device: what the session drives.
        refused: is told of every error that was answered to the frontend without ending the
            session; by default it is logged.

    Attributes:
        backend: what has been negotiated and set up, to look at.
    """

    def __init__(self, device: Device, refused: Callable[[GuestwireError], None] = _log_refusal) -> None:
        self._refused = refused
        self.backend = Backend(device, refused)
        self._header: Header | None = None
        self._bytes = b""
        self._descriptors: list[FileDescriptor] = []
        self._refused_file = ""
        self._closed = False

    @property
    def bytes_wanted(self) -> int:
        """How many bytes complete the header or the payload; 0 when a message is complete."""
        size = HEADER_SIZE if self._header is None else self._header.size
        return size - len(self._bytes)

    def receive(self, data: bytes, descriptors: Iterable[int] = (), refused_file: str = "") -> bool:
        """Take bytes of a message and the file descriptors that arrived with them.

        Args:
            data: at most `bytes_wanted`.
            descriptors: they are the session's from here on; -1 stands for one that was not opened.
            refused_file: why, if they were not: the name of a file among them that makes others wait.

        Returns:
            whether the message is complete and `handle` is to be called.

        Raises:
            FrontendError: this is no message; the session is over.
        """
        self._descriptors += [FileDescriptor(number) for number in descriptors]
        self._refused_file = self._refused_file or refused_file
        assert len(data) <= self.bytes_wanted
        try:
            if len(self._descriptors) > MAX_MEMORY_TABLE_REGIONS:
                raise MalformedMessageError(
                    f"{len(self._descriptors)} file descriptors came with one message, "
                    f"none has more than {MAX_MEMORY_TABLE_REGIONS}"
                )
            self._bytes += data
            if self._header is None and self.bytes_wanted == 0:
                self._header, self._bytes = Header.decode(self._bytes), b""
        except MalformedMessageError as error:
            self._drop_message()
            raise FrontendError(str(error), _FAULT) from error
        return self._header is not None and self.bytes_wanted == 0

    def end_of_stream(self) -> None:
        """Say that nothing more will come.

        Raises:
            FrontendError: the frontend stopped in the middle of a message.
        """
        if self._header is not None:
            raise FrontendError(
                f"{name_of(self._header.request)}: the connection ended with {len(self._bytes)} of "
                f"the {self._header.size} bytes of its payload",
                _FAULT,
            )
        if self._bytes:
            raise FrontendError(
                f"the connection ended with {len(self._bytes)} of the {HEADER_SIZE} bytes of a "
                "message header",
                _FAULT,
            )

    def handle(self) -> bytes:
        """Act on the complete message.

        Returns:
            the bytes to send to the frontend, possibly none.

        Raises:
            FrontendError: the frontend broke the protocol; the session is over.
            GuestwireError: the device could not follow and the frontend had not asked to be told;
                the session is over.
        """
        header, body = self._header, self._bytes
        assert header is not None
        assert len(body) == header.size
        try:
            return self._answer(header, body)
        except FrontendError as error:
            raise _explained(header, error) from error
        finally:
            self._drop_message()

    def _answer(self, header: Header, body: bytes) -> bytes:
        try:
            payload = decode_request(header, body, len(self._descriptors))
        except MalformedMessageError as error:
            raise FrontendError(str(error)) from error
        request = Request(header.request)
        illegal = self.backend.why_illegal(request)
        if illegal is not None:
            raise FrontendError(f"it is not legal: {illegal}")
        try:
            if self._refused_file:
                raise FrontendError(f"{self._refused_file}: {_ONLY_HARMLESS}", _HARMLESS)
            reply = self.backend.act(request, payload, self._descriptors)
        except GuestwireError as error:
            if not self._acknowledges(header):
                raise
            explained = _explained(header, error) if isinstance(error, FrontendError) else error
            self._refused(explained)
            reply = _FAILURE
        if reply is None and self._acknowledges(header):
            reply = _SUCCESS
        return b"" if reply is None else encode_reply(request, reply)

    def _acknowledges(self, header: Header) -> bool:
        """Tell whether the frontend waits for a reply that the request does not have of its own.

        To be asked after the request was followed: User-Mode Linux asks for an acknowledgement of
        the very SET_PROTOCOL_FEATURES that negotiates acknowledgements.
        """
        return (
            header.need_reply
            and ProtocolFeature.REPLY_ACK in self.backend.protocol_features
            and FORMATS[Request(header.request)].reply is None
        )

    def config_change(self) -> tuple[int, bytes] | None:
        """Return what tells the frontend that the device configuration space has changed.

        Returns:
            a file descriptor, to borrow, and the bytes to write to it (BACKEND_CONFIG_CHANGE_MSG);
            or None if the frontend does not want to know.  The descriptor is non-blocking, and not
            always a socket: User-Mode Linux passes a pipe.
        """
        backend = self.backend
        if backend.channel is None or ProtocolFeature.CONFIG not in backend.protocol_features:
            return None
        message = encode_request(BackendRequest.CONFIG_CHANGE_MSG, Empty())
        return backend.channel.fileno(), message

    def close(self) -> None:
        """Stop every ring, take the memory from the device, and close every descriptor.

        Later calls do nothing.  An error of the device is raised when all has been closed.
        """
        self._drop_message()
        if not self._closed:
            self._closed = True
            self.backend.close()

    def _drop_message(self) -> None:
        close_all(*self._descriptors)
        self._descriptors.clear()
        self._header, self._bytes, self._refused_file = None, b"", ""


def _explained(header: Header, error: FrontendError) -> FrontendError:
    """Return the error with the request's name in front, and a remedy in any case."""
    return FrontendError(f"{name_of(header.request)}: {error}", error.remedy or _FAULT)
