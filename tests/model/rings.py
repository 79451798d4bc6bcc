"""Scripts for a ring, and the guest that performs them.

A script is a shape (queue size, features, where the indices start) and a list of steps.  Driver
steps write guest memory; device steps call the device under test.  The same script can be performed
on two devices, each with its own copy of the memory, and everything that can be seen compared.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from guestwire.testing import raw_ring
from guestwire.testing.raw_ring import INDIRECT, NEXT, WRITE, RawRing
from guestwire.virtio.features import Feature
from guestwire.virtio.model import Chain, GuestMemory, MemoryRegion, SplitRing
from guestwire.virtio.ring_errors import RingStoppedError

KIB = 1024
PAGE = 4 * KIB

# Guest address and size of each region: the ring's own; one alone; two neighbours.
REGIONS = ((0, 16 * KIB), (0x10_0000, 8 * KIB), (0x4000_0000, 8 * KIB), (0x4000_2000, 4 * KIB))
DESCRIPTOR_TABLE = 0x1000
AVAILABLE_RING = 0x2002  # two-byte aligned and no better
USED_RING = 0x2804  # four-byte aligned and no better
INDIRECT_AREA = 0x3000
INDIRECT_TABLE = 64  # bytes for each descriptor of the largest ring
BUFFERS = 0x10_0000
GUARD = 0x1000  # offset of the first region in the model's memory


@dataclass(frozen=True)
class Shape:
    size: int
    receive: bool
    event_idx: bool
    indirect: bool
    start: int  # of both indices

    @property
    def features(self) -> Feature:
        features = Feature.VIRTIO_F_VERSION_1
        if self.event_idx:
            features |= Feature.VIRTIO_F_EVENT_IDX
        if self.indirect:
            features |= Feature.VIRTIO_F_INDIRECT_DESC
        return features


@dataclass(frozen=True)
class Offer:
    """A well-formed chain: lengths of its buffers; how many come before an indirect table."""

    lengths: tuple[int, ...]
    direct: int | None


@dataclass(frozen=True)
class Describe:
    """Overwrite a descriptor, in the ring's table or in the memory used for indirect tables.

    On a receive ring, VIRTQ_DESC_F_WRITE in the flags is inverted: 0 is right on every ring.
    """

    indirect: bool
    index: int
    address: int
    length: int
    flags: int
    next_index: int


@dataclass(frozen=True)
class OfferRaw:
    """Make a head available, whatever it is, `jump` entries on."""

    head: int
    jump: int


@dataclass(frozen=True)
class Suppress:
    """Write the driver's side of notification suppression."""

    flags: int
    used_event: int


@dataclass(frozen=True)
class Pop:
    most: int


@dataclass(frozen=True)
class Push:
    """Give back one of the chains in flight: which, and how much of it was written, per mille."""

    which: int
    written: int


@dataclass(frozen=True)
class Publish:
    pass


@dataclass(frozen=True)
class Notifications:
    enable: bool


Step = Offer | Describe | OfferRaw | Suppress | Pop | Push | Publish | Notifications


@dataclass(frozen=True)
class Script:
    shape: Shape
    steps: tuple[Step, ...]


Popped = tuple[int, list[tuple[int, int]]]
"""A chain's head and its segments: offset in the device's memory, and length."""


class Device(Protocol):
    """What a device under test is reduced to."""

    def pop(self, most: int) -> list[Popped]: ...
    def error(self) -> int: ...
    def push(self, head: int, written: int) -> None: ...
    def publish(self) -> bool: ...
    def enable_notifications(self) -> bool: ...
    def disable_notifications(self) -> None: ...


