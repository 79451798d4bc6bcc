"""A guest's traffic with the far ends of wires, which goes on while the guest is bound to other ports."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from backend.house import status
from backend.process import Backend, wait_until
from guestwire.control import ask_rebind
from guestwire.runtime import CONTROL_SOCKET
from guestwire.testing import FakeGuest, FrameStream, Wire
from guestwire.testing.frame_stream import ETHERTYPE

T = TypeVar("T")

MIB = 1 << 20
BURST = 10
IDENTIFIER = slice(14, 16)  # of a frame's stream, behind its Ethernet header
LEAVING = 1


def connect(wire: Wire, near: str, far: str) -> None:
    """Put a veth pair of these names between a wire's namespaces, like the wire's own."""
    for namespace, command in (
        (wire.near, f"ip link add {near} type veth peer name {far} netns {wire.far.name}"),
        (wire.near, f"ip link set {near} up"),
        (wire.far, f"ip link set {far} up"),
        (wire.far, f"ethtool -K {far} tx off txvlan off tx-vlan-stag-hw-insert off"),
    ):
        done = namespace.run(command.split())
        assert done.returncode == 0, done.stdout


def second_wire(wire: Wire) -> tuple[str, str]:
    """Put another veth pair beside a wire's; return the names of its near and its far end."""
    connect(wire, "wire1", "peer1")
    return "wire1", "peer1"


def peer_socket(wire: Wire, interface: str | None = None) -> socket.socket:
    """A socket for the frames of streams at the far end; it never waits for one."""

    def make() -> socket.socket:
        peer = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETHERTYPE))
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 * MIB)
        peer.bind((interface or wire.peer_interface, ETHERTYPE))
        peer.setblocking(False)
        return peer

    return wire.far.call(make)


class Traffic:
    """Frames of two streams: one that the guest sends, and one that a far end sends to it.

    Args:
        guest: up.
        peers: the far ends, in the order in which the guest will be bound to them. Without one the guest's
            port is ``echo``.
    """

    def __init__(self, guest: FakeGuest, *peers: socket.socket) -> None:
        self.guest, self.peers = guest, list(peers)
        self.sender: socket.socket | None = None
        self.arriving = FrameStream((60, 1514))
        self.leaving = FrameStream((60, 1514), identifier=LEAVING)
        self.used = 0  # receive buffers: each frame takes one
        self._returned: list[bytes] = []
        self._arrived: list[list[bytes]] = [[] for _ in peers]

    def step(self) -> None:
        """Send a burst each way, and take what has come."""
        if self.sender is not None:
            for frame in self.arriving.take(BURST):
                # It is lost where the link is down, or the other end takes no frame of this length.
                with contextlib.suppress(OSError):
                    self.sender.send(frame)
        self.guest.pair.send_stream(self.leaving, BURST, drain=False)
        self.take()

    def take(self) -> None:
        """Take what has come, at both ends."""
        while (frame := self.guest.pair.receive(timeout=0, wait=False)) is not None:
            self.used += 1
            if int.from_bytes(frame.data[IDENTIFIER], "little") == LEAVING:
                self._returned.append(frame.data)
            else:
                self.arriving.accept(frame.data)
        for peer, arrived in zip(self.peers, self._arrived, strict=True):
            with contextlib.suppress(OSError):  # nothing is there, or the link has been down
                while True:
                    arrived.append(peer.recv(65536))

    def counts(self) -> list[int]:
        """How many frames of the guest's have come back, and have come to each peer."""
        return [len(self._returned), *map(len, self._arrived)]

    def goes_on(self, seconds: float = 10.0) -> None:
        """Make sure that frames pass both ways now."""
        before = [self.arriving.received, *self.counts()]

        def passes() -> bool:
            self.step()
            received = self.sender is None or self.arriving.received >= before[0] + 5 * BURST
            return received and sum(self.counts()) >= sum(before[1:]) + 5 * BURST

        wait_until(passes, seconds)

    def during(self, function: Callable[[], T]) -> T:
        """Call a function while the traffic goes on."""
        with ThreadPoolExecutor(1) as pool:
            result = pool.submit(function)
            while not result.done():
                self.step()
                # A pause after each burst leaves the machine to the others.
                time.sleep(0.001)
        return result.result()

    def end(self, *, lost: int | None = 0) -> None:
        """Wait for what is on its way; nothing may be changed, be there twice, or be in the wrong order.

        Args:
            lost: how many of the guest's frames may not have come; None for any number.
        """
        self.guest.pair.drain()
        missing = 0 if lost is None else lost
        if lost is not None:
            wait_until(lambda: self.take() or sum(self.counts()) >= self.leaving.sent - missing)
        self.take()
        for frame in (*self._returned, *(frame for arrived in self._arrived for frame in arrived)):
            self.leaving.accept(frame)
        rx, tx = self.guest.rings
        assert self.guest.stop_ring(tx) == self.leaving.sent % 65536
        self.guest.stop_ring(rx)
        self.take()  # what the port held has been delivered
        assert rx.base == (self.used + self.guest.pair.empty) % 65536
        assert rx.driver.raw.used_index == rx.base


def rebind(backend: Backend, port: str) -> float:
    """Have the one guest of a process bound to another port; milliseconds without one."""
    (name,) = status(backend)
    return rebind_guest(backend, name, port)


def rebind_guest(backend: Backend, name: str, port: str) -> float:
    """Have one of several guests bound to another port; milliseconds without one."""
    control = backend.log.parent / "run" / str(backend.pid) / CONTROL_SOCKET
    done = ask_rebind(control, name, port)
    assert (done.guest, done.port) == (name, port)
    return done.milliseconds
