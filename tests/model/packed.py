"""A packed ring in two memories at once, of the compiled device and of the oracle, and the driver of both."""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from guestwire.datapath.packed_ring import PackedRing
from guestwire.datapath.window import Window
from guestwire.testing.raw_ring import INDIRECT, NEXT, WRITE
from guestwire.virtio.features import Feature
from guestwire.virtio.model import GuestMemory, MemoryRegion
from guestwire.virtio.packed_model import PackedRing as Oracle
from guestwire.virtio.packed_model import Position
from guestwire.virtio.ring_errors import RingStoppedError
from model.rings import BUFFERS, INDIRECT_AREA, REGIONS

DESCRIPTORS, DRIVER_EVENT, DEVICE_EVENT = 0x1000, 0x2004, 0x2008
AVAIL, USED = 1 << 7, 1 << 15
LONGEST_CHAIN = 1024  # buffers that the compiled ring takes in one list (BURST_SEGMENTS)

START = Position(0)
Popped = tuple[int, list[tuple[int, int]]]


@dataclass(frozen=True)
class Shape:
    size: int
    receive: bool = False
    event_idx: bool = True
    indirect: bool = True
    start: Position = START
    read_again: bool = False

    @property
    def features(self) -> Feature:
        features = Feature.VIRTIO_F_RING_PACKED
        if self.event_idx:
            features |= Feature.VIRTIO_F_EVENT_IDX
        if self.indirect:
            features |= Feature.VIRTIO_F_INDIRECT_DESC
        return features

    @property
    def base(self) -> int:
        half = self.start.index | self.start.wrap << 15
        return half << 16 | half


def flags_at(position: Position, flags: int = 0) -> int:
    """What makes a descriptor at a position available."""
    return flags | (AVAIL if position.wrap else USED)


@dataclass
class Both:
    """The two devices, and the driver: whatever is done is done to both, and seen to be the same.

    Attributes:
        available: the position from which the driver makes available next.
        used: the position at which it expects the next used descriptor.
        free: buffer ids. lists: how many descriptors each id has that the device has.
        popped: ids and lengths of what the devices have.
    """

    shape: Shape
    ring: PackedRing
    oracle: Oracle
    memories: tuple[memoryview, memoryview]
    available: Position
    used: Position
    free: list[int]
    lists: dict[int, int] = field(default_factory=dict)
    popped: list[tuple[int, int]] = field(default_factory=list)

    # --- the driver ------------------------------------------------------------------------------------

    def write(self, at: int, data: bytes) -> None:
        for memory in self.memories:
            memory[at : at + len(data)] = data

    def describe(self, index: int, address: int, length: int, buffer_id: int, flags: int) -> None:
        self.write(DESCRIPTORS + 16 * index, struct.pack("<QIHH", address, length, buffer_id, flags))

    def suppress(self, flags: int, position: Position) -> None:
        self.write(DRIVER_EVENT, struct.pack("<HH", position.index | position.wrap << 15, flags))

    def offer(self, lengths: Sequence[int], *, table: bool = False) -> bool:
        """Make a buffer available, its elements direct or in an indirect table; False if it has no room."""
        needed = 1 if table else len(lengths)
        if not self.free or len(lengths) > self.shape.size:
            return False
        if needed + sum(self.lists.values()) > self.shape.size:
            return False
        buffer_id = self.free.pop(0)
        write = WRITE if self.shape.receive else 0
        elements = [(BUFFERS + 16 * i, length) for i, length in enumerate(lengths)]
        if table:
            area = INDIRECT_AREA + 64 * buffer_id
            self.write(area, b"".join(struct.pack("<QIHH", *e, 0xABCD, write | NEXT) for e in elements))
            elements, write = [(area, 16 * len(elements))], INDIRECT
        position = self.available
        for i, (address, length) in enumerate(elements):
            more = NEXT if i + 1 < needed else 0
            self.describe(position.index, address, length, buffer_id, flags_at(position, write | more))
            position = position.after(self.shape.size)
        self.available = position
        self.lists[buffer_id] = needed
        return True

    def take(self) -> list[tuple[int, int]]:
        """Take back all that is used, as (id, length), checking that each is where it belongs."""
        taken = []
        while True:
            at = DESCRIPTORS + 16 * self.used.index
            _, length, buffer_id, flags = struct.unpack_from("<QIHH", self.memories[0], at)
            if bool(flags & AVAIL) != self.used.wrap or bool(flags & USED) != self.used.wrap:
                return taken
            assert bool(flags & WRITE) == bool(length)
            taken.append((buffer_id, length))
            self.used = self.used.after(self.shape.size, self.lists.pop(buffer_id))
            self.free.append(buffer_id)

    # --- the devices -----------------------------------------------------------------------------------

    def pop(self, most: int = 64) -> tuple[list[Popped], int]:
        """Return what both popped, and the error."""
        ours: list[Popped] = []
        while len(ours) < most and (burst := self.ring.pop(most - len(ours))):
            ours += burst
        theirs: list[Popped] = []
        while len(theirs) < most and self.oracle.stopped is None:
            try:
                chain = self.oracle.pop()
            except RingStoppedError:
                break
            if chain is None:
                break
            theirs.append((chain.head, [(s.offset, s.length) for s in chain.segments]))
        error = self.oracle.stopped.error if self.oracle.stopped else 0
        assert ours == theirs
        assert (self.ring.error[0] if self.ring.error else 0) == error
        assert self.ring.in_flight == len(self.oracle.in_flight)
        self.popped += [(head, sum(n for _, n in segments)) for head, segments in ours]
        return ours, error

    def push(self, which: int = 0, written: int = 0) -> None:
        """Give back one of the buffers in flight, with so much of it written, per mille."""
        if self.popped:
            head, length = self.popped.pop(which % len(self.popped))
            written = length * written // 1000 if self.shape.receive else 0
            self.ring.push(head, written)
            self.oracle.push(head, written)

    def publish(self) -> bool:
        wanted = self.ring.publish()
        assert wanted == self.oracle.publish()
        self.check()
        self.check_base()
        return wanted

    def enable_notifications(self) -> bool:
        more = self.ring.enable_notifications()
        assert more == self.oracle.enable_notifications()
        return more

    def disable_notifications(self) -> None:
        self.ring.disable_notifications()
        self.oracle.disable_notifications()

    def check_base(self) -> None:
        position = self.oracle.next_used
        half = position.index | position.wrap << 15
        assert self.ring.base == half << 16 | half

    def check(self) -> None:
        """Both memories are the same."""
        assert self.memories[0] == self.memories[1]


