"""The oracle against rings made by hand from the specification."""

from __future__ import annotations

import mmap

import pytest

from guestwire.testing.raw_ring import INDIRECT, NEXT, WRITE, RawRing, pack_descriptor
from guestwire.virtio.features import Feature
from guestwire.virtio.model import Chain, GuestMemory, MemoryRegion, Segment, SplitRing
from guestwire.virtio.ring_errors import RingError, RingStoppedError
from model import rings

BOTH = Feature.VIRTIO_F_INDIRECT_DESC | Feature.VIRTIO_F_EVENT_IDX
GUARD = 0x1000
BUFFER = 0x10_0000  # guest address of the second region
BUFFER_OFFSET = GUARD + 0x4000


class Bench:
    """A ring of eight, a driver that writes anything, and the model on the device's side."""

    def __init__(
        self, *, size: int = 8, receive: bool = False, features: Feature = BOTH, start: int = 0
    ) -> None:
        regions = [MemoryRegion(0, 0x4000, GUARD), MemoryRegion(BUFFER, 0x2000, BUFFER_OFFSET)]
        self.memory = GuestMemory(bytearray(0x8000), regions)
        self.driver: RawRing = rings.ring_in(self.memory.bytes[GUARD:], size)
        self.driver.available_index = start
        self.device = SplitRing(
            self.memory,
            size,
            GUARD + rings.DESCRIPTOR_TABLE,
            GUARD + rings.AVAILABLE_RING,
            GUARD + rings.USED_RING,
            writable=receive,
            features=features,
            next_available=start,
            next_used=start,
        )

    def write(self, guest_address: int, data: bytes) -> None:
        offset = self.memory.offset(guest_address, len(data))
        assert offset is not None
        self.memory.bytes[offset : offset + len(data)] = data

    def pop(self) -> Chain:
        chain = self.device.pop()
        assert chain is not None
        return chain

    def refused(self) -> RingError:
        """Offer descriptor 0 and return why the device refuses it, and goes on refusing."""
        self.driver.offer(0)
        return self.stopped()

    def stopped(self) -> RingError:
        before = self.device.next_available
        with pytest.raises(RingStoppedError) as caught:
            self.device.pop()
        assert caught.value.error.name in str(caught.value)
        assert caught.value.remedy
        with pytest.raises(RingStoppedError):
            self.device.pop()
        assert self.device.next_available == before
        return caught.value.error


def test_an_empty_ring_gives_nothing() -> None:
    assert Bench().device.pop() is None


def test_one_buffer_goes_there_and_back() -> None:
    bench = Bench(receive=True)
    bench.driver.describe(3, BUFFER + 5, 100, WRITE)
    bench.driver.offer(3)
    assert bench.pop() == Chain(3, (Segment(BUFFER_OFFSET + 5, 100),))
    assert bench.device.pop() is None
    bench.device.push(3, 42)
    assert bench.driver.used_index == 0, "not visible before publish"
    bench.device.publish()
    assert bench.driver.used_index == 1
    assert bench.driver.used_element(0) == (3, 42)


def test_a_direct_chain_is_followed_in_its_own_order() -> None:
    bench = Bench()
    bench.driver.describe(5, BUFFER, 12, NEXT, 1)
    bench.driver.describe(1, BUFFER + 100, 20, NEXT, 7)
    bench.driver.describe(7, BUFFER + 50, 30)
    bench.driver.offer(5)
    segments = [(s.offset - BUFFER_OFFSET, s.length) for s in bench.pop().segments]
    assert segments == [(0, 12), (100, 20), (50, 30)]


def test_next_is_ignored_without_its_flag() -> None:
    bench = Bench()
    bench.driver.describe(0, BUFFER, 12, 0, 0xFFFF)
    bench.driver.offer(0)
    assert len(bench.pop().segments) == 1


def test_an_indirect_table_may_follow_direct_descriptors_and_its_write_flag_is_ignored() -> None:
    bench = Bench()
    table = pack_descriptor(BUFFER + 200, 7, NEXT, 2) + bytes(16) + pack_descriptor(BUFFER, 9)
    bench.write(BUFFER + 0x1000, table)
    bench.driver.describe(2, BUFFER + 64, 12, NEXT, 4)
    bench.driver.describe(4, BUFFER + 0x1000, len(table), INDIRECT | WRITE)
    bench.driver.offer(2)
    chain = bench.pop()
    assert chain.head == 2
    assert [s.length for s in chain.segments] == [12, 7, 9]
    assert chain.length == 28


