"""What is written to memory where nobody may write shows."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from guestwire.testing import BufferLayout, DeviceError, FrameStream, PageKind, QueuePair, SharedMemory
from guestwire.virtio.features import Feature
from unit.testing.machine import HEADER, Machine

MIB = 1 << 20


def test_memory_that_belongs_to_nobody() -> None:
    with SharedMemory(MIB, 3 * MIB, guarded=True) as memory:
        memory.check_guards()
        one, other = memory.allocate(100, 16, region=1), memory.allocate(10, 4096, region=1)
        assert not any(one.bytes)
        one.bytes[:] = other.bytes[:10] * 10
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


@pytest.fixture(
    params=[BufferLayout(200), BufferLayout(200, header_apart=True), BufferLayout(200, piece_length=48)]
)
def machine(request: pytest.FixtureRequest) -> Iterator[Machine]:
    with SharedMemory(MIB) as memory:
        made = Machine(memory, features=Feature.VIRTIO_F_VERSION_1, receive_layout=request.param)
        made.pair = QueuePair(*made.drivers, verify_unwritten=True)
        made.pair.receive_ring.post()
        try:
            yield made
        finally:
            made.close()


def give_back(machine: Machine, stream: FrameStream, *, written: int = 0) -> None:
    """Be the device: put the next frame into the next buffer, and `written` bytes more than one says."""
    (frame,) = stream.take(1)
    chain = machine.receive.pop()
    assert chain is not None
    header = bytes(HEADER - 2) + b"\x01\x00"
    data = header + frame + b"x" * written
    for segment in chain.segments:
        part, data = data[: segment.length], data[segment.length :]
        machine.guest.write(segment.address, part)
    machine.receive.push(chain.head, HEADER + len(frame))


def test_frames_of_all_lengths_leave_their_buffers_clean(machine: Machine) -> None:
    stream = FrameStream((60, 188))
    for _ in range(50):
        give_back(machine, stream)
        machine.pair.receive_stream(stream, 1)
        machine.pair.receive_ring.check_guards()


@pytest.mark.parametrize("written", [1, 40, 88])
def test_a_buffer_written_behind_its_frame(machine: Machine, written: int) -> None:
    stream = FrameStream(100)
    give_back(machine, stream)
    give_back(machine, stream, written=written)
    machine.pair.receive_stream(stream, 1)
    with pytest.raises(DeviceError, match="written behind the length that the used entry says"):
        machine.pair.receive_stream(stream, 1)


def test_a_buffer_written_while_nobody_looks(machine: Machine) -> None:
    ring = machine.pair.receive_ring
    ring.check_guards()
    offset, length = ring_piece(machine)
    machine.guest.bytes[ring.buffer_address(7) + offset + length - 1] = 0
    with pytest.raises(DeviceError, match="buffer 7 at guest address .* was written, and not given back"):
        ring.check_guards()
