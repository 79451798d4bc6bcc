"""The compiled ring against the oracle: whatever a driver writes, both do the same."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hypothesis import given, settings

from guestwire.datapath.split_ring import SplitRing
from guestwire.datapath.window import Window
from guestwire.testing.raw_ring import INDIRECT, NEXT, WRITE, RawRing, pack_descriptor
from guestwire.virtio.features import Feature
from guestwire.virtio.model import GuestMemory, MemoryRegion
from guestwire.virtio.model import SplitRing as Oracle
from guestwire.virtio.ring_errors import RingError, RingStoppedError
from model import rings
from model.rings import REGIONS, Guest, ModelDevice, Popped, Script, Shape
from model.strategies import scripts

LONGEST_CHAIN = 1024
"""Buffers that the compiled ring takes in one chain (BURST_SEGMENTS)."""


class CompiledDevice:
    """The compiled ring as the device of a script, on memory that it shares by a file."""

    def __init__(self, shape: Shape, window: Window, ring_region: memoryview) -> None:
        self.ring_region = ring_region
        rings.initialise(ring_region, shape)
        ring = window.translate_guest(0, 1)
        self.ring = SplitRing(
            window,
            shape.size,
            ring + rings.DESCRIPTOR_TABLE,
            ring + rings.AVAILABLE_RING,
            ring + rings.USED_RING,
            base=shape.start,
            receive=shape.receive,
            event_index=shape.event_idx,
            indirect=shape.indirect,
        )

    def pop(self, most: int) -> list[Popped]:
        popped: list[Popped] = []
        while len(popped) < most:
            # A burst has room for so many segments only; what it left is in the next.
            burst = self.ring.pop(most - len(popped))
            if not burst:
                break
            popped += burst
        return popped

    def error(self) -> int:
        return self.ring.error[0] if self.ring.error else 0

    def push(self, head: int, written: int) -> None:
        self.ring.push(head, written)

    def publish(self) -> bool:
        return self.ring.publish()

    def enable_notifications(self) -> bool:
        return self.ring.enable_notifications()

    def disable_notifications(self) -> None:
        self.ring.disable_notifications()


@contextmanager
def shared_memory(*sizes: int) -> Iterator[tuple[int, mmap.mmap]]:
    """A file in memory that holds regions of these sizes one after the other, and its mapping."""
    fd = os.memfd_create("guestwire-test")
    try:
        os.ftruncate(fd, sum(sizes))
        with mmap.mmap(fd, sum(sizes)) as mapping:
            yield fd, mapping
    finally:
        os.close(fd)


@contextmanager
def compiled(shape: Shape) -> Iterator[tuple[CompiledDevice, Window]]:
    """A compiled ring over the regions of every script."""
    sizes = [size for _, size in REGIONS]
    with shared_memory(*sizes) as (fd, mapping):
        window = Window(
            [
                (address, 0x7000_0000_0000 + address, size, fd, sum(sizes[:i]))
                for i, (address, size) in enumerate(REGIONS)
            ],
            bounce_frames=1,
        )
        view = memoryview(mapping)
        ring_region = view[: sizes[0]]
        device = CompiledDevice(shape, window, ring_region)
        try:
            yield device, window
        finally:
            window.close()
            del device.ring_region
            ring_region.release()
            view.release()


def perform_on_both(script: Script) -> None:
    with compiled(script.shape) as (device, window):
        offsets = [window.translate_guest(address, size) for address, size in REGIONS]
        oracle = ModelDevice(script.shape, offsets)
        oracle.disable_notifications()  # as the compiled ring begins
        ours = Guest(script.shape, device.ring_region, device)
        reference = Guest(script.shape, oracle.ring_region, oracle)
        for step in script.steps:
            assert ours.perform(step) == reference.perform(step)
            assert device.ring_region == oracle.ring_region
        assert device.ring.in_flight == len(oracle.ring.in_flight)
        assert device.ring.used_index == oracle.ring.next_used
        ours.release()


@given(scripts(hostile=False))
@settings(max_examples=200)
def test_a_driver_that_obeys(script: Script) -> None:
    perform_on_both(script)


@given(scripts(hostile=True))
@settings(max_examples=400)
def test_a_hostile_driver(script: Script) -> None:
    perform_on_both(script)


# Sizes that random scripts do not reach.


@contextmanager
def large_ring(
    size: int, regions: list[tuple[int, int]]
) -> Iterator[tuple[SplitRing, Oracle, RawRing, memoryview]]:
    """A compiled ring and the oracle on the same memory; the ring's parts in the first region."""
    sizes = [n for _, n in regions]
    with shared_memory(*sizes) as (fd, mapping):
        window = Window(
            [(address, address, n, fd, sum(sizes[:i])) for i, (address, n) in enumerate(regions)],
            bounce_frames=1,
        )
        parts = (0, 16 * size, 16 * size + 6 + 2 * size + 2)
        places = [window.translate_guest(part, 1) for part in parts]
        view = memoryview(mapping)
        driver = RawRing(
            size,
            view[parts[0] : parts[0] + 16 * size],
            view[parts[1] : parts[1] + 6 + 2 * size],
            view[parts[2] : parts[2] + 6 + 8 * size],
        )
        shift = places[0]
        memory = GuestMemory(
            mapping, [MemoryRegion(a, n, sum(sizes[:i])) for i, (a, n) in enumerate(regions)]
        )
        oracle = Oracle(
            memory,
            size,
            *(place - shift for place in places),
            writable=False,
            features=Feature.VIRTIO_F_INDIRECT_DESC,
            longest_chain=LONGEST_CHAIN,
        )
        ring = SplitRing(window, size, *places, receive=False)
        try:
            yield ring, oracle, driver, view
        finally:
            window.close()
            driver.release()
            memory.bytes.release()
            view.release()