def test_a_chain_as_long_as_the_queue_size_is_fine() -> None:
    bench = Bench()
    for i in range(8):
        bench.driver.describe(i, BUFFER, 1, NEXT if i < 7 else 0, i + 1)
    bench.driver.offer(0)
    assert len(bench.pop().segments) == 8


def test_indices_wrap_at_65536() -> None:
    bench = Bench(start=0xFFFE)
    for i in range(4):
        bench.driver.describe(i, BUFFER, i + 1)
        bench.driver.offer(i)
    assert bench.driver.available_index == 2
    assert [bench.pop().head for _ in range(4)] == [0, 1, 2, 3]
    for head in (2, 0, 3, 1):
        bench.device.push(head, 0)
    bench.device.publish()
    assert bench.driver.used_index == 2
    assert [bench.driver.used_element(0xFFFE + i)[0] for i in range(4)] == [2, 0, 3, 1]


def test_a_device_cannot_push_what_it_does_not_have() -> None:
    with pytest.raises(KeyError):
        Bench().device.push(0, 0)


def test_a_device_cannot_have_written_more_than_there_is() -> None:
    bench = Bench(receive=True)
    bench.driver.describe(0, BUFFER, 100, WRITE)
    bench.driver.offer(0)
    bench.pop()
    with pytest.raises(ValueError, match="101 bytes"):
        bench.device.push(0, 101)


@pytest.mark.parametrize("size", [0, 3, 65536, -1])
def test_the_queue_size_is_a_power_of_two_up_to_32768(size: int) -> None:
    with pytest.raises(ValueError, match="power of two"):
        SplitRing(GuestMemory(bytearray(64), []), size, 0, 0, 0, writable=True, features=BOTH)


# What a driver must not do, one rule each.


def test_available_index_jumped_by_more_than_the_queue_size() -> None:
    bench = Bench()
    bench.driver.available_index = 9
    assert bench.stopped() is RingError.AVAILABLE_INDEX


def test_available_index_decremented() -> None:
    bench = Bench(start=5)
    bench.driver.available_index = 4
    assert bench.stopped() is RingError.AVAILABLE_INDEX


def test_head_out_of_range() -> None:
    bench = Bench()
    bench.driver.offer(8)
    assert bench.stopped() is RingError.HEAD_OUT_OF_RANGE


def test_head_offered_again_while_the_device_has_it() -> None:
    bench = Bench()
    bench.driver.describe(0, BUFFER, 1)
    bench.driver.offer(0)
    bench.pop()
    assert bench.refused() is RingError.HEAD_IN_FLIGHT


def test_head_offered_again_after_it_was_used() -> None:
    bench = Bench()
    bench.driver.describe(0, BUFFER, 1)
    for _ in range(20):
        bench.driver.offer(0)
        bench.device.push(bench.pop().head, 0)


@pytest.mark.parametrize("index", [8, 0xFFFF])
def test_next_out_of_range(index: int) -> None:
    bench = Bench()
    bench.driver.describe(0, BUFFER, 1, NEXT, index)
    assert bench.refused() is RingError.NEXT_OUT_OF_RANGE


def test_next_out_of_the_indirect_table() -> None:
    bench = Bench()
    bench.write(BUFFER, pack_descriptor(BUFFER, 1, NEXT, 2) * 2)
    bench.driver.describe(0, BUFFER, 32, INDIRECT)
    assert bench.refused() is RingError.NEXT_OUT_OF_RANGE


def test_a_loop() -> None:
    bench = Bench()
    bench.driver.describe(0, BUFFER, 1, NEXT, 1)
    bench.driver.describe(1, BUFFER, 1, NEXT, 0)
    assert bench.refused() is RingError.CHAIN_TOO_LONG


def test_a_loop_in_an_indirect_table() -> None:
    bench = Bench()
    bench.write(BUFFER, pack_descriptor(BUFFER, 1, NEXT, 0))
    bench.driver.describe(0, BUFFER, 16, INDIRECT)
    assert bench.refused() is RingError.CHAIN_TOO_LONG


