"""Moves random bytes between a guest and a peer, such as the far end of its wire, and compares checksums.

TCP from busybox' ``nc`` and ``dd`` in the guest to a socket of ours, in both directions: the guest needs
no server, and we take the time.
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
from typing import Protocol

from guestwire.testing.guests import Guest
from guestwire.testing.namespaces import NamedNamespace

# SHA-512 is the fastest of the strong checksums that busybox has, on 64-bit processors.
CHECKSUM_PROGRAM = "sha512sum"
GUEST_FILE = "/tmp/transfer"  # noqa: S108 - in the guest, which has one user and one task
PIECE = 1 << 18

# Called with the bytes moved so far.
Progress = Callable[[int], None]


class Peer(Protocol):
    """Whom the guest exchanges files with, such as the far end of a ``Wire``."""

    @property
    def far(self) -> NamedNamespace:
        """The network namespace that it is in."""

    @property
    def peer_address(self) -> str:
        """Its address there, IPv4 or IPv6."""


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
    peer: Peer, guest: Guest, size: int, timeout: float = 300.0, progress: Progress = ignore
) -> Transfer:
    """Send ``size`` random bytes from the peer to a file in the guest.

    Raises:
        ChannelError: the guest did not receive them, or is gone.
    """
    seconds, sent = _send(peer, guest, size, timeout, progress)
    return Transfer(size, seconds, sent, _guest_checksum(guest, timeout))


def from_guest(
    peer: Peer, guest: Guest, size: int, timeout: float = 300.0, progress: Progress = ignore
) -> Transfer:
    """Send ``size`` random bytes (whole MiB) from a file in the guest to the peer.

    Raises:
        ChannelError: the guest could not send them, or is gone.
    """
    mebibytes = size >> 20
    guest.check(f"dd if=/dev/urandom of={GUEST_FILE} bs=1M count={mebibytes}", timeout)
    sent = _guest_checksum(guest, timeout)
    seconds, received = _receive(peer, guest, timeout, progress)
    return Transfer(mebibytes << 20, seconds, sent, received)


def there_and_back(peer: Peer, guest: Guest, size: int, timeout: float = 300.0) -> tuple[Transfer, Transfer]:
    """Send ``size`` random bytes to a file in the guest, and have the guest send that file back.

    For guests in which a checksum takes too long: only what comes back is compared with what was sent, and
    both transfers have the same checksums.

    Raises:
        ChannelError: the guest did not receive or send them, or is gone.
    """
    there, sent = _send(peer, guest, size, timeout, ignore)
    back, returned = _receive(peer, guest, timeout, ignore)
    return Transfer(size, there, sent, returned), Transfer(size, back, sent, returned)


def _send(peer: Peer, guest: Guest, size: int, timeout: float, progress: Progress) -> tuple[float, str]:
    """Send random bytes to the guest's file; return how many seconds it took, and their checksum."""
    content = os.urandom(size)

    def send(connection: socket.socket) -> None:
        # close() then returns when the guest has acknowledged the last byte (socket(7)).
        linger = struct.pack("ii", 1, max(1, round(timeout)))
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        for start in range(0, size, PIECE):
            connection.sendall(content[start : start + PIECE])
            progress(min(start + PIECE, size))

    seconds = _exchange(peer, guest, send, f"of={GUEST_FILE}", timeout)
    return seconds, hashlib.sha512(content).hexdigest()


def _receive(peer: Peer, guest: Guest, timeout: float, progress: Progress) -> tuple[float, str]:
    """Receive the guest's file; return how many seconds it took, and the checksum of what came."""
    checksum = hashlib.sha512()

    def receive(connection: socket.socket) -> None:
        received = 0
        while data := connection.recv(PIECE):
            checksum.update(data)
            received += len(data)
            progress(received)

    seconds = _exchange(peer, guest, receive, f"if={GUEST_FILE}", timeout)
    return seconds, checksum.hexdigest()


def _guest_checksum(guest: Guest, timeout: float) -> str:
    return guest.check(f"{CHECKSUM_PROGRAM} {GUEST_FILE}", timeout).split()[0]


def _exchange(
    peer: Peer,
    guest: Guest,
    serve: Callable[[socket.socket], None],
    file: str,
    timeout: float,
) -> float:
    """Have the peer serve one connection from the guest; seconds from its start to its end."""
    address = peer.peer_address
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    listener = peer.far.call(lambda: socket.create_server((address, 0), family=family))
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
            # nc itself would move a kilobyte at a time.
            guest.check(f"nc {address} {port} -e dd {file} bs={PIECE} status=none", timeout)
        except BaseException:
            # Wakes a server that waits for a guest that will never come.
            listener.shutdown(socket.SHUT_RDWR)
            raise
        return seconds.result()
