"""The compiled packed ring against its oracle: whatever a driver writes, both do the same."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guestwire.testing.raw_ring import INDIRECT, NEXT, WRITE
from guestwire.virtio.packed_model import Position
from guestwire.virtio.ring_errors import RingError
from model.packed import AVAIL, DESCRIPTORS, DEVICE_EVENT, USED, Both, Shape, both, flags_at
from model.rings import BUFFERS, INDIRECT_AREA, KIB
from model.strategies import addresses, lengths, mostly, u16

SIZES = [1, 2, 3, 5, 8, 8, 13, 16, 64]
DISABLE, DESC = 1, 2


@st.composite
def shapes(draw: st.DrawFn) -> Shape:
    size = draw(st.sampled_from(SIZES))
    return Shape(
        size,
        receive=draw(st.booleans()),
        event_idx=draw(st.booleans()),
        indirect=draw(st.sampled_from([True, True, False])),
        start=Position(draw(st.sampled_from([0, size - 1]) | st.integers(0, size - 1)), draw(st.booleans())),
        read_again=draw(st.booleans()),
    )


buffers = st.lists(st.integers(1, 2 * KIB), min_size=1, max_size=4)


def step(machine: Both, draw: st.DrawFn, *, hostile: bool = False) -> None:
    """Let an obedient driver, or the devices, do something.

    A hostile one takes nothing back, and may write to used descriptors that it cannot see yet: they are
    published at once.
    """
    shape = machine.shape
    match draw(st.integers(0, 9)):
        case 0 | 1 | 2:
            machine.offer(draw(buffers), table=shape.indirect and draw(st.booleans()))
        case 3:
            if not hostile:
                machine.take()
        case 4:
            position = Position(draw(st.integers(0, shape.size)) & 0x7FFF, draw(st.booleans()))
            machine.suppress(draw(st.integers(0, 3)), position)
        case 5 | 6:
            machine.pop(draw(st.integers(1, 64)))
        case 7:
            machine.push(draw(st.integers(0, 63)), draw(st.integers(0, 1000)))
            if hostile:
                machine.publish()
        case 8:
            machine.publish()
        case _:
            if draw(st.booleans()):
                machine.enable_notifications()
            else:
                machine.disable_notifications()


@given(shapes(), st.data())
@settings(max_examples=100, deadline=None)
def test_a_driver_that_obeys(shape: Shape, data: st.DataObject) -> None:
    with both(shape) as machine:
        for _ in range(data.draw(st.integers(4, 60))):
            step(machine, data.draw)
            assert machine.ring.error is None
        machine.publish()
        machine.check()


@given(shapes(), st.data())
@settings(max_examples=100, deadline=None)
def test_a_hostile_driver(shape: Shape, data: st.DataObject) -> None:
    draw = data.draw
    odd = st.sampled_from([WRITE, NEXT, INDIRECT, INDIRECT | NEXT, AVAIL, USED, AVAIL | USED]) | u16
    with both(shape) as machine:
        for _ in range(draw(st.integers(1, 20))):
            if draw(st.booleans()):
                step(machine, draw, hostile=True)
                continue
            position = machine.available
            count = draw(st.integers(1, 5))
            right = WRITE if shape.receive else 0
            for i in range(count):
                if draw(st.integers(0, 4)) == 0 and shape.indirect:
                    entry = (
                        draw(addresses()),
                        draw(lengths),
                        draw(u16),
                        right ^ draw(mostly(st.just(0), odd)),
                    )
                    at = INDIRECT_AREA + 16 * draw(st.integers(0, 3))
                    machine.write(at, entry[0].to_bytes(8, "little") + entry[1].to_bytes(4, "little"))
                    machine.write(at + 12, entry[2].to_bytes(2, "little") + entry[3].to_bytes(2, "little"))
                    describe = (INDIRECT_AREA, draw(st.sampled_from([16, 32, 64, 0, 24])))
                    flags = flags_at(position, INDIRECT) ^ draw(mostly(st.just(0), odd))
                else:
                    describe = (draw(addresses()), draw(lengths))
                    more = NEXT if i + 1 < count or draw(st.integers(0, 9)) == 9 else 0
                    flags = flags_at(position, right | more) ^ draw(mostly(st.just(0), odd))
                identity = draw(mostly(st.integers(0, shape.size - 1), st.integers(0, 70) | u16))
                machine.describe(position.index, *describe, identity, flags)
                position = position.after(shape.size)
            machine.available = position
            machine.pop()
        machine.publish()
        machine.check()


# What random scripts may miss.


@pytest.mark.parametrize("size", [1, 3, 7, 8])
@pytest.mark.parametrize("wrap", [True, False])
def test_many_times_round_the_ring_in_any_order(size: int, wrap: bool) -> None:
    with both(Shape(size, receive=True, start=Position(size - 1, wrap), read_again=True)) as machine:
        for turn in range(50 * size):
            while machine.offer([100 + turn, 28][: 1 + turn % 2]):
                pass
            machine.pop()
            for i in range(1 + turn % 3):
                machine.push(turn * 7 + i, 1000)
            machine.publish()
            machine.take()
        assert machine.ring.error is None


def test_used_descriptors_appear_at_once() -> None:
    with both(Shape(8)) as machine:
        for _ in range(3):
            machine.offer([10])
        machine.pop()
        for _ in range(3):
            machine.push()
        assert machine.take() == [], "the first is written last"
        machine.publish()
        assert machine.take() == [(0, 0), (1, 0), (2, 0)]


@pytest.mark.parametrize("event", range(-1, 5))
def test_an_event_in_a_list_that_is_skipped(event: int) -> None:
    """Lists of two descriptors over the ring's end: from 6 to 2."""
    start = Position(6)
    with both(Shape(8, start=start)) as machine:
        machine.suppress(DESC, Position(5) if event < 0 else start.after(8, event) if event else start)
        for _ in range(2):
            machine.offer([10, 20])
        machine.pop()
        machine.push(1)
        machine.push()
        assert machine.publish() is (0 <= event < 4)
        assert not machine.publish()