def test_a_chain_longer_than_the_queue_size_in_an_indirect_table() -> None:
    bench = Bench()
    bench.write(BUFFER, b"".join(pack_descriptor(BUFFER, 1, NEXT, i + 1) for i in range(20)))
    bench.driver.describe(0, BUFFER, 16 * 20, INDIRECT)
    assert bench.refused() is RingError.CHAIN_TOO_LONG


def test_a_chain_longer_than_the_device_allows() -> None:
    bench = Bench()
    bench.device.longest_chain = 2
    for i in range(3):
        bench.driver.describe(i, BUFFER, 1, NEXT if i < 2 else 0, i + 1)
    assert bench.refused() is RingError.CHAIN_TOO_LONG


@pytest.mark.parametrize(("last", "fits"), [(1 << 30, True), ((1 << 30) + 1, False)])
def test_no_chain_has_more_than_4_gib(last: int, fits: bool) -> None:
    with mmap.mmap(-1, 0x10_0000) as anonymous:
        # The model never touches buffers, so the region may be larger than what holds it.
        memory = GuestMemory(anonymous, [MemoryRegion(0, 0x4000, 0), MemoryRegion(BUFFER, 1 << 31, 0)])
        driver = rings.ring_in(memory.bytes, 8)
        device = SplitRing(
            memory,
            8,
            rings.DESCRIPTOR_TABLE,
            rings.AVAILABLE_RING,
            rings.USED_RING,
            writable=False,
            features=BOTH,
        )
        for i in range(4):
            driver.describe(i, BUFFER, last if i == 3 else 1 << 30, NEXT if i < 3 else 0, i + 1)
        driver.offer(0)
        if fits:
            chain = device.pop()
            assert chain is not None
            assert chain.length == 1 << 32
        else:
            with pytest.raises(RingStoppedError, match="CHAIN_TOO_LARGE"):
                device.pop()
        del driver, device
        memory.bytes.release()


@pytest.mark.parametrize(
    ("address", "length"),
    [
        (0x4000, 1),
        (0x3FFF, 2),
        (BUFFER - 1, 2),
        (BUFFER + 0x1FFF, 2),
        (BUFFER, 0x2001),
        ((1 << 64) - 1, 1),
        ((1 << 64) - 1, 0xFFFF_FFFF),
        (BUFFER, 0xFFFF_FFFF),
    ],
)
def test_address_outside_memory(address: int, length: int) -> None:
    bench = Bench()
    bench.driver.describe(0, address, length)
    assert bench.refused() is RingError.ADDRESS_OUTSIDE_MEMORY


@pytest.mark.parametrize(("address", "length"), [(0x4000, 16), (0x3FF8, 16), (0, 0xFFFF_FFF0)])
def test_indirect_table_outside_memory(address: int, length: int) -> None:
    bench = Bench()
    bench.driver.describe(0, address, length, INDIRECT)
    assert bench.refused() is RingError.ADDRESS_OUTSIDE_MEMORY


@pytest.mark.parametrize(("offsets", "joined"), [((0, 0x1000), True), ((0x1000, 0), False)])
def test_neighbours_in_guest_and_buffer_are_one_region(offsets: tuple[int, int], joined: bool) -> None:
    regions = [MemoryRegion(0x8000 + 0x1000 * i, 0x1000, offsets[i]) for i in range(2)]
    memory = GuestMemory(bytearray(0x2000), reversed(regions))
    assert memory.offset(0x8FFF, 2) == (0xFFF if joined else None)
    assert memory.offset(0x9000, 0x1000) == offsets[1]


def test_zero_length() -> None:
    bench = Bench()
    bench.driver.describe(0, BUFFER, 0)
    assert bench.refused() is RingError.ZERO_LENGTH


@pytest.mark.parametrize(("receive", "flags"), [(True, 0), (False, WRITE)])
@pytest.mark.parametrize("second", [False, True])
def test_wrong_direction(receive: bool, flags: int, second: bool) -> None:
    bench = Bench(receive=receive)
    bench.driver.describe(0, BUFFER, 10, flags)
    if second:
        bench.driver.describe(1, BUFFER, 10, flags)
        bench.driver.describe(0, BUFFER, 10, NEXT | (WRITE if receive else 0), 1)
    assert bench.refused() is RingError.DIRECTION


