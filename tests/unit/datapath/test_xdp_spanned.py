"""Frames that span several posted buffers: long ones, and merged ones."""

from __future__ import annotations

import contextlib
import random
import struct
from collections.abc import Callable, Iterator

import pytest

from guestwire.datapath.segmentation import segment
from guestwire.virtio.features import Feature
from unit.datapath.test_xdp_segments import MSS, TSO, tcp
from unit.datapath.xdp_machine import Mode, XdpMachine, receive_address

Make = Callable[..., XdpMachine]

HEADER = 12
LINUX = 1536  # bytes of the smallest mergeable buffer
MERGES = Feature.VIRTIO_NET_F_GUEST_CSUM | Feature.VIRTIO_NET_F_GUEST_TSO4 | Feature.VIRTIO_NET_F_GUEST_TSO6


@pytest.fixture
def machine() -> Iterator[Make]:
    with contextlib.ExitStack() as made:

        def make(mode: Mode = "direct", **options: object) -> XdpMachine:
            options = {"mergeable": True, "socket_ring": 256, "size": 256, **options}
            return made.enter_context(contextlib.closing(XdpMachine(mode, **options)))  # type: ignore[arg-type]

        yield make


def arrive(guest: XdpMachine, frame: bytes) -> None:
    """Let a frame arrive in as many buffers as the kernel needs for it."""
    room = guest.geometry.writable
    while frame:
        (address,) = guest.socket.take_fill(1)
        guest.socket.deliver(address, frame[:room], continued=len(frame) > room)
        frame = frame[room:]


def received(guest: XdpMachine, used: list[tuple[int, int]]) -> list[tuple[bytes, bytes]]:
    """Headers and frames in used buffers; all of a frame's buffers but the last are full."""
    frames = []
    while used:
        data = guest.read(receive_address(used[0][0]), used[0][1])
        count = int.from_bytes(data[10:12], "little")
        assert count >= 1
        for head, length in used[1:count]:
            data += guest.read(receive_address(head), length)
        assert all(length == LENGTHS[head] for head, length in used[: count - 1])
        frames.append((data[:HEADER], data[HEADER:]))
        used = used[count:]
    return frames


LENGTHS: dict[int, int] = {}


def offer(guest: XdpMachine, count: int, lengths: Callable[[int], int] = lambda _number: LINUX) -> None:
    LENGTHS.clear()
    for number in range(count):
        LENGTHS[number] = lengths(number)
        assert guest.offer_receive(number, LENGTHS[number]) == number
    guest.run()


@pytest.mark.parametrize("size", [LINUX, 1530, 2048, 4096])
@pytest.mark.parametrize("mode", ["direct", "bounce"])
def test_a_long_frame_lies_over_full_buffers(machine: Make, mode: Mode, size: int) -> None:
    guest = machine(mode, mtu=9000)
    offer(guest, 60, lambda _number: size)
    frames = [random.Random(length).randbytes(length) for length in (9018, 60, 1518, 1519, 3000, 9018, 5000)]
    for frame in frames:
        arrive(guest, frame)
    guest.run()
    assert [frame for _, frame in received(guest, guest.rx.used())] == frames
    counted = guest.counted()["rx"]
    assert (counted["frames"], counted["bytes"]) == (7, sum(map(len, frames)))
    assert counted["drops"] == {}
    if mode == "direct":
        assert counted["direct_frames"] == 2
        assert counted["copied_frames"] == {"several_buffers": 5}
        assert counted["copied_bytes"] == sum(len(frame) - 1518 for frame in frames if len(frame) > 1518)


def test_buffers_that_were_not_needed_are_used_for_later_frames(machine: Make) -> None:
    guest = machine("direct", mtu=9000)
    offer(guest, 24, lambda _number: 4096)
    frames = [random.Random(number).randbytes(9000) for number in range(8)]
    for frame in frames[:4]:
        arrive(guest, frame)
    guest.run()
    # Six buffers arrived for each, three are enough.
    assert [frame for _, frame in received(guest, guest.rx.used())] == frames[:4]
    assert guest.port.held == (12, 0, 0)
    for frame in frames[4:6]:
        arrive(guest, frame)
    guest.run()
    used = guest.rx.used()
    assert [frame for _, frame in received(guest, used)] == frames[:6]
    assert len({head for head, _ in used}) == len(used) == 18
    # Those are older than chains that came back: on detaching, all are given back.
    guest.detach()
    assert sorted(head for head, _ in guest.rx.used()) == list(range(24))
    assert guest.rx.device.in_flight == 0


