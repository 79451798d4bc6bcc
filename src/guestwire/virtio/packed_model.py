"""The oracle of packed rings: the device side of a packed virtqueue, slow and obvious.

It is to packed rings what `guestwire.virtio.model` is to split ones, from which it takes the guest's memory
and its words. It is written to be compared with the specification (virtio 1.3, 2.8) line by line.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from guestwire.virtio.features import Feature
from guestwire.virtio.model import DESCRIPTOR_SIZE, Chain, GuestMemory, Segment, read_segment
from guestwire.virtio.ring_errors import RingError, RingStoppedError

VIRTQ_DESC_F_NEXT = 1
VIRTQ_DESC_F_WRITE = 2
VIRTQ_DESC_F_INDIRECT = 4
VIRTQ_DESC_F_AVAIL = 1 << 7
VIRTQ_DESC_F_USED = 1 << 15
RING_EVENT_FLAGS_ENABLE = 0
RING_EVENT_FLAGS_DISABLE = 1
RING_EVENT_FLAGS_DESC = 2


@dataclass(frozen=True)
class Position:
    """A place in the ring and the ring wrap counter that belongs to it (2.8.1)."""

    index: int
    wrap: bool = True

    def after(self, size: int, count: int = 1) -> Position:
        """Return the position so many descriptors, at most `size`, further on."""
        index = self.index + count
        return Position(index - size, not self.wrap) if index >= size else Position(index, self.wrap)


@dataclass(frozen=True)
class Descriptor:
    """A struct pvirtq_desc, as read once from guest memory (2.8.13)."""

    address: int
    length: int
    id: int
    flags: int

    @classmethod
    def read(cls, memory: GuestMemory, table: int, index: int) -> Descriptor:
        """Read entry ``index`` of the ring or the table at an offset."""
        return cls(*struct.unpack_from("<QIHH", memory.bytes, table + DESCRIPTOR_SIZE * index))

    def available_at(self, position: Position) -> bool:
        """Whether the driver made it available the last time it passed this position (2.8.1)."""
        available = bool(self.flags & VIRTQ_DESC_F_AVAIL)
        used = bool(self.flags & VIRTQ_DESC_F_USED)
        return available == position.wrap and used != position.wrap


START = Position(0)
"""Where a new ring begins."""


class PackedRing:
    """The device side of one packed virtqueue.

    Args:
        memory: the guest's.
        size: Queue Size: descriptors, up to 32768.
        descriptors: offset of the Descriptor Ring.
        driver_event: offset of the Driver Event Suppression structure.
        device_event: offset of the Device Event Suppression structure.
        writable: whether the device writes the buffers (a receive ring) or reads them (transmit).
        features: what was negotiated; VIRTIO_F_INDIRECT_DESC and VIRTIO_F_EVENT_IDX matter here.
        start: the position of the next available and the next used descriptor.
        longest_chain: buffers that a list may have; the queue size if None.
    """

    def __init__(
        self,
        memory: GuestMemory,
        size: int,
        descriptors: int,
        driver_event: int,
        device_event: int,
        *,
        writable: bool,
        features: Feature,
        start: Position = START,
        longest_chain: int | None = None,
    ) -> None:
        if not 1 <= size <= 1 << 15:
            raise ValueError(f"queue size {size} is not between 1 and 32768 (2.8)")
        self.memory = memory
        self.size = size
        self.descriptors = descriptors
        self.driver_event = driver_event
        self.device_event = device_event
        self.writable = writable
        self.indirect = Feature.VIRTIO_F_INDIRECT_DESC in features
        self.event_idx = Feature.VIRTIO_F_EVENT_IDX in features
        self.next_available = self.next_used = start
        self.longest_chain = size if longest_chain is None else min(size, longest_chain)
        self.in_flight: dict[int, tuple[Chain, int]] = {}  # by buffer id, with its descriptors
        self.unpublished: list[tuple[Position, int, bytes]] = []  # and over how many descriptors each
        self.stopped: RingStoppedError | None = None

    @property
    def descriptors_in_flight(self) -> int:
        """How many descriptors of the ring belong to buffers that the device has."""
        return sum(count for _, count in self.in_flight.values())

    def pop(self) -> Chain | None:
        """Take the next available buffer.

        Returns:
            The buffer, which is the device's until `push`; None if the driver offers none.

        Raises:
            RingStoppedError: the driver broke a rule, now or earlier. Nothing is taken, and the ring
                gives nothing more.
        """
        if self.stopped is not None:
            raise self.stopped
        first = Descriptor.read(self.memory, self.descriptors, self.next_available.index)
        if not first.available_at(self.next_available):
            return None
        # A barrier belongs here: the rest of the list is read after the flags of its first descriptor.
        try:
            chain, count = self._read_list(first)
        except RingStoppedError as error:
            self.stopped = error
            raise
        self.in_flight[chain.head] = chain, count
        self.next_available = self.next_available.after(self.size, count)
        return chain

    def push(self, buffer_id: int, written: int) -> None:
        """Give a buffer back by a used descriptor, not yet visible to the driver (2.8.6).

        Args:
            buffer_id: which buffer.
            written: bytes written from the start of the buffer; 0 on a transmit ring.
        """
        chain, count = self.in_flight.pop(buffer_id)
        if written > (chain.length if self.writable else 0):
            raise ValueError(f"{written} bytes cannot have been written to {chain}")
        flags = VIRTQ_DESC_F_AVAIL | VIRTQ_DESC_F_USED if self.next_used.wrap else 0
        flags |= VIRTQ_DESC_F_WRITE if written else 0
        self.unpublished.append((self.next_used, count, struct.pack("<IHH", written, buffer_id, flags)))
        self.next_used = self.next_used.after(self.size, count)

    def publish(self) -> bool:
        """Make what was pushed visible to the driver, and decide on a used buffer notification.

        Returns:
            Whether the driver must be notified (2.8.10). False if nothing was pushed.
        """
        # In any order but for the first, which is last: a barrier belongs before it, and one behind it, so
        # that we read the driver's wish after the driver can see the descriptor.
        passed: list[Position] = []
        for position, count, used in reversed(self.unpublished):
            at = self.descriptors + DESCRIPTOR_SIZE * position.index + 8
            self.memory.bytes[at : at + 8] = used
            passed += [position.after(self.size, i) if i else position for i in range(count)]
        self.unpublished = []
        wish = self.memory.read_u16(self.driver_event)
        flags = self.memory.read_u16(self.driver_event + 2) & 3
        if flags == RING_EVENT_FLAGS_DESC and self.event_idx:
            # "Event will only trigger when Ring Wrap Counter matches this value and a descriptor is [...]
            # used": one that is skipped counts, since it is used with its list.
            return Position(wish & 0x7FFF, bool(wish >> 15)) in passed
        return bool(passed) and flags != RING_EVENT_FLAGS_DISABLE

    def enable_notifications(self) -> bool:
        """Ask the driver to notify us of the next buffer it makes available (2.8.10).

        Returns:
            Whether one is available already.
        """
        wish, flags = 0, RING_EVENT_FLAGS_ENABLE
        if self.event_idx:
            wish = self.next_available.index | self.next_available.wrap << 15
            flags = RING_EVENT_FLAGS_DESC
        self.memory.write_u16(self.device_event, wish)
        self.memory.write_u16(self.device_event + 2, flags)
        # A barrier belongs here: the driver must see the request before we look once more.
        first = Descriptor.read(self.memory, self.descriptors, self.next_available.index)
        return first.available_at(self.next_available)

    def disable_notifications(self) -> None:
        """Tell the driver that we look by ourselves."""
        self.memory.write_u16(self.device_event, 0)
        self.memory.write_u16(self.device_event + 2, RING_EVENT_FLAGS_DISABLE)

    def _read_list(self, first: Descriptor) -> tuple[Chain, int]:
        """Read a list; return its buffer and how many descriptors it has."""
        position, descriptor, count = self.next_available, first, 0
        segments: list[Segment] = []
        while True:
            if count == self.size:
                raise RingStoppedError(RingError.CHAIN_TOO_LONG, f"more than {count} descriptors")
            if self.descriptors_in_flight + count == self.size:
                raise RingStoppedError(RingError.DESCRIPTOR_IN_FLIGHT, f"descriptor {position.index}")
            if descriptor.flags & VIRTQ_DESC_F_INDIRECT:
                self._read_table(descriptor, alone=count == 0, segments=segments)
            else:
                segments.append(
                    read_segment(self, descriptor.address, descriptor.length, descriptor.flags, segments)
                )
            count += 1
            if not descriptor.flags & VIRTQ_DESC_F_NEXT:
                break
            position = position.after(self.size)
            descriptor = Descriptor.read(self.memory, self.descriptors, position.index)
        # "Buffer ID is included in the last descriptor in the list" (2.8.6).
        if descriptor.id >= self.size:
            raise RingStoppedError(RingError.HEAD_OUT_OF_RANGE, f"{descriptor.id}, of {self.size}")
        if descriptor.id in self.in_flight:
            raise RingStoppedError(RingError.HEAD_IN_FLIGHT, f"buffer id {descriptor.id}")
        return Chain(descriptor.id, tuple(segments)), count

    def _read_table(self, descriptor: Descriptor, *, alone: bool, segments: list[Segment]) -> None:
        """Read an indirect table; in it WRITE is the only valid flag (2.8.7), see `read_segment`."""
        if not self.indirect:
            raise RingStoppedError(RingError.INDIRECT_NOT_NEGOTIATED, f"flags are {descriptor.flags:#x}")
        if not alone or descriptor.flags & VIRTQ_DESC_F_NEXT:
            raise RingStoppedError(RingError.INDIRECT_WITH_NEXT, f"flags are {descriptor.flags:#x}")
        if descriptor.length == 0 or descriptor.length % DESCRIPTOR_SIZE:
            raise RingStoppedError(RingError.INDIRECT_LENGTH, f"{descriptor.length} bytes")
        table = self.memory.offset(descriptor.address, descriptor.length)
        if table is None:
            raise RingStoppedError(
                RingError.ADDRESS_OUTSIDE_MEMORY,
                f"an indirect table of {descriptor.length} bytes at {descriptor.address:#x}",
            )
        for index in range(descriptor.length // DESCRIPTOR_SIZE):
            entry = Descriptor.read(self.memory, table, index)
            if entry.flags & VIRTQ_DESC_F_INDIRECT:
                raise RingStoppedError(RingError.INDIRECT_NESTED, f"flags are {entry.flags:#x}")
            element = (entry.address, entry.length, entry.flags)
            segments.append(read_segment(self, *element, segments, in_table=True))
