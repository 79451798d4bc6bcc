# cython: language_level=3
"""The driver's side of one virtqueue: its memory, its buffers, its notifications."""

cimport cython
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset

from guestwire.datapath.abi cimport (
    DESCRIPTOR_F_AVAIL,
    DESCRIPTOR_F_USED,
    DESCRIPTOR_F_WRITE,
    packed_descriptor,
    split_available,
    split_descriptor,
    split_used,
)

from guestwire.testing.faults import DeviceError
from guestwire.testing.raw_ring import RawRing
from guestwire.virtio.features import Feature

cdef uint64_t EVENT_IDX = Feature.VIRTIO_F_EVENT_IDX
cdef uint64_t RING_PACKED = Feature.VIRTIO_F_RING_PACKED
cdef uint64_t IN_ORDER = Feature.VIRTIO_F_IN_ORDER
cdef uint64_t LONG_HEADER = Feature.VIRTIO_F_VERSION_1 | Feature.VIRTIO_NET_F_MRG_RXBUF

PAINT = CANARY
"""The byte that fills what nobody may write."""

DEVICE_FAULTS = {
    USED_INDEX: "the used index runs ahead of the buffers that the device has",
    USED_ID: "a used entry's id is not the head of a chain that the device has",
    USED_ORDER: "a buffer came back before an earlier one, in spite of VIRTIO_F_IN_ORDER",
    USED_LENGTH: "a used entry's length is more than the device could have written",
    NET_HEADER: "a virtio_net_hdr is missing, cut short, or names offloads that are impossible or were not "
                "negotiated",
    NUM_BUFFERS: "num_buffers is not what was negotiated, or not what is in the used ring",
    BUFFER_NOT_FULL: "a frame goes on in the next buffer although its buffer is not full",
    SENT_CHANGED: "a buffer that was sent has changed before it came back",
    WRITTEN_BEYOND: "a receive buffer was written behind the length that the used entry says",
}


cdef uint8_t *bytes_at(uint8_t[::1] view, str name, uint64_t needed, uint64_t alignment) except NULL:
    if <uint64_t>len(view) < needed:
        raise ValueError(f"the {name} needs {needed} bytes, not {len(view)}")
    if <uint64_t>&view[0] % alignment:
        raise ValueError(f"the {name} must be aligned to {alignment} bytes")
    return &view[0]