def test_what_the_driver_is_asked_for() -> None:
    with both(Shape(4, start=Position(3, False))) as machine:
        view = machine.memories[0]
        assert view[DEVICE_EVENT : DEVICE_EVENT + 4] == bytes([0, 0, DISABLE, 0])
        assert not machine.enable_notifications()
        assert view[DEVICE_EVENT : DEVICE_EVENT + 4] == bytes([3, 0, DESC, 0])
        machine.offer([1])
        assert machine.enable_notifications(), "a buffer came before the driver could know"
        machine.pop()
        assert not machine.enable_notifications()
        assert view[DEVICE_EVENT : DEVICE_EVENT + 4] == bytes([0, 0x80, DESC, 0])


def break_ring(machine: Both, *descriptors: tuple[int, int, int, int]) -> int:
    """Make (address, length, id, flags) available in one list; return the error that both name."""
    position = machine.available
    for address, length, buffer_id, flags in descriptors:
        machine.describe(position.index, address, length, buffer_id, flags_at(position, flags))
        position = position.after(machine.shape.size)
    return machine.pop()[1]


@pytest.mark.parametrize(
    ("error", "descriptors"),
    [
        (RingError.HEAD_OUT_OF_RANGE, [(BUFFERS, 1, 8, 0)]),
        (RingError.HEAD_IN_FLIGHT, [(BUFFERS, 1, 0, 0)]),
        (RingError.DESCRIPTOR_IN_FLIGHT, [(BUFFERS, 1, 2, NEXT)] * 8),
        (RingError.DIRECTION, [(BUFFERS, 1, 1, NEXT), (BUFFERS, 1, 1, WRITE)]),
        (RingError.ZERO_LENGTH, [(BUFFERS, 0, 1, 0)]),
        (RingError.ADDRESS_OUTSIDE_MEMORY, [(BUFFERS - 1, 2, 1, 0)]),
        (RingError.INDIRECT_WITH_NEXT, [(BUFFERS, 1, 1, NEXT), (INDIRECT_AREA, 16, 1, INDIRECT)]),
        (RingError.INDIRECT_WITH_NEXT, [(INDIRECT_AREA, 16, 1, INDIRECT | NEXT)]),
        (RingError.INDIRECT_LENGTH, [(INDIRECT_AREA, 24, 1, INDIRECT)]),
        (RingError.INDIRECT_NESTED, [(DESCRIPTORS + 16 * 7, 16, 1, INDIRECT)]),
        (RingError.ADDRESS_OUTSIDE_MEMORY, [(1 << 50, 16, 1, INDIRECT)]),
    ],
)
def test_the_first_broken_rule_stops_the_ring(
    error: RingError, descriptors: list[tuple[int, int, int, int]]
) -> None:
    with both(Shape(8)) as machine:
        machine.describe(7, BUFFERS, 1, 0, INDIRECT)
        machine.offer([10])
        machine.pop()
        assert break_ring(machine, *descriptors) == error
        assert machine.pop() == ([], error)
        machine.push()
        machine.publish()
        assert machine.take() == [(0, 0)], "what was taken before comes back"


