"""The oracle: the device side of a split virtqueue, slow and obvious.

This is the reference that the compiled ring is held against, so it is written to be compared with
the specification (virtio 1.3, 2.7) line by line, not to be fast: every field is read from guest
memory at the moment it is needed, exactly once, and checked before it is used.  Nothing runs
concurrently with the model, so it needs no memory barriers; it notes where the specification asks
for one.

The names are the specification's.  An *offset* is a position in the buffer that holds the guest's
memory; a *guest address* is what the driver writes into descriptors.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from guestwire.virtio.features import Feature
from guestwire.virtio.ring_errors import RingError, RingStoppedError

DESCRIPTOR_SIZE = 16
"""Bytes of a struct virtq_desc (2.7.5)."""

MAX_CHAIN_BYTES = 1 << 32
"""Bytes that a descriptor chain may describe (2.7.5.2)."""

VIRTQ_DESC_F_NEXT = 1
VIRTQ_DESC_F_WRITE = 2
VIRTQ_DESC_F_INDIRECT = 4
VIRTQ_AVAIL_F_NO_INTERRUPT = 1
VIRTQ_USED_F_NO_NOTIFY = 1


@dataclass(frozen=True)
class MemoryRegion:
    """One contiguous piece of guest memory.

    Attributes:
        guest_address: its first byte's address, as the driver names it.
        size: in bytes.
        offset: of its first byte in the buffer that holds the guest's memory.
    """

    guest_address: int
    size: int
    offset: int

    def continued_by(self, other: MemoryRegion) -> bool:
        """Whether another region starts where this one ends, for the driver and for us."""
        return (self.guest_address + self.size, self.offset + self.size) == (
            other.guest_address,
            other.offset,
        )


class GuestMemory:
    """The guest's memory: a buffer, and which guest addresses lie where in it.

    Args:
        buffer: writable bytes that hold all regions.
        regions: the region table; guest addresses of different regions do not overlap.
            Neighbours both in guest addresses and in the buffer count as one region: what is
            contiguous for the driver and for us may be described by one descriptor.
    """

    def __init__(self, buffer: bytearray | memoryview | mmap.mmap, regions: Iterable[MemoryRegion]) -> None:
        self.bytes = memoryview(buffer).cast("B")
        self.regions: list[MemoryRegion] = []
        for region in sorted(regions, key=lambda region: region.guest_address):
            if self.regions and self.regions[-1].continued_by(region):
                last = self.regions.pop()
                size = last.size + region.size
                self.regions.append(MemoryRegion(last.guest_address, size, last.offset))
            else:
                self.regions.append(region)

    def offset(self, guest_address: int, length: int) -> int | None:
        """Return where a range lies in the buffer, or None if it is not all in one region."""
        for region in self.regions:
            start = guest_address - region.guest_address
            if start >= 0 and start + length <= region.size:
                return region.offset + start
        return None

    def read_u16(self, offset: int) -> int:
        """Read the le16 at an offset."""
        return int.from_bytes(self.bytes[offset : offset + 2], "little")

    def write_u16(self, offset: int, value: int) -> None:
        """Write an le16 at an offset, modulo 2^16 as all free-running indices are."""
        self.bytes[offset : offset + 2] = (value & 0xFFFF).to_bytes(2, "little")


@dataclass(frozen=True)
class Descriptor:
    """A struct virtq_desc, as read once from guest memory (2.7.5)."""

    address: int
    length: int
    flags: int
    next: int

    @classmethod
    def read(cls, memory: GuestMemory, table: int, index: int) -> Descriptor:
        """Read entry ``index`` of the table at an offset."""
        return cls(*struct.unpack_from("<QIHH", memory.bytes, table + DESCRIPTOR_SIZE * index))


@dataclass(frozen=True)
class Segment:
    """A contiguous part of a buffer: where in the memory, and how many bytes."""

    offset: int
    length: int


@dataclass(frozen=True)
class Chain:
    """A buffer that the driver made available.

    Attributes:
        head: index of its first descriptor, by which the used ring names it.
        segments: its bytes, in order; all device-writable or all device-readable.
    """

    head: int
    segments: tuple[Segment, ...]

    @property
    def length(self) -> int:
        """Its bytes in total."""
        return sum(segment.length for segment in self.segments)


class Buffers(Protocol):
    """What a ring of either kind says of its buffers."""

    memory: GuestMemory
    writable: bool
    longest_chain: int


def read_segment(
    ring: Buffers, address: int, length: int, flags: int, before: Sequence[Segment], *, in_table: bool = False
) -> Segment:
    """Check the descriptor of one buffer, given the segments of its chain before it.

    In an indirect table of a transmit ring WRITE says nothing: DPDK's driver for packed rings leaves it set,
    and the device only reads.

    Raises:
        RingStoppedError: it breaks a rule.
    """
    if len(before) == ring.longest_chain:
        raise RingStoppedError(RingError.CHAIN_TOO_LONG, f"more than {ring.longest_chain}")
    if bool(flags & VIRTQ_DESC_F_WRITE) != ring.writable and (ring.writable or not in_table):
        raise RingStoppedError(RingError.DIRECTION, f"flags are {flags:#x}")
    if length == 0:
        raise RingStoppedError(RingError.ZERO_LENGTH, f"at {address:#x}")
    offset = ring.memory.offset(address, length)
    if offset is None:
        raise RingStoppedError(RingError.ADDRESS_OUTSIDE_MEMORY, f"{length} bytes at {address:#x}")
    total = sum(segment.length for segment in before) + length
    if total > MAX_CHAIN_BYTES:
        raise RingStoppedError(RingError.CHAIN_TOO_LARGE, f"{total} bytes")
    return Segment(offset, length)


class SplitRing:
    """The device side of one split virtqueue.

    Args:
        memory: the guest's.
        size: Queue Size: descriptors, a power of two up to 32768.
        descriptor_table: offset of the Descriptor Area.
        available: offset of the Driver Area.
        used: offset of the Device Area.
        writable: whether the device writes the buffers (a receive ring) or reads them (transmit).
        features: what was negotiated; VIRTIO_F_INDIRECT_DESC and VIRTIO_F_EVENT_IDX matter here.
        next_available: the available index to go on from (vhost-user's ring base).
        next_used: the used index to go on from.
        longest_chain: buffers that a chain may have; the queue size if None.  "The device MAY have
            a reasonable limit of descriptors it will allow in a chain" (2.7.4.1).
    """

    def __init__(
        self,
        memory: GuestMemory,
        size: int,
        descriptor_table: int,
        available: int,
        used: int,
        *,
        writable: bool,
        features: Feature,
        next_available: int = 0,
        next_used: int = 0,
        longest_chain: int | None = None,
    ) -> None:
        if not 1 <= size <= 1 << 15 or size & (size - 1):
            raise ValueError(f"queue size {size} is not a power of two up to 32768 (2.7)")
        self.memory = memory
        self.size = size
        self.descriptor_table = descriptor_table
        self.available = available
        self.used = used
        self.writable = writable
        self.indirect = Feature.VIRTIO_F_INDIRECT_DESC in features
        self.event_idx = Feature.VIRTIO_F_EVENT_IDX in features
        self.next_available = next_available
        self.next_used = next_used
        self.published_used = next_used
        self.longest_chain = size if longest_chain is None else min(size, longest_chain)
        self.in_flight: dict[int, Chain] = {}
        self.stopped: RingStoppedError | None = None

    def pop(self) -> Chain | None:
        """Take the next available buffer.

        Returns:
            The buffer, which is the device's until `push`; None if the driver offers none.

        Raises:
            RingStoppedError: the driver broke a rule, now or earlier.  Nothing is taken, and the
                ring gives nothing more.
        """
        if self.stopped is not None:
            raise self.stopped
        try:
            chain = self._pop()
        except RingStoppedError as error:
            self.stopped = error
            raise
        if chain is not None:
            self.in_flight[chain.head] = chain
            self.next_available = (self.next_available + 1) & 0xFFFF
        return chain

    def push(self, head: int, written: int) -> None:
        """Give a buffer back: write its used ring entry, not yet visible to the driver (2.7.8).

        Args:
            head: which buffer.
            written: bytes written from the start of the buffer; 0 on a transmit ring.
        """
        chain = self.in_flight.pop(head)
        if written > (chain.length if self.writable else 0):
            raise ValueError(f"{written} bytes cannot have been written to {chain}")
        entry = self.used + 4 + 8 * (self.next_used % self.size)
        struct.pack_into("<II", self.memory.bytes, entry, head, written)
        self.next_used = (self.next_used + 1) & 0xFFFF

    def publish(self) -> bool:
        """Make what was pushed visible to the driver, and decide on a used buffer notification.

        Returns:
            Whether the driver must be notified (2.7.7.2).  False if nothing was pushed.
        """
        # A barrier belongs before the index, so that the driver sees the entries first (2.7.8.2),
        # and one behind it, so that we read the driver's wish after the driver can see the index.
        previous, self.published_used = self.published_used, self.next_used
        self.memory.write_u16(self.used + 2, self.next_used)
        placed = (self.next_used - previous) & 0xFFFF
        if not self.event_idx:
            flags = self.memory.read_u16(self.available)
            return placed > 0 and not flags & VIRTQ_AVAIL_F_NO_INTERRUPT
        # "If the idx field in the used ring (which determined where that descriptor index was
        # placed) was equal to used_event, the device MUST send a notification."
        used_event = self.memory.read_u16(self.available + 4 + 2 * self.size)
        return any((previous + i) & 0xFFFF == used_event for i in range(placed))

    def enable_notifications(self) -> bool:
        """Ask the driver to notify us of the next buffer it makes available (2.7.10).

        Returns:
            Whether buffers are available already: the driver may have made them available before
            it could see the request, and then it will not notify.
        """
        if self.event_idx:
            self.memory.write_u16(self.used + 4 + 8 * self.size, self.next_available)
        else:
            self.memory.write_u16(self.used, 0)
        # A barrier belongs here: the driver must see the request before we look once more.
        return self.memory.read_u16(self.available + 2) != self.next_available

    def disable_notifications(self) -> None:
        """Tell the driver that we look by ourselves (2.7.10).

        With VIRTIO_F_EVENT_IDX there is nothing to say: avail_event stays where it is, behind us,
        and "the device MUST set flags to 0".
        """
        if not self.event_idx:
            self.memory.write_u16(self.used, VIRTQ_USED_F_NO_NOTIFY)

    def _pop(self) -> Chain | None:
        available = self.memory.read_u16(self.available + 2)
        count = (available - self.next_available) & 0xFFFF
        if count == 0:
            return None
        # A barrier belongs here: entries and descriptors are read after the index (2.7.13.3.1).
        if count > self.size:
            raise RingStoppedError(
                RingError.AVAILABLE_INDEX,
                f"it is {available}, {count} from {self.next_available}, of {self.size}",
            )
        head = self.memory.read_u16(self.available + 4 + 2 * (self.next_available % self.size))
        if head >= self.size:
            raise RingStoppedError(RingError.HEAD_OUT_OF_RANGE, f"{head}, of {self.size}")
        if head in self.in_flight:
            raise RingStoppedError(RingError.HEAD_IN_FLIGHT, f"descriptor {head}")
        return self._walk(head)

    def _walk(self, head: int) -> Chain:
        """Follow a chain, through at most one indirect table (2.7.5.3)."""
        table, entries, indirect = self.descriptor_table, self.size, False
        index = head
        segments: list[Segment] = []
        while True:
            descriptor = Descriptor.read(self.memory, table, index)
            if descriptor.flags & VIRTQ_DESC_F_INDIRECT:
                table = self._indirect_table(descriptor, nested=indirect)
                entries, indirect = descriptor.length // DESCRIPTOR_SIZE, True
                index = 0
                continue
            element = (descriptor.address, descriptor.length, descriptor.flags)
            segments.append(read_segment(self, *element, segments, in_table=indirect))
            if not descriptor.flags & VIRTQ_DESC_F_NEXT:
                return Chain(head, tuple(segments))
            index = descriptor.next
            if index >= entries:
                raise RingStoppedError(RingError.NEXT_OUT_OF_RANGE, f"next is {index}, of {entries}")

    def _indirect_table(self, descriptor: Descriptor, *, nested: bool) -> int:
        """Check a descriptor that refers to an indirect table; return the table's offset.

        "The device MUST ignore the write-only flag [...] in the descriptor that refers to an
        indirect table" (2.7.5.3.2).
        """
        if not self.indirect:
            raise RingStoppedError(RingError.INDIRECT_NOT_NEGOTIATED, f"flags are {descriptor.flags:#x}")
        if nested:
            raise RingStoppedError(RingError.INDIRECT_NESTED, f"flags are {descriptor.flags:#x}")
        if descriptor.flags & VIRTQ_DESC_F_NEXT:
            raise RingStoppedError(RingError.INDIRECT_WITH_NEXT, f"flags are {descriptor.flags:#x}")
        if descriptor.length == 0 or descriptor.length % DESCRIPTOR_SIZE:
            raise RingStoppedError(RingError.INDIRECT_LENGTH, f"{descriptor.length} bytes")
        offset = self.memory.offset(descriptor.address, descriptor.length)
        if offset is None:
            raise RingStoppedError(
                RingError.ADDRESS_OUTSIDE_MEMORY,
                f"an indirect table of {descriptor.length} bytes at {descriptor.address:#x}",
            )
        return offset
