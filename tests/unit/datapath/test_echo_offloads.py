"""The echo port on frames with offloads: passed on to a guest that accepts them, else done by us."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from guestwire.datapath.echo import EchoPort
from guestwire.datapath.null import NullPort
from guestwire.datapath.segmentation import segment
from guestwire.virtio.features import Feature
from guestwire.virtio.segmentation import NetHeader
from unit.datapath import requests
from unit.datapath.memory import BUFFERS, GUEST_BASE, Machine

SEND = GUEST_BASE + BUFFERS
RECEIVE = GUEST_BASE + 2 * BUFFERS
SENDING = (
    Feature.VIRTIO_NET_F_CSUM
    | Feature.VIRTIO_NET_F_HOST_TSO4
    | Feature.VIRTIO_NET_F_HOST_TSO6
    | Feature.VIRTIO_NET_F_HOST_ECN
    | Feature.VIRTIO_NET_F_HOST_USO
)
CSUM = Feature.VIRTIO_NET_F_GUEST_CSUM
TSO4, TSO6 = Feature.VIRTIO_NET_F_GUEST_TSO4, Feature.VIRTIO_NET_F_GUEST_TSO6
USO4, USO6 = Feature.VIRTIO_NET_F_GUEST_USO4, Feature.VIRTIO_NET_F_GUEST_USO6
ECN = Feature.VIRTIO_NET_F_GUEST_ECN
EVERYTHING = SENDING | CSUM | TSO4 | TSO6 | USO4 | USO6 | ECN
GSO_ECN = 0x80


class Guest(Machine):
    """A guest that gets back what it sends."""

    def __init__(self, features: Feature, *, header_size: int = 12, mergeable: bool = False) -> None:
        super().__init__(EchoPort(), offloads=int(features), header_size=header_size, mergeable=mergeable)
        self.header_size = header_size

    def send(self, header: NetHeader, frame: bytes) -> None:
        data = header.pack()[: self.header_size] + frame
        self.write(SEND, data)
        self.tx.offer((SEND, len(data)))

    def offer(self, count: int, size: int) -> None:
        for number in range(count):
            self.rx.offer((RECEIVE + size * number, size))

    def received(self, size: int) -> list[tuple[bytes, bytes]]:
        """The virtio_net_hdr and the frame in each buffer used, of buffers of one size."""
        out = []
        for number, (_, length) in enumerate(self.rx.used()):
            data = self.read(RECEIVE + size * number, length)
            out.append((data[: self.header_size], data[self.header_size :]))
        return out


@pytest.fixture(params=[12, 10])
def header_size(request: pytest.FixtureRequest) -> int:
    assert isinstance(request.param, int)
    return request.param


@pytest.fixture
def guests() -> Iterator[list[Guest]]:
    made: list[Guest] = []
    yield made
    for guest in made:
        guest.close()


REQUESTS = {
    "checksum": (requests.tcp(100), CSUM),
    "tso4": (requests.tcp(5000, 1448), CSUM | TSO4),
    "tso6": (requests.tcp(5000, 1428, version=6), CSUM | TSO6),
    "uso4": (requests.udp(5000, 1472), CSUM | USO4),
    "uso6": (requests.udp(5000, 1452, version=6), CSUM | USO6),
}


@pytest.mark.parametrize("name", REQUESTS)
def test_what_the_guest_accepts_comes_back_as_it_was(
    guests: list[Guest], name: str, header_size: int
) -> None:
    (header, frame), accepted = REQUESTS[name]
    guests.append(guest := Guest(SENDING | accepted, header_size=header_size))
    guest.offer(1, 8192)
    guest.send(header, frame)
    guest.run()
    expected = header.pack()[:10] + (b"\x01\x00" if header_size == 12 else b"")
    assert guest.received(8192) == [(expected, frame)]
    counted = guest.counted()
    large = int(header.gso_type != 0)
    assert (counted["tx"]["gso_frames"], counted["rx"]["gso_frames"]) == (large, large)
    assert (counted["rx"]["checksums"], counted["tx"]["checksums"]) == (1, 0)


@pytest.mark.parametrize("name", REQUESTS)
def test_what_the_guest_does_not_accept_is_done(guests: list[Guest], name: str, header_size: int) -> None:
    (header, frame), accepted = REQUESTS[name]
    (*_, lacking) = accepted
    guests.append(guest := Guest(EVERYTHING & ~lacking, header_size=header_size))
    guest.offer(8, 2048)
    guest.send(header, frame)
    guest.run()
    plain = (bytes(10) + b"\x01\x00")[:header_size]
    wanted = segment(header.pack(), frame)
    assert guest.received(2048) == [(plain, wire) for wire in wanted]
    counted = guest.counted()
    assert counted["rx"]["frames"] == len(wanted)
    assert counted["rx"]["gso_frames"] == 0
    assert counted["tx"]["frames"] == 1
    assert counted["tx"]["segments"] == (len(wanted) if header.gso_type else 0)
    assert counted["tx"]["checksums"] == len(wanted)


@pytest.mark.parametrize(("accepted", "frames"), [(EVERYTHING, 1), (EVERYTHING & ~ECN, 4)])
def test_ecn_is_an_offload_of_its_own(guests: list[Guest], accepted: Feature, frames: int) -> None:
    header, frame = requests.tcp(5000, 1448)
    header = NetHeader(1, header.gso_type | GSO_ECN, 0, 1448, header.csum_start, header.csum_offset)
    guests.append(guest := Guest(accepted))
    guest.offer(8, 8192)
    guest.send(header, frame)
    guest.run()
    assert len(guest.received(8192)) == frames


def test_a_large_frame_comes_back_over_mergeable_buffers(guests: list[Guest]) -> None:
    header, frame = requests.tcp(5000, 1448)
    guests.append(guest := Guest(EVERYTHING, mergeable=True))
    guest.offer(6, 1024)
    guest.send(header, frame)
    guest.run()
    first, *rest = guest.received(1024)
    assert first[0] == header.pack()[:10] + b"\x05\x00"
    assert first[1] + b"".join(start + end for start, end in rest) == frame


def test_segments_wait_for_buffers_and_none_is_lost_or_sent_twice(guests: list[Guest]) -> None:
    header, frame = requests.tcp(5000, 500)
    guests.append(guest := Guest(SENDING))
    wanted = segment(header.pack(), frame)
    guest.send(header, frame)
    for number in range(len(wanted)):
        guest.rx.offer((RECEIVE + 2048 * number, 2048))
        guest.run()
        # What the guest does to the frame's headers meanwhile is too late.
        guest.write(SEND, b"\xff" * 64)
        assert len(guest.tx.used()) == (number == len(wanted) - 1)
    assert [data for _, data in guest.received(2048)] == wanted
    assert guest.counted()["tx"]["drops"] == {}


def test_more_segments_than_a_burst_has_frames(guests: list[Guest]) -> None:
    header, frame = requests.udp(1000, 10)
    guests.append(guest := Guest(SENDING))
    wanted = segment(header.pack(), frame)
    guest.send(header, frame)
    got: list[bytes] = []
    for _ in range(2):
        guest.offer(50, 128)
        guest.run()
        got += [
            guest.read(RECEIVE + 128 * n, length)[12:] for n, (_, length) in enumerate(guest.rx.used()[-50:])
        ]
    assert got == wanted
    assert len(guest.tx.used()) == 1


def test_headers_that_contradict_themselves_are_dropped(guests: list[Guest]) -> None:
    header, frame = requests.tcp(5000, 1448)
    guests.append(guest := Guest(EVERYTHING))
    guest.offer(1, 8192)
    guest.send(header, frame[:14] + b"\x55" + frame[15:])
    guest.run()
    assert guest.counted()["tx"]["drops"] == {"bad_offload": 1}
    assert len(guest.tx.used()) == 1
    assert guest.rx.used() == []


def test_the_null_port_takes_what_is_sent() -> None:
    guest = Machine(NullPort(), offloads=int(SENDING))
    header, frame = requests.tcp(5000, 1448)
    guest.write(SEND, header.pack() + frame)
    guest.tx.offer((SEND, 12 + len(frame)))
    guest.run()
    assert guest.tx.used() == [(0, 0)]
    assert guest.counted()["tx"]["frames"] == 1
    guest.close()


def test_the_headers_that_were_looked_at_are_those_that_come_back() -> None:
    """The receive buffer begins in the frame: what we write there is as if the guest changed it."""
    header, frame = requests.tcp(60)
    guest = Guest(EVERYTHING)
    guest.send(header, frame)
    guest.rx.offer((SEND + 20, 2048))
    guest.run()
    assert guest.read(SEND + 20, 12 + len(frame)) == header.pack()[:10] + b"\x01\x00" + frame
    guest.close()
