"""Packed rings on an xdp port: lists that are read again, and how many wait."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator

import pytest

from guestwire.datapath.packed_ring import PackedRing
from unit.datapath.xdp_machine import XdpMachine, receive_address

NEXT, WRITE, AVAILABLE = 1, 2, 0x80

Make = Callable[..., XdpMachine]


@pytest.fixture
def machine() -> Iterator[Make]:
    made: list[XdpMachine] = []

    def make(mode: str, size: int, **options: int) -> XdpMachine:
        machine = XdpMachine(mode, size=size, **options)
        made.append(machine)
        at = machine.rx.at
        machine.rx.device = PackedRing(
            machine.window, size, at, at + 0x1000, at + 0x2000, receive=True, read_again=True
        )
        machine.attach()
        return machine

    yield make
    for machine in made:
        machine.close()


def offer(machine: XdpMachine, number: int, *lengths: int) -> None:
    """Make the next list available, the first time round the ring; all have as many buffers."""
    slot = number * len(lengths)
    for i, length in enumerate(lengths):
        flags = WRITE | AVAILABLE | (NEXT if i + 1 < len(lengths) else 0)
        descriptor = struct.pack("<QIHH", receive_address(slot + i), length, number, flags)
        machine.window.write(machine.rx.at + 16 * (slot + i), descriptor)


def test_lists_overwritten_by_used_descriptors_are_read_again(machine: Make) -> None:
    guest = machine("direct", 8)
    for number in range(3):
        offer(guest, number, 100, 2048)
    guest.run()
    places = guest.socket.take_fill(3)
    frames = [bytes([number]) * 300 for number in range(3)]
    for number in (2, 1, 0):
        guest.socket.deliver(places[number], frames[number])
        guest.run()
    for number, frame in enumerate(frames):
        head, rest = receive_address(2 * number), receive_address(2 * number + 1)
        assert guest.read(head, 100)[12:] + guest.read(rest, 212) == frame
    used = [struct.unpack("<QIHH", guest.window.read(guest.rx.at + 16 * slot, 16)) for slot in (0, 2, 4)]
    assert [descriptor[2] for descriptor in used] == [2, 1, 0]
    guest.detach()
    assert guest.rx.device.base == 0x8006_8006


def test_lists_are_counted_and_not_their_descriptors(machine: Make) -> None:
    """A spare frame is posted only for a list that waits: none that arrives is lost for want of one."""
    guest = machine("zero-copy", 256, reserve=100, socket_ring=256, bounce_frames=256)
    guest.run()
    for number in range(100):
        offer(guest, number, 2048, 64)
    guest.run()
    for place in guest.socket.take_fill(100):
        guest.socket.deliver(place, bytes(100))
    guest.run()
    assert guest.counted()["rx"]["frames"] == 100
