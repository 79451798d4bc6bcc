# cython: language_level=3
"""The device side of one split virtqueue (virtio 1.3, 2.7).

The driver owns the descriptor table and the available ring, we own the used ring. The first broken rule
stops the ring for good: ``error`` is set, and what was popped before it remains valid.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memmove
from posix.unistd cimport write

from guestwire.datapath.abi cimport (
    AVAILABLE_F_NO_INTERRUPT,
    DESCRIPTOR_F_WRITE,
    USED_F_NO_NOTIFY,
    split_available,
    split_descriptor,
    split_used,
    used_element,
)
from guestwire.datapath.atomics cimport (
    fence_seq_cst,
    load_acquire_u16,
    load_relaxed_u16,
    store_relaxed_u16,
    store_release_u16,
)
from guestwire.datapath.chains cimport read_chains
from guestwire.datapath.window cimport Window


cdef inline void make_room(burst *b) noexcept nogil:
    """Move what is left of a burst to its front."""
    cdef uint32_t count = b.end - b.first
    cdef uint32_t i, base
    if b.first == 0:
        return
    if count == 0:
        b.segment_end = 0
    else:
        memmove(&b.chains[0], &b.chains[b.first], count * sizeof(chain))
        base = b.chains[0].first_segment
        memmove(&b.segments[0], &b.segments[base], (b.segment_end - base) * sizeof(segment))
        b.segment_end -= base
        for i in range(count):
            b.chains[i].first_segment -= base
    b.first = 0
    b.end = count


cdef uint32_t split_ring_pop(split_ring *ring, burst *b, uint32_t most) noexcept nogil:
    """Take up to `most` chains that the driver made available, behind those left in `b`.

    Returns how many were taken. At a broken rule it stops there and sets the ring's error.
    """
    cdef uint16_t available
    cdef uint32_t waiting, taken
    if ring.error:
        return 0
    # Acquire: the entries and descriptors below are read after the index that announces them; pairs
    # with the driver's barrier before it stores the index (2.7.13.3).
    available = load_acquire_u16(&ring.available.index)
    waiting = <uint16_t>(available - ring.last_available)
    if waiting == 0:
        return 0
    if waiting > ring.size:
        ring_broken(ring, AVAILABLE_INDEX, ring.last_available, available)
        return 0
    make_room(b)
    if waiting > most:
        waiting = most
    if waiting > BURST_CHAINS - b.end:
        waiting = BURST_CHAINS - b.end
    taken = read_chains(ring, b, waiting)
    b.end += taken
    ring.in_flight_count += taken
    ring.last_available += taken
    return taken


cdef void split_ring_push(split_ring *ring, const used_element *elements, uint32_t count) noexcept nogil:
    """Write used elements; the driver sees them at the next split_ring_publish."""
    cdef used_element *used = ring.used.ring
    cdef uint8_t *in_flight = ring.in_flight
    cdef uint32_t mask = ring.mask
    cdef uint32_t next_used = ring.next_used
    cdef uint32_t i
    for i in range(count):
        used[(next_used + i) & mask] = elements[i]
        in_flight[elements[i].id] = 0
    ring.next_used += count
    ring.in_flight_count -= count


cdef bint split_ring_publish(split_ring *ring) noexcept nogil:
    """Let the driver see what was pushed; return whether it wants to be called for that (2.7.7, 2.7.10)."""
    cdef uint16_t old = ring.published_used
    cdef uint16_t event
    if ring.next_used == old:
        return False
    # Release: the elements and the frames in the buffers are visible before the index; pairs with the
    # driver's read barrier after it loads the index.
    store_release_u16(&ring.used.index, ring.next_used)
    ring.published_used = ring.next_used
    # Full fence: our index is visible before we read whether the driver wants a call; pairs with the
    # driver's full barrier between asking for calls and looking at the used index once more.
    fence_seq_cst()
    if ring.event_index:
        event = load_relaxed_u16(&ring.available.ring[ring.size])
        return <uint16_t>(ring.next_used - event - 1) < <uint16_t>(ring.next_used - old)
    return not load_relaxed_u16(&ring.available.flags) & AVAILABLE_F_NO_INTERRUPT


cdef void split_ring_call(split_ring *ring) noexcept nogil:
    """Signal the driver's call eventfd."""
    cdef uint64_t one = 1
    if ring.call_fd >= 0:
        # A full eventfd counter (EAGAIN) means that the driver has a call pending: nothing is lost.
        write(ring.call_fd, &one, sizeof(one))
        ring.calls += 1
    else:
        ring.call_owed = True


cdef void split_ring_disable_notifications(split_ring *ring) noexcept nogil:
    """Tell the driver that kicks are not needed: we poll. With EVENT_IDX, silence says the same."""
    if not ring.event_index:
        store_relaxed_u16(&ring.used.flags, USED_F_NO_NOTIFY)


cdef bint split_ring_enable_notifications(split_ring *ring) noexcept nogil:
    """Ask for a kick at the next available buffer; return whether one is there already."""
    if ring.event_index:
        store_relaxed_u16(<uint16_t *>&ring.used.ring[ring.size], ring.last_available)
    else:
        store_relaxed_u16(&ring.used.flags, 0)
    # Full fence: the wish is visible before we look once more; pairs with the driver's full barrier
    # between storing the available index and reading avail_event or flags (2.7.13.4.1).
    fence_seq_cst()
    return load_relaxed_u16(&ring.available.index) != ring.last_available