@pytest.mark.parametrize("indirect", [False, True])
@pytest.mark.parametrize("count", [LONGEST_CHAIN, LONGEST_CHAIN + 1])
def test_the_longest_chain(count: int, indirect: bool) -> None:
    with large_ring(2048, [(0, 128 * 1024)]) as (ring, oracle, driver, view):
        if indirect:
            area = 96 * 1024
            table = b"".join(pack_descriptor(64, 1, NEXT, i + 1) for i in range(count - 1))
            view[area : area + 16 * count] = table + pack_descriptor(64, 1)
            driver.describe(1, area, 16 * count, INDIRECT)
        else:
            for i in range(1, count + 1):
                driver.describe(i, 64, 1, NEXT if i < count else 0, i + 1)
        # A short chain before it, of more than one buffer: the long one does not fit the same burst.
        driver.describe(0, 64, 1, NEXT, count + 1)
        driver.describe(count + 1, 64, 1)
        driver.offer(0)
        driver.offer(1)
        assert [head for head, _ in ring.pop()] == [0]
        popped = ring.pop()
        assert oracle.pop() is not None
        if count > LONGEST_CHAIN:
            assert not popped
            assert ring.error is not None
            assert ring.error[0] == RingError.CHAIN_TOO_LONG
            with pytest.raises(RingStoppedError, match="CHAIN_TOO_LONG"):
                oracle.pop()
        else:
            chain = oracle.pop()
            assert chain is not None
            assert [len(segments) for _, segments in popped] == [len(chain.segments)] == [count]


def test_direction_in_an_indirect_table_of_a_transmit_ring() -> None:
    """Its device reads: some drivers leave WRITE set there."""
    with large_ring(8, [(0, 4096)]) as (ring, oracle, driver, view):
        view[2048:2064] = pack_descriptor(64, 7, WRITE)
        driver.describe(0, 2048, 16, INDIRECT)
        driver.offer(0)
        assert [[length for _, length in segments] for _, segments in ring.pop()] == [[7]]
        assert oracle.pop() is not None
        driver.describe(1, 64, 7, WRITE)
        driver.offer(1)
        assert ring.pop() == []
        assert ring.error is not None
        assert ring.error[0] == RingError.DIRECTION
        with pytest.raises(RingStoppedError, match="DIRECTION"):
            oracle.pop()


@pytest.mark.parametrize("indirect", [False, True])
def test_chains_of_one_buffer_leave_the_longest_chain_its_room(indirect: bool) -> None:
    with large_ring(2048, [(0, 128 * 1024)]) as (ring, oracle, driver, view):
        for i in range(1, LONGEST_CHAIN + 1):
            driver.describe(i, 64, 1, NEXT if i < LONGEST_CHAIN else 0, i + 1)
        if indirect:
            area = 96 * 1024
            view[area : area + 16] = pack_descriptor(64, 1)
            driver.describe(0, area, 16, INDIRECT)
        else:
            driver.describe(0, 64, 1)
        driver.offer(0)
        driver.offer(1)
        assert [(head, len(segments)) for head, segments in ring.pop()] == [(0, 1), (1, LONGEST_CHAIN)]
        assert oracle.pop() is not None
        assert oracle.pop() is not None


def test_a_full_ring_of_the_largest_size() -> None:
    size = 32768
    with large_ring(size, [(0, 1 << 20)]) as (ring, oracle, driver, _):
        for head in range(size):
            driver.describe(head, head, 1)
            driver.set_entry(head, head)
        driver.available_index = size
        heads: list[int] = []
        while burst := ring.pop():
            heads += [head for head, _ in burst]
        assert heads == list(range(size))
        assert [chain.head for chain in iter(oracle.pop, None)] == heads
        assert ring.error is None


def test_no_chain_has_more_than_4_gib() -> None:
    """Only descriptors that overlap get there: four regions' worth of one GiB and a byte."""
    with large_ring(8, [(0, 4096), (1 << 32, 1 << 30)]) as (ring, oracle, driver, _):
        for i in range(5):
            driver.describe(i, 1 << 32, 1 << 30 if i < 4 else 1, NEXT if i < 4 else 0, i + 1)
        driver.offer(0)
        assert ring.pop() == []
        assert ring.error is not None
        assert ring.error[0] == RingError.CHAIN_TOO_LARGE
        with pytest.raises(RingStoppedError, match="CHAIN_TOO_LARGE"):
            oracle.pop()
