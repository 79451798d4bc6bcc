"""The sending half of the xdp port: what the kernel sees, and which completions are believed."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator

import pytest

from unit.datapath.xdp_machine import BUFFER_SPACING, MODES, SEND, Mode, XdpMachine

Make = Callable[..., XdpMachine]
IN_PLACE: tuple[Mode, ...] = ("zero-copy", "direct")


@pytest.fixture
def machine() -> Iterator[Make]:
    with contextlib.ExitStack() as made:

        def make(mode: Mode = "direct", **options: int) -> XdpMachine:
            return made.enter_context(contextlib.closing(XdpMachine(mode, **options)))  # type: ignore[arg-type]

        yield make


def frame(length: int) -> bytes:
    return random.Random(length).randbytes(length)


def offer_pieces(guest: XdpMachine, data: bytes, *lengths: int) -> int:
    """Send header and frame in pieces of these lengths and the rest; return the head."""
    buffers = []
    for number, length in enumerate((*lengths, len(data))):
        piece, data = data[:length], data[length:]
        if piece:
            guest.write(SEND + BUFFER_SPACING * number, piece)
            buffers.append((SEND + BUFFER_SPACING * number, len(piece)))
    return guest.tx.offer(*buffers)


@pytest.mark.parametrize("mode", IN_PLACE)
def test_a_frame_is_sent_from_where_it_is(machine: Make, mode: Mode) -> None:
    guest = machine(mode)
    head = guest.offer_frame(0, frame(1000))
    guest.run()
    at = guest.window.translate_guest(SEND + 12, 1000)
    ((address, length, options),) = guest.socket.take_tx()
    assert (address & (1 << 48) - 1) + (address >> 48) == at
    assert (length, options) == (1000, 0)
    assert guest.tx.used() == []
    guest.socket.complete([address])
    guest.run()
    assert guest.tx.used() == [(head, 0)]
    assert guest.port.held == (0, 0, 0)
    counted = guest.counted()["tx"]
    assert counted["zero_copy_frames" if mode == "zero-copy" else "direct_frames"] == 1
    assert counted["copied_frames"] == {}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("lost_bits", [0, 1])
@pytest.mark.parametrize("offset", [0, 1])
def test_a_completion_names_its_chain_also_when_copy_mode_clears_bit_0(
    machine: Make, mode: Mode, lost_bits: int, offset: int
) -> None:
    guest = machine(mode)
    heads = [guest.offer_frame(number, frame(60 + number), offset=offset) for number in range(64)]
    guest.run()
    sent = guest.socket.take_frames()
    assert [one.data for one in sent] == [frame(60 + number) for number in range(64)]
    order = random.Random(offset).sample(range(64), 64)
    guest.socket.complete([sent[i].addresses[0] & ~lost_bits for i in order])
    guest.run()
    if mode == "bounce":
        assert guest.tx.used() == [(head, 0) for head in heads]
    else:
        assert guest.tx.used() == [(heads[i], 0) for i in order]
    assert guest.port.held[2] == 0
    assert guest.counted()["tx"]["drops"] == {}


@pytest.mark.parametrize("split", [1, 12, 13, 100])
def test_pieces_are_sent_as_one_frame_of_several_descriptors(machine: Make, split: int) -> None:
    guest = machine("direct", most_pieces=17)
    head = offer_pieces(guest, bytes(12) + frame(500), split, 200, 50)
    guest.run()
    (sent,) = guest.socket.take_frames()
    assert sent.data == frame(500)
    *most, last = sent.addresses
    guest.socket.complete(most[::-1])
    guest.run()
    assert guest.tx.used() == []
    guest.socket.complete([last])
    guest.run()
    assert guest.tx.used() == [(head, 0)]
    assert guest.counted()["tx"]["direct_frames"] == 1


@pytest.mark.parametrize(
    ("mode", "options", "pieces", "reason"),
    [
        ("direct", {}, (12, 100), "scattered"),
        ("direct", {"most_pieces": 17}, (12, *[10] * 17), "scattered"),
        ("zero-copy", {}, (12, 100), "scattered"),
        ("bounce", {}, (), "bounce_mode"),
        ("bounce", {"most_pieces": 17}, (12, 100), "bounce_mode"),
    ],
)
def test_what_cannot_be_described_is_copied_and_says_why(
    machine: Make, mode: Mode, options: dict[str, int], pieces: tuple[int, ...], reason: str
) -> None:
    guest = machine(mode, **options)
    head = offer_pieces(guest, bytes(12) + frame(700), *pieces)
    guest.run()
    assert guest.tx.used() == [(head, 0)]
    guest.write(SEND, bytes(712))
    assert [one.data for one in guest.send_all()] == [frame(700)]
    assert guest.counted()["tx"]["copied_frames"] == {reason: 1}
    assert guest.counted()["tx"]["copied_bytes"] == 700
    assert guest.port.held[2] == 0


def test_a_frame_across_pages_that_a_device_sees_apart_does_not_go_in_one_piece(machine: Make) -> None:
    guest = machine("zero-copy", piece=BUFFER_SPACING)
    guest.offer_frame(1, frame(1000), offset=-500)
    guest.offer_frame(3, frame(900))
    assert guest.pair.step()
    # The kernel side refuses a descriptor across such a border.
    assert [one.data for one in guest.send_all()] == [frame(1000), frame(900)]
    counted = guest.counted()["tx"]
    assert counted["copied_frames"] == {"page_crossing": 1}
    assert counted["zero_copy_frames"] == 1


def test_copied_headers_do_not_change_after_they_were_looked_at(machine: Make) -> None:
    guest = machine("direct", most_pieces=17, copy_headers=True)
    head = guest.offer_frame(0, frame(1000))
    guest.run()
    guest.write(SEND, b"\xff" * 140)
    (sent,) = guest.socket.take_frames()
    assert sent.data == frame(1000)
    assert guest.tx.used() == []
    guest.socket.complete(sent.addresses)
    guest.run()
    assert guest.tx.used() == [(head, 0)]
    assert guest.port.held[2] == 0


@pytest.mark.parametrize("mode", IN_PLACE)
def test_a_completion_for_a_chain_that_is_not_out_is_ignored(machine: Make, mode: Mode) -> None:
    guest = machine(mode)
    head = guest.offer_frame(0, frame(60))
    guest.run()
    (sent,) = guest.socket.take_frames()
    (address,) = sent.addresses
    unknown = [address & (1 << 48) - 1 | other << 48 for other in (head + 1, 63, 64, 0xFFFF)]
    guest.socket.complete(unknown)
    guest.run()
    assert guest.tx.used() == []
    guest.socket.complete([address, address])
    guest.run()
    assert guest.tx.used() == [(head, 0)]
    assert guest.port.held[2] == 0
    assert guest.counted()["tx"]["drops"] == {"unexpected_place": 5}


def test_a_bounce_frame_is_not_used_twice_after_a_second_completion(machine: Make) -> None:
    guest = machine("bounce")
    for number in range(2):
        guest.offer_frame(number, frame(60 + number))
    guest.run()
    first, _ = guest.socket.take_frames()
    guest.socket.complete([first.addresses[0]] * 2)
    guest.run()
    for number in range(3):
        guest.offer_frame(number, frame(100 + number))
    guest.run()
    assert [one.data for one in guest.socket.take_frames()] == [frame(100 + number) for number in range(3)]


@pytest.mark.parametrize("mode", IN_PLACE)
def test_more_completions_than_a_pass_takes_are_taken_in_several(machine: Make, mode: Mode) -> None:
    guest = machine(mode, size=256, socket_ring=256)
    count = 0
    for _ in range(4):  # the rings wrap
        for number in range(200):
            guest.offer_frame(number, frame(60 + number))
        guest.run()
        sent = guest.socket.take_frames()
        assert [one.data for one in sent] == [frame(60 + number) for number in range(200)]
        guest.socket.complete([one.addresses[0] for one in sent])
        count += 200
        guest.run()
        assert guest.tx.device.base == count
        assert guest.port.held[2] == 0


@pytest.mark.parametrize("mode", MODES)
def test_frames_wait_for_room_in_the_ring_and_keep_their_order(machine: Make, mode: Mode) -> None:
    guest = machine(mode, socket_ring=8)
    for number in range(50):
        guest.offer_frame(number, frame(60 + number))
    guest.run()
    sent = []
    while frames := guest.send_all():
        assert len(frames) <= 8
        sent += [one.data for one in frames]
    assert sent == [frame(60 + number) for number in range(50)]
    assert guest.tx.device.base == 50


@pytest.mark.parametrize("mode", MODES)
def test_the_kernel_is_woken_only_when_it_wants_to_be(machine: Make, mode: Mode) -> None:
    guest = machine(mode)
    guest.offer_frame(0, frame(60))
    guest.run()
    assert guest.counted()["worker"]["system_calls"] == 0
    guest.socket.need_wakeup(fill=False, tx=True)
    guest.pair.step()
    calls = guest.counted()["worker"]["system_calls"]
    assert calls > 0
    guest.send_all()
    assert guest.counted()["worker"]["system_calls"] == calls


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("length", [60, 1514])
def test_only_frames_from_the_guests_address_are_sent(machine: Make, mode: Mode, length: int) -> None:
    mine, other = bytes.fromhex("02000000000a"), bytes.fromhex("02000000000b")
    guest = machine(mode, most_pieces=17, copy_headers=True, source=mine)
    good = frame(length)[:6] + mine + frame(length)[12:]
    spoofed = frame(length)[:6] + other + frame(length)[12:]
    for number, data in enumerate((good, spoofed, good)):
        guest.offer_frame(number, data)
    guest.run()
    sent = guest.socket.take_frames()
    assert [one.data for one in sent] == [good, good]
    counted = guest.counted()["tx"]
    assert (counted["frames"], counted["drops"]) == (2, {"source_address": 1})
    guest.socket.complete([address for one in sent for address in one.addresses])
    guest.run()
    assert sorted(head for head, _ in guest.tx.used()) == [0, 1, 2]