@cython.final
cdef class DriverRing:
    """The driver's side of one virtqueue (virtio 1.3, 2.7 and 2.8) with buffers of one layout.

    One thread may use a ring at a time. `guestwire.testing.FakeGuest` makes rings in guest memory; make
    them yourself to choose every address.

    Args:
        size: the queue size.
        descriptor_table: its 16 bytes for each descriptor, aligned to 16; writable, as all memory here.
        available_ring: its ``6 + 2 * size`` bytes, aligned to 2.
        used_ring: its ``6 + 8 * size`` bytes, aligned to 4.
        area: memory for the buffers; what no buffer covers is filled and can be checked later.
        area_address: its guest address.
        pieces: how a buffer, header first, is cut: offset in the buffer's share, and length, each.
        spacing: bytes from one buffer's share of the area to the next.
        tables: memory for indirect tables, 16 bytes for each piece of each buffer; None for direct
            chains.
        tables_address: its guest address.
        receive: True for a ring whose buffers the device writes.
        features: what was negotiated, `guestwire.virtio.features.Feature`.
        buffers: how many buffers; as many as the ring and the area have room for if None.
        base: where the indices start.
        kick_fd: eventfd to notify the device; -1 for none.
        call_fd: non-blocking eventfd by which the device notifies; -1 for none.

    Raises:
        ValueError: something does not fit or is not aligned.
    """

    def __init__(self, size, descriptor_table, available_ring, used_ring, *, area, area_address, pieces,
                 spacing, tables=None, tables_address=0, receive, features, buffers=None, base=0,
                 kick_fd=-1, call_fd=-1):
        cdef driver_ring *r = &self.ring
        self.features = features
        r.packed = self.features & RING_PACKED != 0
        if not 1 <= size <= 32768 or (size & (size - 1) and not r.packed):
            raise ValueError(f"queue size {size} is not a power of two between 1 and 32,768")
        if not pieces or any(n < 1 or o < 0 or o + n > spacing for o, n in pieces):
            raise ValueError(f"pieces {pieces} do not lie in a buffer's share of {spacing} bytes")
        if r.packed:
            r.list = <packed_descriptor *>bytes_at(descriptor_table, "descriptor ring", 16 * size, 16)
            r.driver_event = <uint32_t *>bytes_at(available_ring, "driver event suppression", 4, 4)
            r.device_event = <const uint32_t *>bytes_at(used_ring, "device event suppression", 4, 4)
            self.parts = (descriptor_table, available_ring, used_ring)
        else:
            r.descriptors = <split_descriptor *>bytes_at(
                descriptor_table, "descriptor table", 16 * size, 16)
            r.available = <split_available *>bytes_at(available_ring, "available ring", 6 + 2 * size, 2)
            r.used = <split_used *>bytes_at(used_ring, "used ring", 6 + 8 * size, 4)
            self.raw = RawRing(size, memoryview(descriptor_table).cast("B"),
                               memoryview(available_ring).cast("B"), memoryview(used_ring).cast("B"))
        r.size, r.mask = size, size - 1
        r.direction = DESCRIPTOR_F_WRITE if receive else 0
        r.event_index = (self.features & EVENT_IDX) != 0
        r.in_order = (self.features & IN_ORDER) != 0
        r.header_size = 12 if self.features & LONG_HEADER else 10
        r.kick_fd, r.call_fd = kick_fd, call_fd
        r.next_available = r.published = r.next_used = base & 0x7FFF if r.packed else base
        r.silenced_at = r.next_used - 0x4000
        self._make_buffers(area, area_address, pieces, spacing, tables, tables_address, buffers)
        if r.packed:
            self._begin_packed(base & 0x8000)
        else:
            self.raw.available_index = base
            self.raw.reset_used_index(base)
        ring_decline_calls(r)

    def _begin_packed(self, wrap):
        """Leave the ring as one that was used up to its base."""
        cdef driver_ring *r = &self.ring
        cdef uint32_t i
        r.available_flags = DESCRIPTOR_F_AVAIL if wrap else DESCRIPTOR_F_USED
        r.used_flags = TURN if wrap else 0
        for i in range(r.size):
            memset(&r.list[i], 0, sizeof(packed_descriptor))
            r.list[i].flags = r.used_flags if i < r.next_used else r.used_flags ^ TURN

    def _make_buffers(self, area, area_address, pieces, spacing, tables, tables_address, buffers):
        cdef driver_ring *r = &self.ring
        cdef uint32_t i
        self.area = area
        count = min(len(self.area) // spacing, r.size if tables is not None else r.size // len(pieces))
        if buffers is not None:
            if buffers > count:
                raise ValueError(f"{buffers} buffers, there is room for {count}")
            count = buffers
        if count < 1:
            raise ValueError(f"{len(pieces)} pieces of {spacing} bytes in a ring of {r.size} and "
                             f"{len(self.area)} bytes: no room for a buffer")
        r.area = &self.area[0]
        r.area_address, r.spacing, r.buffer_count = area_address, spacing, count
        r.piece_count = len(pieces)
        r.chain_descriptors = r.piece_count
        if tables is not None:
            self.tables = tables
            r.tables = <split_descriptor *>bytes_at(
                self.tables, "indirect tables", 16 * r.piece_count * count, 16)
            r.tables_address = tables_address
            r.chain_descriptors = 1
        r.pieces = <piece *>calloc(r.piece_count, sizeof(piece))
        r.free = <uint16_t *>calloc(count, sizeof(uint16_t))
        r.in_flight = <uint8_t *>calloc(count, 1)
        r.offered = <uint16_t *>calloc(count, sizeof(uint16_t))
        r.descriptors_of = <uint16_t *>calloc(count, sizeof(uint16_t))
        r.table_entries = <uint16_t *>calloc(count, sizeof(uint16_t))
        r.described = <uint32_t *>calloc(count, sizeof(uint32_t))
        r.sequence = <uint64_t *>calloc(count, sizeof(uint64_t))
        if not (r.pieces and r.free and r.in_flight and r.described and r.sequence
                and r.offered and r.descriptors_of and r.table_entries):
            raise MemoryError
        for i, (offset, length) in enumerate(pieces):
            r.pieces[i].offset, r.pieces[i].length = offset, length
            r.capacity += length
        if r.capacity <= r.header_size:
            raise ValueError(f"buffers of {r.capacity} bytes hold no frame behind the header")
        self._find_frame()
        memset(r.area, CANARY, len(self.area))
        r.free_count = count
        for i in range(<uint32_t>count):
            # Posted from below, sent from above: either way the first buffer comes first.
            r.free[i] = i if r.direction else count - 1 - i

    def _find_frame(self):
        """Find out whether header and frame each lie in one piece of memory, the common case."""
        cdef driver_ring *r = &self.ring
        cdef uint32_t i
        r.header_offset = r.pieces[0].offset
        if r.pieces[0].length < r.header_size:
            return
        if r.pieces[0].length > r.header_size:
            r.frame_offset = r.pieces[0].offset + r.header_size
            i = 1
        else:
            r.frame_offset = r.pieces[1].offset
            i = 2
        while i < r.piece_count:
            if r.pieces[i].offset != r.pieces[i - 1].offset + r.pieces[i - 1].length:
                return
            i += 1
        r.contiguous = True

    def __dealloc__(self):
        free(self.ring.pieces)
        free(self.ring.free)
        free(self.ring.in_flight)
        free(self.ring.described)
        free(self.ring.sequence)
        free(self.ring.offered)
        free(self.ring.descriptors_of)
        free(self.ring.table_entries)

    cdef int _check_alive(self) except -1:
        if self.area is None:
            raise ValueError("the ring was released")
        return 0

    def fault(self, number):
        """Return the error for something that the device did wrong, by its number in the C code."""
        cdef uint32_t length
        cdef uint32_t buffer = ring_read_used(&self.ring, &length)
        return DeviceError(
            f"{'receive' if self.ring.direction else 'transmit'} ring: {DEVICE_FAULTS[number]} "
            f"(near used entry {self.ring.next_used}: buffer {buffer}, {length} bytes; "
            f"{self.in_flight} buffers with the device)",
            "look at how the backend fills the used ring (virtio 1.3, 2.7.8, 2.8.6 and 5.1.6)")

    @property
    def resume_base(self):
        """From where a device goes on with all that was not given back: a base for VHOST_USER_SET_VRING_BASE.
        """
        cdef driver_ring *r = &self.ring
        cdef uint32_t position = r.next_used
        cdef uint16_t flags = r.used_flags
        cdef uint16_t _
        if not r.packed:
            return self.raw.used_index
        for _ in range(packed_used(r)):
            position += r.descriptors_of[<uint16_t>(second_word(r, position)[0] >> 32)]
            if position >= r.size:
                position -= r.size
                flags ^= TURN
        half = position | (WRAP if flags else 0)
        return half << 16 | half

    @property
    def size(self):
        """The queue size."""
        return self.ring.size

    @property
    def buffers(self):
        """How many buffers there are."""
        return self.ring.buffer_count

    @property
    def in_flight(self):
        """How many buffers the device has."""
        return ring_in_flight(&self.ring)

    @property
    def capacity(self):
        """Bytes of a buffer behind the virtio_net_hdr."""
        return self.ring.capacity - self.ring.header_size

    @property
    def header_size(self):
        """Bytes of the virtio_net_hdr: 12, or 10 for a legacy device without VIRTIO_NET_F_MRG_RXBUF."""
        return self.ring.header_size

    @property
    def next_used(self):
        """The used index up to which buffers were taken back."""
        return self.ring.next_used

    @property
    def kicks(self):
        """How often the device was notified."""
        return self.ring.kicks

    @property
    def calls(self):
        """How often a notification from the device was waited for and came."""
        return self.ring.calls

    def post(self, count=None):
        """Offer free receive buffers to the device: `count`, or all of them.

        Returns:
            How many were offered.
        """
        cdef driver_ring *r = &self.ring
        cdef uint16_t left = r.free_count
        self._check_alive()
        if not r.direction:
            raise ValueError("the device only reads the buffers of a transmit ring")
        if count is not None:
            left = min(left, count)
        ring_post(r, left)
        return left

    def kick(self):
        """Notify the device, whether it asked for that or not."""
        ring_kick(&self.ring)

    def buffer_address(self, buffer):
        """Return the guest address of a buffer's first byte.

        Raises:
            IndexError: there is no such buffer.
        """
        if not 0 <= buffer < self.ring.buffer_count:
            raise IndexError(f"buffer {buffer} of {self.ring.buffer_count}")
        return self.ring.area_address + <uint64_t>buffer * self.ring.spacing + self.ring.pieces[0].offset

    def check_guards(self):
        """Check that nobody has written to the memory between the buffers.

        If the queue pair has `verify_unwritten`, receive buffers that the device has are looked at as
        well: it may have written to those that it will give back next, so let there be no traffic.

        Raises:
            DeviceError: somebody has.
        """
        cdef driver_ring *r = &self.ring
        cdef uint64_t share
        cdef uint32_t b
        gaps = self._gaps()
        for b in range(r.buffer_count):
            share = <uint64_t>b * r.spacing
            for start, end in gaps:
                self._check_painted(share + <uint64_t>start, share + <uint64_t>end)
            if r.verify_unwritten and r.in_flight[b] and not is_unwritten(r, b, r.header_size):
                raise DeviceError(
                    f"buffer {b} at guest address {self.buffer_address(b):#x} was written, and not given "
                    "back", "look at what still owns buffers that were given back before")
        self._check_painted(<uint64_t>r.buffer_count * r.spacing, len(self.area))

    def _gaps(self):
        """Return where the parts of a buffer's share that no piece covers start and end."""
        cdef uint32_t i
        pieces = sorted((self.ring.pieces[i].offset, self.ring.pieces[i].length)
                        for i in range(self.ring.piece_count))
        ends = [0] + [offset + length for offset, length in pieces]
        starts = [offset for offset, _ in pieces] + [self.ring.spacing]
        return list(zip(ends, starts, strict=True))

    cdef int _check_painted(self, uint64_t start, uint64_t end) except -1:
        cdef driver_ring *r = &self.ring
        cdef uint64_t i
        if start >= end or is_painted(r.area + start, end - start):
            return 0
        i = next(at for at in range(start, end) if r.area[at] != CANARY)
        raise DeviceError(
            f"guest address {r.area_address + i:#x} was written, byte {i % r.spacing} of buffer "
            f"{i // r.spacing}'s share, which lies between buffers",
            "look at where the backend writes: before the header, or behind the buffer's end")

    def release(self):
        """Let go of the memory, so that a mapping behind it can be closed; the ring is dead then."""
        if self.raw is not None:
            self.raw.release()
        self.parts = None
        self.area = None
        self.tables = None