@contextmanager
def both(shape: Shape) -> Iterator[Both]:
    """A ring of this shape over the regions of `model.rings`, twice."""
    sizes = [size for _, size in REGIONS]
    fd = os.memfd_create("guestwire-test")
    try:
        os.ftruncate(fd, sum(sizes))
        with mmap.mmap(fd, sum(sizes)) as mapping:
            window = Window(
                [(a, 0x7000_0000_0000 + a, n, fd, sum(sizes[:i])) for i, (a, n) in enumerate(REGIONS)],
                bounce_frames=1,
            )
            offsets = [window.translate_guest(address, size) for address, size in REGIONS]
            regions = [MemoryRegion(a, n, offset) for (a, n), offset in zip(REGIONS, offsets, strict=True)]
            memory = GuestMemory(bytearray(max(r.offset + r.size for r in regions)), regions)
            places = [offsets[0] + at for at in (DESCRIPTORS, DRIVER_EVENT, DEVICE_EVENT)]
            view = memoryview(mapping)
            ours, theirs = view[: sizes[0]], memory.bytes[offsets[0] :][: sizes[0]]
            for index in range(shape.size):
                # As a ring that was used is left: what lies before the start was used this time round.
                wrap = shape.start.wrap == (index < shape.start.index)
                for part in (ours, theirs):
                    struct.pack_into("<H", part, DESCRIPTORS + 16 * index + 14, AVAIL | USED if wrap else 0)
            ring = PackedRing(
                window,
                shape.size,
                *places,
                base=shape.base,
                receive=shape.receive,
                event_index=shape.event_idx,
                indirect=shape.indirect,
                read_again=shape.read_again,
            )
            oracle = Oracle(
                memory,
                shape.size,
                *places,
                writable=shape.receive,
                features=shape.features,
                start=shape.start,
                longest_chain=LONGEST_CHAIN,
            )
            oracle.disable_notifications()  # as the compiled ring begins
            made = Both(
                shape,
                ring,
                oracle,
                (ours, theirs),
                shape.start,
                shape.start,
                list(range(shape.size)),
            )
            try:
                yield made
            finally:
                window.close()
                ours.release()
                view.release()
    finally:
        os.close(fd)
