# cython: language_level=3
"""What split and packed virtqueues have in common; see ring.pxd.

The first broken rule stops a ring for good: ``error`` is set, and what was popped before it remains valid.
"""

from libc.stdint cimport uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memmove
from posix.unistd cimport write

from guestwire.datapath.abi cimport DESCRIPTOR_F_WRITE, used_element
from guestwire.datapath.window cimport Window


cdef uint32_t first_used_segment(const burst *b) noexcept nogil:
    """Return the index of the first segment that chains in a burst use, or `segment_end`."""
    cdef uint32_t i
    for i in range(b.first, b.end):
        if b.chains[i].segment_count > 1:
            return b.chains[i].first_segment
    return b.segment_end


cdef void move_segments(burst *b) noexcept nogil:
    """Move the segments that are left to the front."""
    cdef uint32_t base = first_used_segment(b)
    cdef uint32_t i
    memmove(&b.segments[0], &b.segments[base], (b.segment_end - base) * sizeof(segment))
    for i in range(b.first, b.end):
        if b.chains[i].segment_count > 1:
            b.chains[i].first_segment -= base
    b.segment_end -= base


cdef void make_room(burst *b) noexcept nogil:
    """Move what is left of a burst to its front."""
    if b.first == 0:
        return
    if b.segment_end:
        move_segments(b)
    memmove(&b.chains[0], &b.chains[b.first], (b.end - b.first) * sizeof(chain))
    b.end -= b.first
    b.first = 0


cdef void ring_call(ring *r) noexcept nogil:
    """Signal the driver's call eventfd."""
    cdef uint64_t one = 1
    if r.call_fd >= 0:
        # A full eventfd counter (EAGAIN) means that the driver has a call pending: nothing is lost.
        write(r.call_fd, &one, sizeof(one))
        r.calls += 1
    else:
        r.call_owed = True


cdef class Ring:
    """The device side of one virtqueue in a guest's window: a `SplitRing` or a `PackedRing`.

    The methods are for tests and tools; the datapath uses the C functions. Errors of the driver are
    reported by ``error``, not raised. A chain is named by its head: the index of its first descriptor, or
    in a packed ring its buffer id.
    """

    def __cinit__(self):
        self.scratch = <burst *>calloc(1, sizeof(burst))
        if self.scratch == NULL:
            raise MemoryError

    def __dealloc__(self):
        if self.ring != NULL:
            free(self.ring.in_flight)
        free(self.ring)
        free(self.scratch)

    cdef uint64_t place(self, Window window, str name, offset, length, alignment) except 0:
        """Check where one of the ring's areas lies; return its address."""
        if offset % alignment:
            raise ValueError(f"the {name} at {offset:#x} is not aligned to {alignment} bytes")
        if not 0 < offset <= offset + length <= window.w.bounce_offset:
            raise ValueError(f"the {name} at {offset:#x} lies outside the guest's memory")
        return <uint64_t>(window.w.base + <uint64_t>offset)

    cdef int start(self, Window window, size, receive, event_index, indirect, kick_fd, call_fd) except -1:
        """Set what rings of both kinds have."""
        cdef ring *r = self.ring
        self.window = window
        r.window = &window.w
        free(r.in_flight)
        r.in_flight = <uint16_t *>calloc(size, sizeof(uint16_t))
        if r.in_flight == NULL:
            raise MemoryError
        r.size = size
        r.direction = DESCRIPTOR_F_WRITE if receive else 0
        r.event_index = event_index
        r.indirect = indirect
        r.kick_fd, r.call_fd = kick_fd, call_fd
        return 0

    @property
    def error(self):
        """What the driver did wrong: ``(RingError number, head, offending value)``, or None."""
        if self.ring.error == RING_OK:
            return None
        return self.ring.error, self.ring.error_head, self.ring.error_value

    @property
    def base(self):
        """Where the next device goes on, exactly: what GET_VRING_BASE reports. A ring of either kind says."""
        raise NotImplementedError

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
        cdef const segment *segments
        cdef uint32_t i, j
        b.first = b.end = b.segment_end = 0
        ring_pop(self.ring, b, most)
        chains = []
        for i in range(b.end):
            segments = chain_segments(b, &b.chains[i])
            buffers = [(segments[j].offset, segments[j].length) for j in range(b.chains[i].segment_count)]
            chains.append((b.chains[i].head, buffers))
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
        ring_push(self.ring, &element, 1)

    def publish(self):
        """Let the driver see what was pushed; return whether it wants to be called."""
        return bool(ring_publish(self.ring))

    def call(self):
        """Signal the driver's call eventfd."""
        ring_call(self.ring)

    def enable_notifications(self):
        """Ask for a kick at the next available buffer; return whether one is there already."""
        return bool(ring_enable_notifications(self.ring))

    def disable_notifications(self):
        """Tell the driver that kicks are not needed."""
        ring_disable_notifications(self.ring)
