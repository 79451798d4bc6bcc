"""A queue pair on the echo and null ports: layouts, mergeable buffers, drops, broken rings."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

import pytest

from guestwire.datapath.echo import EchoPort
from guestwire.datapath.null import NullPort
from guestwire.datapath.port import Port
from guestwire.virtio.ring_errors import RingError
from unit.datapath.memory import BUFFERS, GUEST_BASE, SIZE, Machine

SEND = GUEST_BASE + BUFFERS
RECEIVE = GUEST_BASE + 2 * BUFFERS
Make = Callable[..., Machine]


@pytest.fixture
def machine() -> Iterator[Make]:
    made: list[Machine] = []

    def make(port: Port | None = None, **options: bool | int) -> Machine:
        made.append(Machine(port or EchoPort(), **options))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for one in made:
        one.close()


def frame(length: int) -> bytes:
    return random.Random(length).randbytes(length)


def test_a_frame_comes_back(machine: Make) -> None:
    guest = machine()
    guest.write(SEND, bytes(12) + frame(100))
    sent = guest.tx.offer((SEND, 112))
    got = guest.rx.offer((RECEIVE, 1600))
    guest.run()
    assert guest.tx.used() == [(sent, 0)]
    assert guest.rx.used() == [(got, 112)]
    assert guest.read(RECEIVE, 112) == bytes(10) + b"\x01\x00" + frame(100)


@pytest.mark.parametrize("split", [1, 5, 12, 13, 26, 60, 111])
@pytest.mark.parametrize("scatter", [1, 11, 12, 13, 64])
def test_any_layout_of_either_side(machine: Make, split: int, scatter: int) -> None:
    guest = machine()
    guest.write(SEND, (bytes(12) + frame(100))[:split])
    guest.write(SEND + 4096, (bytes(12) + frame(100))[split:])
    guest.tx.offer((SEND, split), (SEND + 4096, 112 - split))
    guest.rx.offer((RECEIVE, scatter), (RECEIVE + 4096, 50), (RECEIVE + 8192, 1000))
    guest.run()
    assert guest.rx.used() == [(0, 112)]
    landed = guest.read(RECEIVE, scatter) + guest.read(RECEIVE + 4096, 50) + guest.read(RECEIVE + 8192, 1000)
    assert landed[:112] == bytes(10) + b"\x01\x00" + frame(100)
    assert not any(landed[112:])


def test_a_frame_over_mergeable_buffers(machine: Make) -> None:
    guest = machine(mergeable=True)
    guest.write(SEND, bytes(12) + frame(1000))
    guest.tx.offer((SEND, 1012))
    heads = [guest.rx.offer((RECEIVE + 1024 * i, 300)) for i in range(5)]
    guest.run()
    assert guest.rx.used() == list(zip(heads[:4], (300, 300, 300, 112), strict=True))
    landed = b"".join(guest.read(RECEIVE + 1024 * i, 300) for i in range(4))
    assert landed[:1012] == bytes(10) + b"\x04\x00" + frame(1000)


def test_a_legacy_guest_has_a_header_of_ten_bytes(machine: Make) -> None:
    guest = machine(header_size=10)
    guest.write(SEND, bytes(10) + frame(60))
    guest.tx.offer((SEND, 70))
    guest.rx.offer((RECEIVE, 1600))
    guest.run()
    assert guest.rx.used() == [(0, 70)]
    assert guest.read(RECEIVE, 70) == bytes(10) + frame(60)


def test_a_frame_waits_for_a_receive_buffer(machine: Make) -> None:
    guest = machine()
    guest.write(SEND, bytes(12) + frame(60))
    guest.tx.offer((SEND, 72))
    guest.run()
    assert guest.tx.used() == []
    guest.rx.offer((RECEIVE, 1600))
    guest.run()
    assert guest.tx.used() == [(0, 0)]
    assert guest.rx.used() == [(0, 72)]


def test_a_frame_waits_until_mergeable_buffers_suffice(machine: Make) -> None:
    guest = machine(mergeable=True)
    guest.write(SEND, bytes(12) + frame(200))
    guest.tx.offer((SEND, 212))
    guest.rx.offer((RECEIVE, 100))
    guest.run()
    assert guest.rx.used() == []
    guest.rx.offer((RECEIVE + 512, 100))
    guest.rx.offer((RECEIVE + 1024, 100))
    guest.run()
    assert guest.rx.used() == [(0, 100), (1, 100), (2, 12)]


@pytest.mark.parametrize(
    ("header", "length", "reason"),
    [
        (bytes(12), 13, "too_short"),
        (b"\x01" + bytes(11), 60, "not_negotiated"),
        (b"\x00\x01" + bytes(10), 60, "not_negotiated"),
        (bytes(12), 65551, "too_long"),
    ],
)
def test_frames_that_cannot_be_are_dropped_and_counted(
    machine: Make, header: bytes, length: int, reason: str
) -> None:
    guest = machine()
    guest.write(SEND, header + bytes(length))
    guest.tx.offer((SEND, 12 + length))
    guest.rx.offer((RECEIVE, 70000))
    guest.run()
    assert guest.tx.used() == [(0, 0)]
    assert guest.rx.used() == []
    assert guest.counted()["tx"]["drops"] == {reason: 1}


def test_a_frame_too_long_for_the_guest_is_dropped_and_the_buffer_kept(machine: Make) -> None:
    guest = machine()
    guest.write(SEND, bytes(12) + frame(200))
    guest.tx.offer((SEND, 212))
    guest.tx.offer((SEND, 80))
    guest.rx.offer((RECEIVE, 100))
    guest.run()
    assert guest.tx.used() == [(0, 0), (1, 0)]
    assert guest.rx.used() == [(0, 80)]
    assert guest.counted()["rx"]["drops"] == {"too_long": 1}


def test_mergeable_buffers_of_one_byte_cannot_hold_a_header(machine: Make) -> None:
    guest = machine(mergeable=True)
    guest.write(SEND, bytes(12) + frame(60))
    guest.tx.offer((SEND, 72))
    for i in range(64):
        guest.rx.offer((RECEIVE + i, 1))
    guest.run()
    assert guest.tx.used() == [(0, 0)]
    assert guest.counted()["rx"]["drops"] == {"too_long": 1}


def test_many_frames_in_many_bursts(machine: Make) -> None:
    guest = machine()
    count = 500
    for i in range(count):
        guest.write(SEND + 2048 * (i % 64), bytes(12) + frame(60 + i))
        guest.tx.offer((SEND + 2048 * (i % 64), 72 + i))
        guest.rx.offer((RECEIVE + 2048 * (i % 64), 2048))
        guest.run()
        assert guest.read(RECEIVE + 2048 * (i % 64) + 12, 60 + i) == frame(60 + i)
    assert guest.rx.device.base == guest.tx.device.base == count
    counted = guest.counted()
    assert counted["rx"]["frames"] == counted["tx"]["frames"] == count
    assert counted["rx"]["bytes"] == sum(60 + i for i in range(count))
    assert counted["rx"]["copied_frames"] == {"port_copies": count}


def test_a_broken_ring_stops_alone_and_is_reported_once(machine: Make) -> None:
    guest = machine(NullPort())
    guest.tx.offer((GUEST_BASE + SIZE, 100))
    guest.rx.offer((RECEIVE, 1600))
    guest.run()
    assert guest.tx.device.error is not None
    assert guest.tx.device.error[0] == RingError.ADDRESS_OUTSIDE_MEMORY
    assert guest.rx.device.error is None
    assert guest.rx.device.in_flight == 1
    assert guest.counted()["worker"]["ring_errors"] == 1


def test_what_is_not_taken_is_offered_again(machine: Make) -> None:
    guest = machine(NullPort())
    for i in range(10):
        guest.rx.offer((RECEIVE + 2048 * i, 2048))
    guest.run()
    assert guest.rx.device.in_flight == 10
    guest.pair.finish()
    guest.pair.settle()
    assert guest.rx.device.base == 0


def test_a_disabled_transmit_ring_drops_and_a_disabled_receive_ring_rests(machine: Make) -> None:
    guest = machine()
    guest.pair.enable(rx=False, tx=False)
    guest.tx.offer((SEND, 72))
    guest.rx.offer((RECEIVE, 1600))
    guest.run()
    assert guest.tx.used() == [(0, 0)]
    assert guest.rx.used() == []
    assert guest.counted()["tx"]["drops"] == {"ring_disabled": 1}


def test_frames_for_a_disabled_receive_ring_are_dropped_and_it_goes_on_exactly(machine: Make) -> None:
    guest = machine()
    guest.write(SEND, bytes(12) + frame(60))
    for i in range(3):
        guest.rx.offer((RECEIVE + 2048 * i, 1600))
    guest.pair.enable(rx=False, tx=True)
    for _ in range(2):
        guest.tx.offer((SEND, 72))
    guest.run()
    assert guest.tx.used() == [(0, 0), (1, 0)]
    assert guest.rx.used() == []
    assert guest.counted()["rx"]["drops"] == {"ring_disabled": 2}
    guest.pair.enable(rx=True, tx=True)
    guest.tx.offer((SEND, 72))
    guest.run()
    assert guest.rx.used() == [(0, 72)]
    guest.pair.finish()
    guest.pair.settle()
    assert guest.rx.device.base == 1


def test_a_disabled_receive_ring_gets_nothing_when_it_is_stopped(machine: Make) -> None:
    guest = machine()
    guest.write(SEND, bytes(12) + frame(60))
    for i in range(3):
        guest.rx.offer((RECEIVE + 2048 * i, 1600))
    guest.tx.offer((SEND, 72))
    guest.run()
    guest.pair.enable(rx=False, tx=True)
    guest.tx.offer((SEND, 72))
    guest.run()
    guest.pair.finish()
    guest.pair.settle()
    assert guest.rx.used() == [(0, 72)]
    assert guest.rx.device.base == 1
    assert guest.counted()["rx"]["drops"] == {"ring_disabled": 1}
