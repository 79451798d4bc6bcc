"""The receiving half of the xdp port: where frames land, and what is not believed."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator

import pytest

from unit.datapath.memory import BUFFERS, GUEST_BASE, SIZE
from unit.datapath.xdp_machine import BUFFER_SPACING, LARGE, MODES, RECEIVE, Mode, XdpMachine, receive_address

Make = Callable[..., XdpMachine]
IN_PLACE: tuple[Mode, ...] = ("zero-copy", "direct")
HEADER = bytes(10) + b"\x01\x00"
SMALL = 400


@pytest.fixture
def machine() -> Iterator[Make]:
    with contextlib.ExitStack() as made:

        def make(mode: Mode = "direct", **options: int) -> XdpMachine:
            return made.enter_context(contextlib.closing(XdpMachine(mode, **options)))  # type: ignore[arg-type]

        yield make


def frame(length: int, seed: int = 0) -> bytes:
    return random.Random(length + 65536 * seed).randbytes(length)


def guest_memory(guest: XdpMachine) -> bytes:
    """All that the guest has but its rings."""
    return guest.read(GUEST_BASE + BUFFERS, SIZE - BUFFERS)


def fill_memory(guest: XdpMachine) -> bytearray:
    """Fill the guest's buffers and all around them with a pattern; return it."""
    pattern = random.Random(1).randbytes(SIZE - BUFFERS)
    guest.write(GUEST_BASE + BUFFERS, pattern)
    return bytearray(pattern)


def place(memory: bytearray, address: int, data: bytes) -> None:
    at = address - GUEST_BASE - BUFFERS
    memory[at : at + len(data)] = data


@pytest.mark.parametrize("mode", IN_PLACE)
def test_a_frame_lands_in_the_guests_buffer_and_nowhere_else(machine: Make, mode: Mode) -> None:
    guest = machine(mode)
    expected = fill_memory(guest)
    heads = [guest.offer_receive(number) for number in range(1, 9)]
    guest.run()
    for length, address in zip(
        (60, 61, 100, 777, 1500, 1514, 1518, 14), guest.socket.take_fill(), strict=True
    ):
        guest.socket.deliver(address, frame(length))
    guest.run()
    lengths = [60, 61, 100, 777, 1500, 1514, 1518, 14]
    assert guest.rx.used() == [(head, 12 + n) for head, n in zip(heads, lengths, strict=True)]
    for number, length in enumerate(lengths, 1):
        place(expected, receive_address(number), HEADER + frame(length))
    assert guest_memory(guest) == expected
    counted = guest.counted()["rx"]
    assert counted["frames"] == 8
    assert counted["zero_copy_frames" if mode == "zero-copy" else "direct_frames"] == 8
    assert counted["copied_frames"] == {}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("offset", [0, 1, 2, 3, 7])
def test_a_buffer_may_begin_anywhere(machine: Make, mode: Mode, offset: int) -> None:
    guest = machine(mode)
    expected = fill_memory(guest)
    guest.rx.offer((receive_address(1) + offset, LARGE))
    guest.run()
    guest.socket.deliver(guest.socket.take_fill(1)[0], frame(99))
    guest.run()
    place(expected, receive_address(1) + offset, HEADER + frame(99))
    assert guest_memory(guest) == expected


def test_what_a_virtio_net_nic_leaves_before_the_frame_is_overwritten(machine: Make) -> None:
    guest = machine("zero-copy")
    expected = fill_memory(guest)
    guest.offer_receive(1)
    guest.run()
    guest.socket.deliver(guest.socket.take_fill()[0], frame(200), before=b"\xff" * 12)
    guest.run()
    place(expected, receive_address(1), HEADER + frame(200))
    assert guest_memory(guest) == expected


@pytest.mark.parametrize("mode", IN_PLACE)
def test_buffers_come_back_in_any_order(machine: Make, mode: Mode) -> None:
    guest = machine(mode)
    heads = [guest.offer_receive(number) for number in range(1, 9)]
    guest.run()
    addresses = guest.socket.take_fill()
    order = [5, 0, 7, 1, 6, 2, 4, 3]
    for i in order:
        guest.socket.deliver(addresses[i], frame(60 + i))
        guest.run()
    assert guest.rx.used() == [(heads[i], 72 + i) for i in order]
    assert guest.port.held == (0, 0, 0)
    for i in order:
        assert guest.read(receive_address(i + 1), 72 + i) == HEADER + frame(60 + i)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("address", [0, 4096, (1 << 48) - 1, GUEST_BASE, 1 << 40])