def test_direction_in_an_indirect_table() -> None:
    """A transmit ring's device reads: DPDK leaves the flag set there."""
    for receive, wrong in ((True, 0), (False, WRITE)):
        bench = Bench(receive=receive)
        bench.write(BUFFER + 0x1000, pack_descriptor(BUFFER, 7, wrong))
        bench.driver.describe(0, BUFFER + 0x1000, 16, INDIRECT)
        if receive:
            assert bench.refused() is RingError.DIRECTION
        else:
            bench.driver.offer(0)
            assert [segment.length for segment in bench.pop().segments] == [7]


def test_indirect_not_negotiated() -> None:
    bench = Bench(features=Feature.VIRTIO_F_EVENT_IDX)
    bench.write(BUFFER, pack_descriptor(BUFFER, 1))
    bench.driver.describe(0, BUFFER, 16, INDIRECT)
    assert bench.refused() is RingError.INDIRECT_NOT_NEGOTIATED


def test_indirect_nested() -> None:
    bench = Bench()
    bench.write(BUFFER, pack_descriptor(BUFFER, 16, INDIRECT))
    bench.driver.describe(0, BUFFER, 16, INDIRECT)
    assert bench.refused() is RingError.INDIRECT_NESTED


def test_indirect_with_next() -> None:
    bench = Bench()
    bench.driver.describe(0, BUFFER, 16, INDIRECT | NEXT, 1)
    assert bench.refused() is RingError.INDIRECT_WITH_NEXT


@pytest.mark.parametrize("length", [0, 1, 15, 17, 0xFFFF_FFFF])
def test_indirect_length(length: int) -> None:
    bench = Bench()
    bench.driver.describe(0, BUFFER, length, INDIRECT)
    assert bench.refused() is RingError.INDIRECT_LENGTH


def test_every_error_explains_itself_and_has_its_own_number() -> None:
    assert [int(error) for error in RingError] == list(range(1, len(RingError) + 1))
    for error in RingError:
        assert error.summary in str(RingStoppedError(error, "x"))
        assert error.rule in str(error.__doc__)
        assert error.section.startswith("2.8" if error is RingError.DESCRIPTOR_IN_FLIGHT else "2.7")
        assert error.packed_section.startswith("2.8") or error in (
            RingError.AVAILABLE_INDEX,
            RingError.NEXT_OUT_OF_RANGE,
        )


# Notifications.


def test_driver_is_notified_unless_it_said_no() -> None:
    bench = Bench(features=Feature(0))
    assert not bench.device.publish(), "nothing was pushed"
    for flags, wanted in ((0, True), (1, False)):
        bench.driver.available_flags = flags
        bench.driver.describe(0, BUFFER, 1)
        bench.driver.offer(0)
        bench.device.push(bench.pop().head, 0)
        assert bench.device.publish() is wanted


@pytest.mark.parametrize("start", [0, 0xFFFE])
@pytest.mark.parametrize(
    ("used_event", "wanted"),
    [(-1, False), (0, True), (1, True), (2, True), (3, False), (100, False)],
)
def test_used_event_asks_for_one_entry(start: int, used_event: int, wanted: bool) -> None:
    bench = Bench(start=start)
    bench.driver.available_flags = 1  # "the device MUST ignore the lower bit of flags"
    bench.driver.used_event = start + used_event
    for head in range(3):
        bench.driver.describe(head, BUFFER, 1)
        bench.driver.offer(head)
        bench.device.push(bench.pop().head, 0)
    assert bench.device.publish() is wanted
    assert not bench.device.publish()


def test_flags_ask_the_driver_for_notifications() -> None:
    bench = Bench(features=Feature(0))
    bench.device.disable_notifications()
    assert bench.driver.used_flags == 1
    assert not bench.device.enable_notifications()
    assert bench.driver.used_flags == 0
    bench.driver.offer(0)
    assert bench.device.enable_notifications(), "a buffer came before the driver could know"


def test_avail_event_asks_the_driver_for_notifications() -> None:
    bench = Bench(start=0xFFFF)
    bench.device.disable_notifications()
    assert bench.driver.used_flags == 0, "the device MUST set flags to 0"
    assert not bench.device.enable_notifications()
    assert bench.driver.avail_event == 0xFFFF
    bench.driver.describe(0, BUFFER, 1)
    bench.driver.offer(0)
    assert bench.device.enable_notifications()
    bench.pop()
    assert not bench.device.enable_notifications()
    assert bench.driver.avail_event == 0