def test_a_long_frame_waits_for_its_last_part(machine: Make) -> None:
    guest = machine("direct", mtu=9000)
    offer(guest, 8)
    first, second = guest.socket.take_fill(2)
    frame = random.Random(1).randbytes(2000)
    guest.socket.deliver(first, frame[:1518], continued=True)
    guest.run()
    assert guest.rx.used() == []
    guest.socket.deliver(second, frame[1518:])
    guest.run()
    assert [frame for _, frame in received(guest, guest.rx.used())] == [frame]


@pytest.mark.parametrize("again", [0, 1])
def test_a_part_that_is_not_ours_spoils_the_frame(machine: Make, again: int) -> None:
    guest = machine("direct", mtu=9000)
    offer(guest, 8)
    first, second = guest.socket.take_fill(2)
    guest.socket.describe(first, 1518, options=1)
    guest.socket.describe(first if again else 1 << 20, 100)
    guest.run()
    assert guest.rx.used() == [(0, 0)]
    guest.socket.deliver(second, bytes(60))
    guest.run()
    assert guest.rx.used() == [(0, 0), (1, 72)]
    assert guest.counted()["rx"]["drops"] == {"unexpected_place": 1}


def test_a_frame_longer_than_the_interfaces_longest_is_dropped(machine: Make) -> None:
    guest = machine("direct", mtu=9000)
    offer(guest, 8)
    arrive(guest, bytes(9023))
    guest.run()
    assert guest.rx.used() == [(head, 0) for head in range(6)]
    assert guest.counted()["rx"]["drops"] == {"too_long": 1}


# --- merged ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["direct", "bounce"])
@pytest.mark.parametrize("size", [LINUX, 2048, 4096])
def test_segments_of_a_burst_become_one_frame(machine: Make, mode: Mode, size: int) -> None:
    guest = machine(mode, merge=True, offloads=MERGES)
    offer(guest, 120, lambda _number: size)
    segments = segment(TSO, tcp(40 * MSS + 100))
    for one in segments:
        arrive(guest, one)
    guest.run()
    ((header, frame),) = received(guest, guest.rx.used())
    assert (header[0], header[1]) == (1, 1)
    assert segment(header[:10], frame) == segments
    counted = guest.counted()["rx"]
    assert (counted["frames"], counted["gso_frames"], counted["segments"]) == (1, 1, 41)
    assert counted["copied_frames"] == {"merged": 1}
    assert counted["drops"] == {}


@pytest.mark.parametrize("mode", ["direct", "bounce"])
def test_flows_that_mix_keep_their_order(machine: Make, mode: Mode) -> None:
    randomness = random.Random(3)
    guest = machine(mode, merge=True, offloads=MERGES)
    offer(guest, 200)
    runs = []
    for number in range(12):
        whole = bytearray(tcp(randomness.randrange(1, 8) * MSS))
        whole[35] = number  # another source port: the pseudo-header does not change
        runs.append(segment(TSO, bytes(whole)))
    for run in runs:
        for one in run:
            arrive(guest, one)
    guest.run()
    found = received(guest, guest.rx.used())
    assert len(found) == len(runs)
    for (header, frame), run in zip(found, runs, strict=True):
        assert (segment(header[:10], frame) if header[1] else [frame]) == run
    assert guest.counted()["rx"]["drops"] == {}


@pytest.mark.parametrize("offloads", [Feature(0), Feature.VIRTIO_NET_F_GUEST_CSUM])
def test_nothing_is_merged_for_a_guest_that_takes_no_large_frames(machine: Make, offloads: Feature) -> None:
    guest = machine("direct", merge=True, offloads=offloads)
    offer(guest, 20)
    segments = segment(TSO, tcp(5 * MSS))
    for one in segments:
        arrive(guest, one)
    guest.run()
    assert received(guest, guest.rx.used()) == [(bytes(10) + b"\1\0", one) for one in segments]