def test_an_arrival_for_an_address_that_was_never_posted_is_dropped(
    machine: Make, mode: Mode, address: int
) -> None:
    guest = machine(mode)
    expected = fill_memory(guest)
    guest.offer_receive(1)
    guest.run()
    held = guest.port.held
    guest.socket.describe(address, 100)
    guest.run()
    assert guest.rx.used() == []
    assert guest.port.held == held
    assert guest.counted()["rx"]["drops"] == {"unexpected_place": 1}
    assert guest_memory(guest) == expected


@pytest.mark.parametrize("mode", IN_PLACE)
def test_a_second_delivery_of_a_buffer_is_dropped(machine: Make, mode: Mode) -> None:
    guest = machine(mode)
    heads = [guest.offer_receive(number) for number in (1, 2)]
    guest.run()
    first, second = guest.socket.take_fill()
    guest.socket.deliver(first, frame(100))
    guest.socket.describe(first, 60)
    guest.socket.deliver(second, frame(80))
    guest.socket.describe(second, 60)
    guest.run()
    assert guest.rx.used() == [(heads[0], 112), (heads[1], 92)]
    assert guest.counted()["rx"]["drops"] == {"unexpected_place": 2}


@pytest.mark.parametrize("mode", IN_PLACE)
def test_a_second_delivery_is_dropped_also_while_older_buffers_are_out(machine: Make, mode: Mode) -> None:
    guest = machine(mode)
    heads = [guest.offer_receive(number) for number in (1, 2, 3)]
    guest.run()
    addresses = guest.socket.take_fill()
    guest.socket.deliver(addresses[1], frame(100))
    guest.socket.describe(addresses[1], 60)
    guest.run()
    assert guest.rx.used() == [(heads[1], 112)]
    assert guest.port.held == (2, 0, 0)
    assert guest.counted()["rx"]["drops"] == {"unexpected_place": 1}


@pytest.mark.parametrize("mode", IN_PLACE)
def test_a_frame_longer_than_any_is_dropped_and_its_buffer_comes_back_empty(
    machine: Make, mode: Mode
) -> None:
    guest = machine(mode)
    head = guest.offer_receive(1)
    guest.run()
    guest.socket.describe(guest.socket.take_fill()[0], 0xFFFFFFFF)
    guest.run()
    assert guest.rx.used() == [(head, 0)]
    assert guest.counted()["rx"]["drops"] == {"too_long": 1}


@pytest.mark.parametrize("length", [4000, 65536, 0xFFFFFFF3, 0xFFFFFFFF])
@pytest.mark.parametrize("offset", [None, 4095, 4096, 0xFFFF])
def test_what_lies_outside_a_bounce_frame_is_not_read(machine: Make, length: int, offset: int | None) -> None:
    guest = machine("bounce")
    expected = fill_memory(guest)
    guest.rx.offer((receive_address(1), 70000))
    guest.run()
    (address,) = guest.socket.take_fill(1)
    for other in range(0, guest.bounce_frames * 4096, 4096):
        if other != address:
            guest.socket.write(other, b"other's!" * 512)
    guest.socket.describe(address, length, offset=offset)
    guest.run()
    assert b"other's!" not in guest_memory(guest)
    at = receive_address(1) + 12 + 4096 - GUEST_BASE - BUFFERS
    assert guest_memory(guest)[at:] == expected[at:]
    assert guest.port.held[0] == 0


@pytest.mark.parametrize("mode", IN_PLACE)
@pytest.mark.parametrize("moved", [-256, -1, 1, 2, 100])
def test_a_frame_that_lies_elsewhere_in_its_chunk_is_moved(machine: Make, mode: Mode, moved: int) -> None:
    guest = machine(mode)
    guest.offer_receive(1)
    guest.run()
    offset = 256 + guest.socket.headroom + moved
    guest.socket.deliver(guest.socket.take_fill()[0], frame(150), offset=offset)
    guest.run()
    assert guest.rx.used() == [(0, 162)]
    assert guest.read(receive_address(1), 162) == HEADER + frame(150)
    assert guest.counted()["rx"]["copied_frames"] == {"bad_place": 1}


def test_buffers_too_small_for_the_largest_frame_get_copies(machine: Make) -> None:
    guest = machine("direct", mergeable=True)
    expected = fill_memory(guest)
    heads = [guest.offer_receive(number, SMALL) for number in range(1, 6)]
    guest.run()
    guest.socket.deliver(guest.socket.take_fill(1)[0], frame(900))
    guest.run()
    assert guest.rx.used() == list(zip(heads[:3], (400, 400, 112), strict=True))
    data = bytes(10) + b"\x03\x00" + frame(900)
    for i in range(3):
        place(expected, receive_address(i + 1), data[400 * i : 400 * i + 400])
    assert guest_memory(guest) == expected
    assert guest.counted()["rx"]["copied_frames"] == {"buffer_too_small": 1}