cdef class SplitRing:
    """The device side of one split virtqueue in a guest's window.

    Args:
        window: holds the guest's memory; must outlive the ring's last use.
        size: the queue size, a power of two up to 32,768.
        descriptors, available, used: window offsets of the three areas, aligned to 16, 2 and 4 bytes.
        base: the available index to start from (VHOST_USER_SET_VRING_BASE).
        receive: True for a ring whose buffers we write.
        event_index: VIRTIO_F_EVENT_IDX was negotiated.
        indirect: VIRTIO_F_INDIRECT_DESC was negotiated.
        kick_fd, call_fd: eventfds, borrowed; -1 for none.

    The methods are for tests and tools; the datapath uses the C functions. Errors of the driver are
    reported by ``error``, not raised.
    """

    def __cinit__(self):
        self.scratch = <burst *>calloc(1, sizeof(burst))
        if self.scratch == NULL:
            raise MemoryError

    def __init__(self, Window window, size, descriptors, available, used, *, base=0, receive,
                 event_index=False, indirect=True, kick_fd=-1, call_fd=-1):
        cdef split_ring *r = &self.ring
        cdef uint64_t limit = window.w.bounce_offset
        if not 1 <= size <= 32768 or size & (size - 1):
            raise ValueError(f"queue size {size} is not a power of two between 1 and 32,768")
        for name, offset, length, alignment in (
            ("descriptor table", descriptors, 16 * size, 16),
            ("available ring", available, 6 + 2 * size, 2),
            ("used ring", used, 6 + 8 * size, 4),
        ):
            if offset % alignment:
                raise ValueError(f"the {name} at {offset:#x} is not aligned to {alignment} bytes")
            if not 0 < offset <= offset + length <= limit:
                raise ValueError(f"the {name} at {offset:#x} lies outside the guest's memory")
        self.window = window
        r.window = &window.w
        r.descriptors = <const split_descriptor *>(window.w.base + <uint64_t>descriptors)
        r.available = <const split_available *>(window.w.base + <uint64_t>available)
        r.used = <split_used *>(window.w.base + <uint64_t>used)
        free(r.in_flight)
        r.in_flight = <uint8_t *>calloc(size, 1)
        if r.in_flight == NULL:
            raise MemoryError
        r.size = size
        r.mask = size - 1
        r.direction = DESCRIPTOR_F_WRITE if receive else 0
        r.event_index = event_index
        r.indirect = indirect
        r.kick_fd, r.call_fd = kick_fd, call_fd
        r.last_available = base
        r.next_used = r.published_used = load_acquire_u16(&r.used.index)
        split_ring_disable_notifications(r)

    def __dealloc__(self):
        free(self.ring.in_flight)
        free(self.scratch)

    @property
    def error(self):
        """What the driver did wrong: ``(RingError number, head, offending value)``, or None."""
        if self.ring.error == RING_OK:
            return None
        return self.ring.error, self.ring.error_head, self.ring.error_value

    @property
    def base(self):
        """The available index of the first chain that was not returned: what GET_VRING_BASE reports."""
        return <uint16_t>(self.ring.last_available - self.ring.in_flight_count)

    @property
    def used_index(self):
        """The index of the next used element to write."""
        return self.ring.next_used

    @property
    def in_flight(self):
        """How many chains were popped and not pushed."""
        return self.ring.in_flight_count

    @property
    def calls(self):
        """How often the driver was called."""
        return self.ring.calls

    def pop(self, most=BURST_CHAINS):
        """Take up to `most` available chains, at most 64.

        Returns a list of ``(head, [(window offset, length), ...])``.
        """
        cdef burst *b = self.scratch
        cdef uint32_t i, j
        b.first = b.end = b.segment_end = 0
        split_ring_pop(&self.ring, b, most)
        chains = []
        for i in range(b.end):
            c = b.chains[i]
            segments = [(b.segments[c.first_segment + j].offset, b.segments[c.first_segment + j].length)
                        for j in range(c.segment_count)]
            chains.append((c.head, segments))
        return chains

    def push(self, head, length):
        """Return the chain at `head` with `length` bytes written to it.

        Raises:
            ValueError: that chain is not in flight.
        """
        cdef used_element element
        if not 0 <= head < self.ring.size or not self.ring.in_flight[head]:
            raise ValueError(f"the chain at head {head} is not in flight")
        element.id, element.length = head, length
        split_ring_push(&self.ring, &element, 1)

    def publish(self):
        """Let the driver see what was pushed; return whether it wants to be called."""
        return bool(split_ring_publish(&self.ring))

    def call(self):
        """Signal the driver's call eventfd."""
        split_ring_call(&self.ring)

    def enable_notifications(self):
        """Ask for a kick at the next available buffer; return whether one is there already."""
        return bool(split_ring_enable_notifications(&self.ring))

    def disable_notifications(self):
        """Tell the driver that kicks are not needed."""
        split_ring_disable_notifications(&self.ring)