@pytest.mark.parametrize("receive", [False, True])
def test_direction_in_an_indirect_table(receive: bool) -> None:
    """A transmit ring's device reads: DPDK leaves WRITE set there."""
    with both(Shape(8, receive=receive)) as machine:
        machine.write(INDIRECT_AREA, struct.pack("<QIHH", BUFFERS, 10, 0, 0 if receive else WRITE))
        expected = RingError.DIRECTION if receive else 0
        assert break_ring(machine, (INDIRECT_AREA, 16, 0, INDIRECT)) == expected


def test_a_list_as_long_as_the_ring_and_one_without_end() -> None:
    with both(Shape(4)) as machine:
        assert machine.offer([1, 2, 3, 4])
        assert [len(segments) for _, segments in machine.pop()[0]] == [4]
        machine.push()
        machine.publish()
        machine.take()
        assert break_ring(machine, *[(BUFFERS, 1, 0, NEXT)] * 4) == RingError.CHAIN_TOO_LONG


def test_a_full_ring_is_not_read_a_second_time() -> None:
    """The wrap counter turns while all is in flight: what is available then is not new."""
    with both(Shape(3)) as machine:
        for _ in range(3):
            machine.offer([1])
        machine.pop()
        assert machine.pop() == ([], 0)
        assert break_ring(machine, (BUFFERS, 1, 0, 0)) == RingError.DESCRIPTOR_IN_FLIGHT


@pytest.mark.parametrize(
    ("base", "position"),
    [
        (0x8000_8000, Position(0)),
        (0x0000_8000, Position(0)),  # DPDK's virtio-user
        (0x8003_0002, Position(3)),  # taken by another and not returned: made available once more
        (0x0002_0002, Position(2, False)),
    ],
)
def test_where_a_ring_begins(base: int, position: Position) -> None:
    with both(Shape(5)) as machine:
        ring = machine.ring
        places = [ring.window.translate_guest(at, 4) for at in (DESCRIPTORS, 0x2004, DEVICE_EVENT)]
        half = position.index | position.wrap << 15
        assert type(ring)(ring.window, 5, *places, base=base, receive=False).base == half << 16 | half


@pytest.mark.parametrize("used", [False, True])
def test_a_base_of_nothing(used: bool) -> None:
    """User-Mode Linux says 0 of a new ring; of one that was once round, it is the truth."""
    with both(Shape(5)) as machine:
        ring = machine.ring
        if used:
            machine.describe(3, 0, 0, 0, AVAIL | USED)
        else:
            machine.write(DESCRIPTORS, bytes(16 * 5))
        places = [ring.window.translate_guest(at, 4) for at in (DESCRIPTORS, 0x2004, DEVICE_EVENT)]
        made = type(ring)(ring.window, 5, *places, base=0, receive=False)
        assert made.base == (0 if used else 0x8000_8000)
        with pytest.raises(ValueError, match="descriptor 5 of 5"):
            type(ring)(ring.window, 5, *places, base=5 << 16, receive=False)
        begun = type(ring)(ring.window, 5, *places, base=0x8000, receive=False)
        assert begun.base == 0x8000_8000
        resumed = type(ring)(ring.window, 5, *places, base=0x8001_8003, receive=False)
        assert resumed.base == 0x8001_8001