@pytest.mark.parametrize("split", [1, 11, 12, 13, 500, 1400])
@pytest.mark.parametrize("mode", MODES)
def test_a_chain_in_any_layout_gets_the_frame(machine: Make, mode: Mode, split: int) -> None:
    guest = machine(mode)
    expected = fill_memory(guest)
    guest.rx.offer((receive_address(1), split), (receive_address(3), 3000))
    guest.run()
    guest.socket.deliver(guest.socket.take_fill(1)[0], frame(1514))
    guest.run()
    assert guest.rx.used() == [(0, 1526)]
    data = HEADER + frame(1514)
    place(expected, receive_address(1), data[:split])
    place(expected, receive_address(3), data[split:])
    assert guest_memory(guest) == expected


def test_a_header_in_a_buffer_of_its_own_needs_no_copy_in_copy_mode(machine: Make) -> None:
    guest = machine("direct")
    guest.rx.offer((receive_address(1), 12), (receive_address(3), LARGE))
    guest.run()
    guest.socket.deliver(guest.socket.take_fill(1)[0], frame(1514))
    guest.run()
    assert guest.counted()["rx"]["direct_frames"] == 1


def test_a_buffer_that_a_device_does_not_see_in_one_piece_gets_copies(machine: Make) -> None:
    guest = machine("zero-copy", piece=2 * BUFFER_SPACING)
    # The chunk of 4,096 bytes begins before the buffer, on the page before it.
    heads = [guest.offer_receive(number, 2000) for number in (1, 2)]
    guest.run()
    crossing, joined = sorted(guest.socket.take_fill(), reverse=True)
    guest.socket.deliver(joined, frame(100))
    guest.socket.deliver(crossing, frame(200))
    guest.run()
    assert sorted(guest.rx.used()) == sorted((heads[i], n) for i, n in enumerate((112, 212)))
    assert guest.read(RECEIVE + BUFFER_SPACING, 112) == HEADER + frame(100)
    assert guest.read(RECEIVE + 2 * BUFFER_SPACING, 212) == HEADER + frame(200)
    counted = guest.counted()["rx"]
    assert counted["zero_copy_frames"] == 1
    assert counted["copied_frames"] == {"page_crossing": 1}


def test_a_legacy_header_leaves_no_room_for_a_nics_own_and_gets_copies(machine: Make) -> None:
    guest = machine("zero-copy", header_size=10)
    guest.offer_receive(1)
    guest.run()
    guest.socket.deliver(guest.socket.take_fill(1)[0], frame(100))
    guest.run()
    assert guest.read(receive_address(1), 110) == bytes(10) + frame(100)
    assert guest.counted()["rx"]["copied_frames"] == {"bad_place": 1}


def test_in_bounce_mode_nothing_of_the_guest_is_posted(machine: Make) -> None:
    guest = machine("bounce", bounce_frames=128)
    heads = [guest.offer_receive(number) for number in range(1, 5)]
    guest.run()
    addresses = guest.socket.take_fill()
    assert guest.port.held == (0, len(addresses), 0)
    for i, address in enumerate(addresses[2:6]):
        guest.socket.deliver(address, frame(60 + i))
    guest.run()
    assert guest.rx.used() == [(head, 72 + i) for i, head in enumerate(heads)]
    for i in range(4):
        assert guest.read(receive_address(i + 1), 72 + i) == HEADER + frame(60 + i)
    assert guest.counted()["rx"]["copied_frames"] == {"bounce_mode": 4}


@pytest.mark.parametrize("mode", MODES)
def test_thousands_of_frames_through_wrapping_rings(machine: Make, mode: Mode) -> None:
    guest = machine(mode, size=16, socket_ring=32)
    number = 0
    for i in range(300):
        count = 1 + i % 16
        for k in range(count):
            guest.offer_receive(k)
        guest.run()
        for address in guest.socket.take_fill(count):
            guest.socket.deliver(address, frame(60 + number % 1000))
            number += 1
        guest.run()
        for k in range(count):
            length = 60 + (number - count + k) % 1000
            assert guest.read(receive_address(k), 12 + length) == HEADER + frame(length)
    assert guest.rx.device.base == number & 0xFFFF
    assert guest.counted()["rx"]["frames"] == number
    assert guest.counted()["rx"]["drops"] == {}


def test_a_wakeup_is_asked_for_only_when_the_kernel_wants_one(machine: Make) -> None:
    guest = machine("zero-copy")
    guest.offer_receive(1)
    guest.run()
    assert guest.counted()["worker"]["system_calls"] == 0
    guest.socket.need_wakeup(fill=True, tx=False)
    guest.pair.step()
    assert guest.counted()["worker"]["system_calls"] == 1
    guest.socket.take_fill()
    guest.pair.step()
    assert guest.counted()["worker"]["system_calls"] == 1