class Guest:
    """Performs driver steps on one copy of the memory, and device steps on one device."""

    def __init__(self, shape: Shape, ring_region: memoryview, device: Device) -> None:
        self.shape = shape
        self.device = device
        self.memory = ring_region
        size = shape.size
        self.ring = ring_in(ring_region, size)
        self.free = list(range(size))
        self.chains: dict[int, list[int]] = {}  # head → descriptors, for chains that were offered
        self.in_flight: list[tuple[int, int]] = []  # head and length, for chains that were popped

    def perform(self, step: Step) -> object:
        """Perform a step; what it returns must be the same on every device."""
        match step:
            case Offer():
                self._offer(step)
            case Describe():
                self._describe(step)
            case OfferRaw():
                self.ring.set_entry(self.ring.available_index, step.head)
                self.ring.available_index += step.jump
            case Suppress():
                self.ring.available_flags = step.flags
                self.ring.used_event = step.used_event
            case Pop():
                popped = self.device.pop(step.most)
                self.in_flight += [(head, sum(n for _, n in segments)) for head, segments in popped]
                return popped, self.device.error()
            case Push():
                return self._push(step)
            case Publish():
                return self.device.publish()
            case Notifications():
                if step.enable:
                    return self.device.enable_notifications()
                self.device.disable_notifications()
        return None

    def release(self) -> None:
        """Let go of the memory, so that a mapping behind it can be closed."""
        self.ring.release()
        self.memory.release()

    def _offer(self, offer: Offer) -> None:
        lengths = list(offer.lengths)
        direct = len(lengths) if offer.direct is None else min(offer.direct, len(lengths) - 1)
        if not self.shape.indirect:
            direct = len(lengths)
        needed = direct + (direct < len(lengths))
        if needed > len(self.free) or len(lengths) > self.shape.size:
            return
        indices = [self.free.pop() for _ in range(needed)]
        flags = WRITE if self.shape.receive else 0
        buffers = [(BUFFERS + 16 * i, n) for i, n in enumerate(lengths)]
        table = buffers[direct:]
        area = INDIRECT_AREA + INDIRECT_TABLE * indices[-1]
        for i, (address, length) in enumerate(table):
            more = NEXT if i + 1 < len(table) else 0
            entry = raw_ring.pack_descriptor(address, length, flags | more, i + 1)
            self.memory[area + 16 * i : area + 16 * i + 16] = entry
        for i, index in enumerate(indices):
            more, after = (NEXT, indices[i + 1]) if i + 1 < needed else (0, 0)
            if i < direct:
                self.ring.describe(index, *buffers[i], flags | more, after)
            else:
                self.ring.describe(index, area, 16 * len(table), INDIRECT, after)
        self.chains[indices[0]] = indices
        self.ring.offer(indices[0])

    def _describe(self, step: Describe) -> None:
        flags = step.flags ^ (WRITE if self.shape.receive else 0)
        if not step.indirect:
            index = step.index % self.shape.size
            self.ring.describe(index, step.address, step.length, flags, step.next_index)
            return
        offset = INDIRECT_AREA + 16 * step.index
        entry = raw_ring.pack_descriptor(step.address, step.length, flags, step.next_index)
        self.memory[offset : offset + 16] = entry

    def _push(self, step: Push) -> object:
        if not self.in_flight:
            return None
        head, length = self.in_flight.pop(step.which % len(self.in_flight))
        self.free += self.chains.pop(head, [])
        written = length * step.written // 1000 if self.shape.receive else 0
        self.device.push(head, written)
        return head, written


class ModelDevice:
    """The oracle as the device of a script.

    Args:
        offsets: where each region lies in the model's memory; side by side if None.
    """

    def __init__(self, shape: Shape, offsets: Sequence[int] | None = None) -> None:
        if offsets is None:
            sizes = [size for _, size in REGIONS]
            offsets = [GUARD + sum(sizes[:i]) for i in range(len(sizes))]
        regions = [
            MemoryRegion(guest_address, size, offset)
            for (guest_address, size), offset in zip(REGIONS, offsets, strict=True)
        ]
        end = max(region.offset + region.size for region in regions)
        self.memory = GuestMemory(bytearray(end), regions)
        self.ring_region = self.memory.bytes[offsets[0] :][: REGIONS[0][1]]
        initialise(self.ring_region, shape)
        self.ring = SplitRing(
            self.memory,
            shape.size,
            offsets[0] + DESCRIPTOR_TABLE,
            offsets[0] + AVAILABLE_RING,
            offsets[0] + USED_RING,
            writable=shape.receive,
            features=shape.features,
            next_available=shape.start,
            next_used=shape.start,
        )
        self.popped: list[Chain] = []

    def pop(self, most: int) -> list[Popped]:
        chains: list[Chain] = []
        while len(chains) < most and self.ring.stopped is None:
            try:
                chain = self.ring.pop()
            except RingStoppedError:
                break
            if chain is None:
                break
            chains.append(chain)
        self.popped += chains
        return [(c.head, [(s.offset, s.length) for s in c.segments]) for c in chains]

    def error(self) -> int:
        return self.ring.stopped.error if self.ring.stopped else 0

    def push(self, head: int, written: int) -> None:
        self.ring.push(head, written)

    def publish(self) -> bool:
        return self.ring.publish()

    def enable_notifications(self) -> bool:
        return self.ring.enable_notifications()

    def disable_notifications(self) -> None:
        self.ring.disable_notifications()


def ring_in(ring_region: memoryview, size: int) -> RawRing:
    """The ring's parts in the memory of the first region."""
    return RawRing(
        size,
        ring_region[DESCRIPTOR_TABLE:][: raw_ring.descriptor_table_size(size)],
        ring_region[AVAILABLE_RING:][: raw_ring.available_ring_size(size)],
        ring_region[USED_RING:][: raw_ring.used_ring_size(size)],
    )


def initialise(ring_region: memoryview, shape: Shape) -> None:
    """Set both indices to the shape's start."""
    struct.pack_into("<H", ring_region, AVAILABLE_RING + 2, shape.start)
    struct.pack_into("<H", ring_region, USED_RING + 2, shape.start)
