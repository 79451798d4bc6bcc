"""Moves random bytes between a guest and the far end of its wire, and compares checksums.

TCP from busybox' ``nc`` in the guest to a socket of ours, in both directions: the guest needs no
server, and we take the time.
"""

from __future__ import annotations

import hashlib
import os
import socket
import struct
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from guestwire.testing.guests import Guest
from guestwire.testing.wire import Wire

# SHA-512 is the fastest of the strong checksums that busybox has, on 64-bit processors.
CHECKSUM_PROGRAM = "sha512sum"
GUEST_FILE = "/tmp/transfer"  # noqa: S108 - in the guest, which has one user and one task
PIECE = 1 << 18

# Called with the bytes moved so far.
Progress = Callable[[int], None]


@dataclass(frozen=True)
class Transfer:
    """What happened to a file of random bytes.

    Attributes:
        size: bytes sent.
        seconds: from the connection until the receiver had everything.
        sent_checksum: SHA-512 of what was sent, computed at the sender.
        received_checksum: SHA-512 of what arrived, computed at the receiver.
    """

    size: int
    seconds: float
    sent_checksum: str
    received_checksum: str

    @property
    def intact(self) -> bool:
        """Whether what arrived is what was sent."""
        return self.sent_checksum == self.received_checksum

    @property
    def bits_per_second(self) -> float:
        """Payload bits per second."""
        return self.size * 8 / self.seconds


def ignore(moved: int) -> None:
    """Discard a report of progress."""


def to_guest(
    wire: Wire, guest: Guest, size: int, timeout: float = 300.0, progress: Progress = ignore
) -> Transfer:
    """Send ``size`` random bytes from the far end of the wire to a file in the guest.

    Raises:
        ChannelError: the guest did not receive them, or is gone.
    """
    content = os.urandom(size)
    sent = hashlib.sha512(content).hexdigest()

    def send(connection: socket.socket) -> None:
        # close() then returns when the guest has acknowledged the last byte (socket(7)).
        linger = struct.pack("ii", 1, max(1, round(timeout)))
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        for start in range(0, size, PIECE):
            connection.sendall(content[start : start + PIECE])
            progress(min(start + PIECE, size))

    seconds = _exchange(wire, guest, send, f"</dev/null >{GUEST_FILE}", timeout)
    return Transfer(size, seconds, sent, _guest_checksum(guest, timeout))


def from_guest(
    wire: Wire, guest: Guest, size: int, timeout: float = 300.0, progress: Progress = ignore
) -> Transfer:
    """Send ``size`` random bytes (whole MiB) from a file in the guest to the wire's far end.

    Raises:
        ChannelError: the guest could not send them, or is gone.
    """
    mebibytes = size >> 20
    guest.check(f"dd if=/dev/urandom of={GUEST_FILE} bs=1M count={mebibytes}", timeout)
    sent = _guest_checksum(guest, timeout)
    checksum = hashlib.sha512()

    def receive(connection: socket.socket) -> None:
        received = 0
        while data := connection.recv(PIECE):
            checksum.update(data)
            received += len(data)
            progress(received)

    seconds = _exchange(wire, guest, receive, f"<{GUEST_FILE}", timeout)
    return Transfer(mebibytes << 20, seconds, sent, checksum.hexdigest())


def _guest_checksum(guest: Guest, timeout: float) -> str:
    return guest.check(f"{CHECKSUM_PROGRAM} {GUEST_FILE}", timeout).split()[0]


def _exchange(
    wire: Wire,
    guest: Guest,
    serve: Callable[[socket.socket], None],
    redirections: str,
    timeout: float,
) -> float:
    """Serve one connection from the guest at the far end; seconds from its start to its end."""
    listener = wire.far.call(lambda: socket.create_server((wire.peer_address, 0)))
    listener.settimeout(timeout)

    def accept_and_serve() -> float:
        connection, _ = listener.accept()
        with connection:
            connection.settimeout(timeout)
            start = time.monotonic()
            serve(connection)
        return time.monotonic() - start

    with listener, ThreadPoolExecutor(1) as pool:
        seconds: Future[float] = pool.submit(accept_and_serve)
        port = listener.getsockname()[1]
        try:
            guest.check(f"nc {wire.peer_address} {port} {redirections}", timeout)
        except BaseException:
            # Wakes a server that waits for a guest that will never come.
            listener.shutdown(socket.SHUT_RDWR)
            raise
        return seconds.result()
