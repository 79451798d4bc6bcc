"""Guests on a wire, whose workers run when a test says so."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from guestwire.datapath.network import Network
from guestwire.datapath.wire import WirePort
from guestwire.virtio.features import Feature
from guestwire.virtio.segmentation import NetHeader
from unit.datapath.memory import BUFFERS, GUEST_BASE, Machine

SEND = GUEST_BASE + BUFFERS
RECEIVE = GUEST_BASE + 2 * BUFFERS
EVERYBODY = b"\xff" * 6
PLAIN = NetHeader()
NOTHING = Feature(0)
SLOT = 2048  # of a receive buffer, and between frames to be sent

SENDING = (
    Feature.VIRTIO_NET_F_CSUM
    | Feature.VIRTIO_NET_F_HOST_TSO4
    | Feature.VIRTIO_NET_F_HOST_TSO6
    | Feature.VIRTIO_NET_F_HOST_ECN
    | Feature.VIRTIO_NET_F_HOST_USO
)


def mac(number: int) -> bytes:
    """An address of one station."""
    return b"\x02" + number.to_bytes(5, "big")


def frame(destination: bytes, source: bytes, length: int = 100, fill: int = 0x5A) -> bytes:
    """A frame that says nothing."""
    return (destination + source + b"\x88\xb5").ljust(length, bytes([fill]))


class Guest(Machine):
    """A guest on a wire; `address` is the one that it usually sends from."""

    def __init__(
        self,
        network: Network,
        *,
        features: Feature = NOTHING,
        header_size: int = 12,
        mergeable: bool = False,
        source: bytes | None = None,
        ageing: int = 300,
        wait_us: int = 0,
        pair: int = 0,
        coalesce_us: int = 0,
        coalesce_packets: int = 64,
    ) -> None:
        self.network = network
        self.number = network.join(f"guest{len(network.members)}")
        self.address = mac(1 + self.number)
        self.header_size = header_size
        self.wire = WirePort(network, self.number, pair, source=source, ageing=ageing, wait_us=wait_us)
        super().__init__(
            self.wire,
            offloads=int(features),
            header_size=header_size,
            mergeable=mergeable,
            coalesce_us=coalesce_us,
            coalesce_packets=coalesce_packets,
        )
        self.pair.post()
        if source is not None:
            network.claim(self.number, source)
        self.wire.open()
        self.sent_slots = self.offered = self.looked = 0
        self.gone = False

    def send(self, data: bytes, header: NetHeader = PLAIN) -> int:
        """Make a frame available for sending; return its head."""
        content = header.pack()[: self.header_size] + data
        at = SEND + SLOT * (self.sent_slots % 256)
        self.sent_slots += 1
        self.write(at, content)
        return self.tx.offer((at, len(content)))

    def say(self, to: Guest | bytes, length: int = 100, fill: int = 0x5A) -> bytes:
        """Send a frame to another one, now; return it."""
        data = frame(to.address if isinstance(to, Guest) else to, self.address, length, fill)
        self.send(data)
        self.run()
        return data

    def offer(self, count: int = 1, size: int = SLOT) -> None:
        """Make receive buffers available, all of one size."""
        for _ in range(count):
            self.rx.offer((RECEIVE + size * self.offered, size))
            self.offered += 1

    def heard(self, size: int = SLOT) -> list[bytes]:
        """The frames that have come since this was last asked, one a buffer, without their headers."""
        return [data for _, data in self.heard_with_headers(size)]

    def heard_with_headers(self, size: int = SLOT) -> list[tuple[bytes, bytes]]:
        used = self.rx.used()
        out = []
        for number in range(self.looked, len(used)):
            data = self.read(RECEIVE + size * number, used[number][1])
            out.append((data[: self.header_size], data[self.header_size :]))
        self.looked = len(used)
        return out

    def leave(self) -> None:
        """End the queue pair's work, as the control side does."""
        self.wire.close()
        self.pair.finish()
        self.pair.settle()

    def close(self) -> None:
        self.gone = True
        self.leave()
        self.network.leave(self.number)
        super().close()


Join = Callable[..., Guest]


@pytest.fixture
def join() -> Iterator[Join]:
    """Have a guest join a wire of the test's own; the others are told apart by the order in which they do."""
    network = Network("test")
    guests: list[Guest] = []

    def make(**options: object) -> Guest:
        guests.append(Guest(network, **options))  # type: ignore[arg-type]
        return guests[-1]

    yield make
    for guest in guests:
        if not guest.gone:
            guest.close()
