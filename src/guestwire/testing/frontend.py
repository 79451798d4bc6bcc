"""The frontend's end of a vhost-user socket: requests, replies, and nothing hidden.

A `Frontend` sends what it is told to, in any order, so that a backend's rules can be tried; the
right order is `guestwire.testing.FakeGuest`'s business.  Bytes that are no message at all can be
sent as well, by `Frontend.send`.  Source: QEMU, docs/interop/vhost-user.rst.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Self, TypeVar

from guestwire.errors import HostError
from guestwire.testing.connection import LOOK_AT_BACKEND, BackendChannel, Connection
from guestwire.testing.faults import BackendError
from guestwire.testing.memory import Region
from guestwire.vhost_user import messages
from guestwire.vhost_user.constants import ConfigFlag, ProtocolFeature, Request
from guestwire.virtio.features import DeviceStatus, Feature

P = TypeVar("P", bound=messages.Payload)


class Frontend(Connection):
    """A vhost-user frontend: one method a request.

    Requests that have no reply of their own ask for an acknowledgement as soon as
    VHOST_USER_PROTOCOL_F_REPLY_ACK is negotiated, so that a refusal is an error at once.

    Args:
        connection: a connected Unix stream socket; it is closed with the frontend.
        timeout: seconds to wait for the backend, each time.

    Attributes:
        protocol_features: what was last negotiated.
    """

    def __init__(self, connection: socket.socket, timeout: float = 5.0) -> None:
        super().__init__(connection, timeout)
        self.protocol_features = ProtocolFeature(0)

    @classmethod
    def connect(cls, path: str | os.PathLike[str], timeout: float = 5.0) -> Self:
        """Connect to a backend that listens; wait for its socket to appear if need be.

        Raises:
            BackendError: nobody listens there in time.
        """
        deadline = time.monotonic() + timeout
        while True:
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                connection.connect(os.fspath(path))
                return cls(connection, timeout)
            except (FileNotFoundError, ConnectionRefusedError) as error:
                connection.close()
                if time.monotonic() > deadline:
                    raise BackendError(
                        f"no backend listens on {os.fspath(path)} after {timeout:g} s: {error.strerror}",
                        "start the backend first, or give it more time",
                    ) from error
                time.sleep(0.02)
            except BaseException:
                connection.close()
                raise

    @staticmethod
    @contextmanager
    def listen(path: str | os.PathLike[str], timeout: float = 5.0) -> Iterator[Callable[[], Frontend]]:
        """Listen for a backend that connects, as QEMU with ``server=on`` does.

        Returns:
            A context manager; while it is open, the function that it yields waits for the next
            backend to connect and returns the frontend.
        """
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            try:
                listener.bind(os.fspath(path))
            except OSError as error:
                raise HostError(
                    f"cannot listen on {os.fspath(path)}: {error.strerror}",
                    "choose a path that does not exist, in a directory that does",
                ) from error
            listener.listen(1)
            listener.settimeout(timeout)

            def accept() -> Frontend:
                try:
                    connection, _ = listener.accept()
                except TimeoutError:
                    raise BackendError(
                        f"no backend has connected to {os.fspath(path)} in {timeout:g} s",
                        "start the backend, as a client of this socket",
                    ) from None
                return Frontend(connection, timeout)

            try:
                yield accept
            finally:
                Path(path).unlink(missing_ok=True)

    # Any request.

    def request(
        self,
        request: Request,
        payload: messages.Payload | None = None,
        fds: Sequence[int] = (),
        *,
        need_reply: bool | None = None,
    ) -> messages.Payload | None:
        """Send a request and wait for its reply, or for its acknowledgement if there is one.

        Args:
            request: which.
            payload: what it carries; nothing if None.
            fds: file descriptors to pass; they remain the caller's.
            need_reply: whether to ask for an acknowledgement; if None, whenever it was negotiated
                and the request has no reply of its own.

        Returns:
            The reply; None if there is none.

        Raises:
            BackendError: it was refused, or the backend does not answer as it should.
        """
        has_reply = messages.FORMATS[request].reply is not None
        if need_reply is None:
            need_reply = not has_reply and ProtocolFeature.REPLY_ACK in self.protocol_features
        self.send(messages.encode_request(request, payload, need_reply=need_reply), fds)
        if not has_reply and not need_reply:
            return None
        return self.read_reply(request)

    def read_reply(self, request: Request) -> messages.Payload:
        """Return the reply to a request that was sent before.

        Raises:
            BackendError: the request was refused, or this is not its reply.
        """
        name = messages.name_of(request)
        try:
            header, body, fds = self.receive()
        except BackendError as error:
            raise BackendError(f"{name}: {error}", error.remedy) from error
        for fd in fds:
            os.close(fd)
        try:
            reply = messages.decode_reply(request, header, body)
        except messages.MalformedMessageError as error:
            raise BackendError(f"{name}: {error}", LOOK_AT_BACKEND) from error
        refused = isinstance(reply, messages.U64) and reply.value != 0
        if refused and messages.FORMATS[request].reply is None:
            raise BackendError(f"the backend refused {name}: {reply}", LOOK_AT_BACKEND)
        return reply

    def _ask(self, request: Request, kind: type[P], payload: messages.Payload | None = None) -> P:
        reply = self.request(request, payload)
        if not isinstance(reply, kind):
            raise BackendError(
                f"the backend refused {messages.name_of(request)}: it replied {reply}",
                LOOK_AT_BACKEND,
            )
        return reply

    def expect_end(self, timeout: float | None = None) -> None:
        """Wait until the backend closes the connection, without sending anything more.

        Raises:
            BackendError: it does not, or it sends something instead.
        """
        self.socket.settimeout(self.timeout if timeout is None else timeout)
        try:
            data = self.socket.recv(1)
        except ConnectionResetError:
            return
        except TimeoutError:
            raise BackendError("the backend keeps the connection open", LOOK_AT_BACKEND) from None
        if data:
            raise BackendError("the backend answered instead of closing the connection")

    # The requests, in the order of their numbers.

    def get_features(self) -> Feature:
        """Return the features that the backend offers."""
        return Feature(self._ask(Request.GET_FEATURES, messages.U64).value)

    def set_features(self, features: int) -> None:
        """Tell the backend which features are used."""
        self.request(Request.SET_FEATURES, messages.U64(features))

    def set_owner(self) -> None:
        """Become the session's owner."""
        self.request(Request.SET_OWNER)

    def set_memory_table(self, regions: Sequence[Region]) -> None:
        """Share memory: all of it, at most eight regions."""
        table = messages.MemoryTable(tuple(describe(region) for region in regions))
        self.request(Request.SET_MEM_TABLE, table, [region.fd for region in regions])

    def set_ring_size(self, ring: int, size: int) -> None:
        """Set a ring's queue size."""
        self.request(Request.SET_VRING_NUM, messages.RingState(ring, size))

    def set_ring_address(
        self, ring: int, descriptor_table: int, available: int, used: int, *, flags: int = 0
    ) -> None:
        """Set where a ring's three areas are, by user addresses."""
        address = messages.RingAddress(ring, flags, descriptor_table, used, available, 0)
        self.request(Request.SET_VRING_ADDR, address)

    def set_ring_base(self, ring: int, base: int) -> None:
        """Set the available index from which a ring starts."""
        self.request(Request.SET_VRING_BASE, messages.RingState(ring, base))

    def get_ring_base(self, ring: int) -> int:
        """Stop a ring and return the available index from which it could go on."""
        state = messages.RingState(ring, 0)
        return self._ask(Request.GET_VRING_BASE, messages.RingState, state).num

    def set_ring_kick(self, ring: int, fd: int | None) -> None:
        """Pass the eventfd by which the driver notifies; None makes the backend poll."""
        self._set_ring_fd(Request.SET_VRING_KICK, ring, fd)

    def set_ring_call(self, ring: int, fd: int | None) -> None:
        """Pass the eventfd by which the backend notifies; None for a driver that polls."""
        self._set_ring_fd(Request.SET_VRING_CALL, ring, fd)

    def set_ring_error(self, ring: int, fd: int | None) -> None:
        """Pass the eventfd by which the backend tells that the ring is broken."""
        self._set_ring_fd(Request.SET_VRING_ERR, ring, fd)

    def _set_ring_fd(self, request: Request, ring: int, fd: int | None) -> None:
        payload = messages.RingDescriptor(ring, fd is not None)
        self.request(request, payload, [] if fd is None else [fd])

    def get_protocol_features(self) -> ProtocolFeature:
        """Return the protocol features that the backend offers."""
        return ProtocolFeature(self._ask(Request.GET_PROTOCOL_FEATURES, messages.U64).value)

    def set_protocol_features(self, features: int) -> None:
        """Tell the backend which protocol features are used; that holds from the next request."""
        self.request(Request.SET_PROTOCOL_FEATURES, messages.U64(features))
        self.protocol_features = ProtocolFeature(features)

    def get_queue_count(self) -> int:
        """Return how many queues the backend supports: queue pairs, for a network device."""
        return self._ask(Request.GET_QUEUE_NUM, messages.U64).value

    def set_ring_enable(self, ring: int, enabled: bool) -> None:
        """Enable or disable a ring."""
        self.request(Request.SET_VRING_ENABLE, messages.RingState(ring, int(enabled)))

    def send_rarp(self, mac: bytes) -> None:
        """Make the backend announce a MAC address after a migration."""
        self.request(Request.SEND_RARP, messages.Announcement(mac))

    def set_mtu(self, mtu: int) -> None:
        """Tell the backend the host's MTU."""
        self.request(Request.NET_SET_MTU, messages.U64(mtu))

    def open_backend_channel(self) -> BackendChannel:
        """Give the backend a socket for requests of its own, and return our end of it."""
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                self.request(Request.SET_BACKEND_REQ_FD, fds=[theirs.fileno()])
            except BaseException:
                ours.close()
                raise
        return BackendChannel(ours, self.timeout)

    def get_config(self, offset: int, size: int) -> bytes:
        """Return a part of the device configuration space."""
        wanted = messages.Config(offset, ConfigFlag.WRITABLE, bytes(size))
        return self._ask(Request.GET_CONFIG, messages.Config, wanted).data

    def set_config(self, offset: int, data: bytes, reason: ConfigFlag = ConfigFlag.WRITABLE) -> None:
        """Write a part of the device configuration space."""
        self.request(Request.SET_CONFIG, messages.Config(offset, reason, data))

    def get_max_memory_slots(self) -> int:
        """Return how many regions can be added one by one."""
        return self._ask(Request.GET_MAX_MEM_SLOTS, messages.U64).value

    def add_memory_region(self, region: Region) -> None:
        """Share one more region."""
        self.request(Request.ADD_MEM_REG, messages.SingleRegion(describe(region)), [region.fd])

    def remove_memory_region(self, region: Region) -> None:
        """Take a region back."""
        self.request(Request.REM_MEM_REG, messages.SingleRegion(describe(region)))

    def set_status(self, status: DeviceStatus) -> None:
        """Set the device status."""
        self.request(Request.SET_STATUS, messages.U64(status))

    def get_status(self) -> DeviceStatus:
        """Return the device status."""
        return DeviceStatus(self._ask(Request.GET_STATUS, messages.U64).value)


def describe(region: Region) -> messages.Region:
    """Return how a region is named in messages."""
    return messages.Region(region.guest_address, region.size, region.user_address, region.mmap_offset)
