"""Runs of common frames, and what breaks them up: every frame comes, whole and in order."""

from __future__ import annotations

import itertools
import random

import pytest

from guestwire.datapath.echo import EchoPort
from unit.datapath.memory import BUFFERS, GUEST_BASE, Machine
from unit.datapath.wired import Join, frame, join, mac

__all__ = ["join"]

SEND = GUEST_BASE + BUFFERS
RECEIVE = GUEST_BASE + 2 * BUFFERS
HEADER = bytes(12)
SLOT = 2048
LENGTHS = [14, 15, 31, 32, 33, 47, 48, 63, 64, 65, 95, 96, 97, 127, 128, 129, 130, 255, 1500]


class Echo:
    """A guest on the echo port."""

    def __init__(self, *, header_size: int = 12) -> None:
        self.guest = Machine(EchoPort(), header_size=header_size)

    def send(self, slot: int, data: bytes, *cuts: int) -> None:
        """Send a frame in pieces that end at these bytes of header and frame, and at its end."""
        at, content = SEND + SLOT * slot, HEADER + data
        self.guest.write(at, content)
        ends = [0, *cuts, len(content)]
        self.guest.tx.offer(*((at + a, b - a) for a, b in itertools.pairwise(ends)))

    def offer(self, slot: int, *pieces: int) -> None:
        """Offer a receive buffer of pieces of so many bytes."""
        at = RECEIVE + SLOT * slot
        ends = list(itertools.accumulate((0, *pieces)))
        self.guest.rx.offer(*((at + a, b - a) for a, b in itertools.pairwise(ends)))

    def received(self, slot: int, length: int) -> bytes:
        return self.guest.read(RECEIVE + SLOT * slot + 12, length)


@pytest.mark.parametrize("shift", [0, 1, 12, 13])
def test_each_length_is_copied_whole_and_no_byte_more(shift: int) -> None:
    echo = Echo()
    for slot, length in enumerate(LENGTHS):
        data = random.Random(length).randbytes(length)
        at = SEND + SLOT * slot + shift
        echo.guest.write(at, HEADER + data)
        echo.guest.write(RECEIVE + SLOT * slot, b"\xa5" * SLOT)
        echo.guest.tx.offer((at, 12 + length))
        echo.offer(slot, 1600)
        echo.guest.run()
        assert echo.received(slot, length + 20) == data + b"\xa5" * 20, length
    assert [length for _, length in echo.guest.rx.used()] == [12 + length for length in LENGTHS]
    echo.guest.close()


@pytest.mark.parametrize("header_size", [12, 10])
@pytest.mark.parametrize("number", range(12))
def test_a_header_is_right_whatever_was_there_before(header_size: int, number: int) -> None:
    echo = Echo(header_size=header_size)
    right = bytes(10) + b"\x01\x00"
    almost = right[:number] + bytes([right[number] ^ 0x80]) + right[number + 1 :]
    frame = bytes(range(64))
    before = [right, almost, b"\xff" * 12]
    for slot, content in enumerate(before):
        echo.guest.write(RECEIVE + SLOT * slot, content)
        echo.guest.write(SEND + SLOT * slot, bytes(header_size) + frame)
        echo.guest.tx.offer((SEND + SLOT * slot, header_size + len(frame)))
        echo.offer(slot, 1600)
    echo.guest.run()
    received = [echo.guest.read(RECEIVE + SLOT * slot, header_size + 64) for slot in range(len(before))]
    assert received == [right[:header_size] + frame] * len(before)
    echo.guest.close()


def test_used_elements_that_stay_and_that_change_from_lap_to_lap() -> None:
    echo = Echo()
    size = echo.guest.rx.size
    laps: list[list[tuple[int, int]]] = []
    for lengths in ([64] * size, [64] * size, [64, 65] * (size // 2), [65] * size):
        for slot, length in enumerate(lengths):
            echo.send(slot, bytes(length))
            echo.offer(slot, 1600)
        echo.guest.run()
        assert echo.guest.rx.used()[-size:] == [(head, 12 + n) for head, n in enumerate(lengths)]
        laps.append(echo.guest.tx.used()[-size:])
    assert laps == [[(head, 0) for head in range(size)]] * 4
    echo.guest.close()


@pytest.mark.parametrize("seed", range(20))
def test_frames_and_buffers_of_several_pieces_between_common_ones(seed: int) -> None:
    rng = random.Random(seed)
    echo = Echo()
    sent = []
    for slot in range(24):
        length = rng.choice([60, 64, 100, 1514])
        sent.append(rng.randbytes(length))
        cuts = rng.choice([(), (), (), (12,), (5,), (12, 40)])
        echo.send(slot, sent[-1], *cuts)
        echo.offer(slot, *rng.choice([(1600,), (1600,), (1600,), (12, 1588), (800, 800)]))
        if rng.random() < 0.3:
            echo.guest.run()
    echo.guest.run()
    assert [length for _, length in echo.guest.rx.used()] == [12 + len(data) for data in sent]
    assert [echo.received(slot, len(data)) for slot, data in enumerate(sent)] == sent
    counted = echo.guest.counted()
    assert counted["rx"]["frames"] == counted["tx"]["frames"] == len(sent)
    assert counted["rx"]["bytes"] == counted["tx"]["bytes"] == sum(map(len, sent))
    echo.guest.close()


def test_buffers_that_are_too_small_break_a_run() -> None:
    echo = Echo()
    for slot, room in enumerate([1600, 40, 1600]):
        echo.send(slot, bytes([slot]) * 64)
        echo.offer(slot, room)
    echo.guest.run()
    # What the next buffer cannot hold is dropped, and the buffer stays for the next frame.
    counted = echo.guest.counted()
    assert counted["rx"]["frames"] + sum(counted["rx"]["drops"].values()) == 3
    assert counted["rx"]["drops"] == {"too_long": 2}
    echo.guest.close()


def test_other_addresses_break_a_run_over_a_wire(join: Join) -> None:
    sender, one, other = join(), join(), join()
    for receiver in (one, other):
        receiver.offer(32)
        receiver.say(sender)
    sender.offer(32)
    sent: dict[bytes, list[bytes]] = {one.address: [], other.address: []}
    for number in range(30):
        to = one.address if number % 7 < 4 else other.address
        source = sender.address if number % 5 else mac(77)
        data = frame(to, source, 64 + number, fill=number)
        sent[to].append(data)
        sender.send(data)
    for receiver in (one, other):
        receiver.heard()  # what the others said, so that their addresses were learnt
    sender.run()
    assert one.heard() == sent[one.address]
    assert other.heard() == sent[other.address]