@pytest.mark.parametrize("mode", ["direct", "bounce"])
def test_few_buffers(machine: Make, mode: Mode) -> None:
    """What the guest has no room for is not merged, and nothing is lost or changed."""
    guest = machine(mode, merge=True, offloads=MERGES)
    segments = segment(TSO, tcp(10 * MSS))
    offer(guest, 4)
    for one in segments if mode == "bounce" else segments[:4]:
        arrive(guest, one)
    guest.run()
    taken = received(guest, guest.rx.used())
    sent = [
        part for header, frame in taken for part in (segment(header[:10], frame) if header[1] else [frame])
    ]
    assert sent == segments[: len(sent)]
    assert len(sent) >= 4
    assert guest.counted()["rx"]["drops"] == {}


def test_random_bursts(machine: Make) -> None:
    """Buffers of any size, bursts of any length: all that arrived is there, in order, each buffer once."""
    randomness = random.Random(11)
    for _ in range(40):
        guest = machine("direct", merge=True, offloads=MERGES)
        offer(guest, 150, lambda _number: randomness.choice([LINUX, 1600, 2048, 4096]))
        expected: list[bytes] = []
        for number in range(randomness.randrange(1, 8)):
            whole = bytearray(tcp(randomness.randrange(1, 12) * MSS - randomness.randrange(3)))
            whole[34] = number
            burst = segment(TSO, bytes(whole))
            expected += burst
            for one in burst:
                arrive(guest, one)
            if randomness.random() < 0.5:
                guest.run()
        guest.run()
        used = guest.rx.used()
        assert len({head for head, _ in used}) == len(used)
        found = received(guest, used)
        assert expected == [
            part
            for header, frame in found
            for part in (segment(header[:10], frame) if header[1] else [frame])
        ]
        guest.detach()
        back = [head for head, _ in guest.rx.used()]
        assert len(set(back)) == len(back)
        assert guest.rx.device.base == 150 - guest.rx.device.in_flight
        assert sorted(back) == list(range(guest.rx.device.base))


# --- hostile guests ----------------------------------------------------------------------------------


@pytest.mark.parametrize("shrunk", [13, 20, 500, 1517])
@pytest.mark.parametrize("length", [1600, 3000, 6000, 7500, 9000])
def test_chains_that_shrink_while_the_kernel_has_them(machine: Make, shrunk: int, length: int) -> None:
    """The guest loses the frame, and nobody anything else."""
    guest = machine("direct", mtu=9000)
    offer(guest, 16)
    for head in range(1, 8):
        at = guest.rx.at + 16 * head + 8
        guest.window.write(at, shrunk.to_bytes(4, "little"))
    arrive(guest, bytes(length))
    guest.run()
    used = guest.rx.used()
    assert len({head for head, _ in used}) == len(used)
    # A little less room can still be enough.
    if shrunk < 100:
        assert guest.counted()["rx"]["drops"] == {"no_buffers": 1}
    guest.detach()
    back = [head for head, _ in guest.rx.used()]
    assert len(set(back)) == len(back)


def test_a_ring_that_can_never_hold_the_frame_loses_it_and_goes_on(machine: Make) -> None:
    guest = machine("bounce", size=4, mtu=9000)
    offer(guest, 4)
    for frame in (bytes(9000), bytes(100), bytes(200)):
        arrive(guest, frame)
    guest.run()
    assert guest.rx.used() == [(0, 112), (1, 212)]
    assert guest.counted()["rx"]["drops"] == {"too_long": 1}


def test_an_unfinished_checksum_behind_a_header_in_a_buffer_of_its_own(machine: Make) -> None:
    guest = machine("direct", mergeable=False, finish_checksums=True)
    at = receive_address(0)
    head = guest.rx.offer((at, HEADER), (at + 2048, 1600))
    guest.run()
    (address,) = guest.socket.take_fill(1)
    frame = tcp(100)
    guest.write(at + HEADER, frame)
    guest.socket.deliver(address, frame)
    guest.run()
    (finished,) = segment(struct.pack("<BBHHHH", 1, 0, 0, 0, 34, 16), frame)
    assert guest.rx.used() == [(head, HEADER + len(frame))]
    assert guest.read(at + 2048, len(frame)) == finished
    # What lies behind the header is not part of the chain.
    assert guest.read(at + HEADER, len(frame)) == frame
    assert guest.counted()["rx"]["checksums"] == 1
