"""What is written to memory where nobody may write shows."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from guestwire.testing import BufferLayout, DeviceError, FrameStream, PageKind, QueuePair, SharedMemory
from unit.testing.machine import HEADER, Machine, machine

MIB = 1 << 20


def test_memory_that_belongs_to_nobody() -> None:
    with SharedMemory(MIB, 3 * MIB, guarded=True) as memory:
        memory.check_guards()
        one, other = memory.allocate(100, 16, region=1), memory.allocate(10, 4096, region=1)
        assert not any(one.bytes)
        one.bytes[:], other.bytes[:] = b"x" * 100, b"y" * 10
        memory.check_guards()
        region = memory.regions[1]
        first = one.guest_address - region.guest_address
        for at in (first + 100, first + 4095, 2 * MIB, region.size - 1):
            before = region.bytes[at]
            region.bytes[at] = before ^ 1
            with pytest.raises(
                DeviceError, match=f"guest address {region.guest_address + at:#x} was written"
            ):
                memory.check_guards()
            region.bytes[at] = before
        memory.regions[0].bytes[0] = 0
        with pytest.raises(DeviceError, match="guest address 0x0 was written"):
            memory.check_guards()


def test_memory_that_is_not_guarded() -> None:
    with SharedMemory(MIB) as memory:
        memory.regions[0].bytes[5] = 1
        memory.check_guards()


def test_scattered_pages_are_ordinary_memory() -> None:
    with SharedMemory(4096, MIB, pages=PageKind.SCATTERED, guarded=True) as memory:
        memory.check_guards()
        assert memory.allocate(8192, 4096).bytes[8191] == 0


def test_what_fits_in_one_hugepage_lies_in_one() -> None:
    with SharedMemory(8 * MIB, pages=PageKind.TRANSPARENT) as memory:
        assert memory.allocate(MIB, 4096).guest_address == 4096
        assert memory.allocate(3 * MIB // 2, 4096).guest_address == 2 * MIB
        assert memory.allocate(5 * MIB // 2, 4096).guest_address == 7 * MIB // 2


LAYOUTS = [BufferLayout(200), BufferLayout(200, header_apart=True), BufferLayout(200, piece_length=48)]


@contextmanager
def guarded(layout: BufferLayout) -> Iterator[Machine]:
    with machine(receive_layout=layout) as made:
        made.pair = QueuePair(*made.drivers, verify_unwritten=True)
        made.pair.receive_ring.post()
        yield made


def give_back(m: Machine, stream: FrameStream, *, more: int = 0) -> None:
    """Be the device: put the next frame into the next buffer, and write more than it says."""
    (frame,) = stream.take(1)
    chain = m.receive.pop()
    assert chain is not None
    m.write(chain, bytes(HEADER - 2) + b"\x01\x00" + frame + b"x" * more)
    m.receive.push(chain.head, HEADER + len(frame))
    m.receive.publish()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_frames_of_all_lengths_go_unremarked(layout: BufferLayout) -> None:
    stream = FrameStream((60, 188))
    with guarded(layout) as m:
        for _ in range(50):
            give_back(m, stream)
            m.pair.receive_stream(stream, 1)
            m.pair.receive_ring.check_guards()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("more", [1, 40, 88])
def test_a_buffer_written_behind_its_frame(layout: BufferLayout, more: int) -> None:
    stream = FrameStream(100)
    with guarded(layout) as m:
        give_back(m, stream)
        give_back(m, stream, more=more)
        m.pair.receive_stream(stream, 1)
        with pytest.raises(DeviceError, match="written behind the length that the used entry says"):
            m.pair.receive_stream(stream, 1)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_buffer_written_and_not_given_back(layout: BufferLayout) -> None:
    with guarded(layout) as m:
        ring = m.pair.receive_ring
        ring.check_guards()
        pieces = layout.pieces(HEADER)
        m.guest.bytes[ring.buffer_address(2) - pieces[0][0] + sum(pieces[-1]) - 1] = 0
        with pytest.raises(
            DeviceError, match=r"buffer 2 at guest address .* was written, and not given back"
        ):
            ring.check_guards()
