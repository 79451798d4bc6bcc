"""What split and packed virtqueues have in common: chains, bursts of them, and a ring's verbs."""

from libc.stdint cimport uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy

from guestwire.datapath.abi cimport used_element
from guestwire.datapath.atomics cimport fence_seq_cst
from guestwire.datapath.window cimport Window, window

cdef enum:
    BURST_CHAINS = 64       # chains taken from a ring in one go
    BURST_SEGMENTS = 1024   # buffers that those of several may have together, and so one chain at most

cdef struct segment:
    uint64_t offset         # in the window
    uint32_t length
    uint32_t reserved

# It begins as a segment does: a chain of one, the common kind, is its own segment (see `chain_segments`; we
# are built with -fno-strict-aliasing).
cdef struct chain:
    uint64_t offset         # of the first segment
    uint32_t length         # of all segments
    uint16_t head           # index of the first descriptor; of a packed ring the buffer id
    uint16_t segment_count
    uint32_t first_segment  # index in the burst's segments, if there are several

cdef struct burst:
    # Chains taken from a ring that nobody has consumed yet: chains[first:end].
    uint32_t first
    uint32_t end
    uint32_t segment_end
    uint32_t reserved
    chain chains[BURST_CHAINS]
    segment segments[BURST_SEGMENTS]

# Numbers of guestwire.virtio.ring_errors.RingError.
cdef enum:
    RING_OK = 0
    AVAILABLE_INDEX = 1
    HEAD_OUT_OF_RANGE = 2
    HEAD_IN_FLIGHT = 3
    NEXT_OUT_OF_RANGE = 4
    CHAIN_TOO_LONG = 5
    CHAIN_TOO_LARGE = 6
    ADDRESS_OUTSIDE_MEMORY = 7
    ZERO_LENGTH = 8
    DIRECTION = 9
    INDIRECT_NOT_NEGOTIATED = 10
    INDIRECT_NESTED = 11
    INDIRECT_WITH_NEXT = 12
    INDIRECT_LENGTH = 13
    DESCRIPTOR_IN_FLIGHT = 14

cdef enum:
    BURST_FULL = 0xFFFF     # not the driver's fault: the next burst has room for the chain

# A struct of this kind begins a split_ring and a packed_ring.
cdef struct ring:
    # The verbs of its kind; called by the functions below.
    uint32_t (*pop)(ring *self, burst *b, uint32_t most) noexcept nogil
    void (*push)(ring *self, const used_element *elements, uint32_t count) noexcept nogil
    bint (*show)(ring *self) noexcept nogil
    bint (*wants_call)(const ring *self) noexcept nogil
    bint (*enable_notifications)(ring *self) noexcept nogil
    void (*disable_notifications)(ring *self) noexcept nogil
    uint32_t (*waiting)(const ring *self) noexcept nogil
    uint32_t (*read_again)(ring *self, uint16_t head, burst *b, chain *c) noexcept nogil
    # Set when the ring starts, then only read.
    const window *window
    uint16_t *in_flight         # by head: descriptors of a chain that was popped and not pushed
    uint16_t size
    uint16_t direction          # DESCRIPTOR_F_WRITE for a receive ring, 0 for a transmit ring
    bint event_index            # VIRTIO_F_EVENT_IDX
    bint indirect               # VIRTIO_F_INDIRECT_DESC
    int kick_fd                 # -1: none
    int call_fd                 # -1: none
    # The worker's.
    uint32_t region_hint
    uint32_t in_flight_count    # chains
    uint32_t error              # RingError, 0: none
    uint32_t error_head
    uint64_t error_value        # the offending index, address or length
    uint64_t calls
    bint call_owed              # the driver wants a call, and there is no descriptor to give it

# A chain's second word is its length, head and segment_count, in this order from its lowest bit. Loops over
# chains of one buffer read and write it in one access.
cdef enum:
    CHAIN_HEAD_SHIFT = 32

cdef extern from *:
    """
    #define GUESTWIRE_ONE_BUFFER (UINT64_C(1) << 48)
    """
    const uint64_t ONE_BUFFER "GUESTWIRE_ONE_BUFFER"    # a segment_count of 1 in that word

cdef inline void put_chain_of_one(chain *c, uint64_t offset, uint64_t word) noexcept nogil:
    c.offset = offset
    memcpy(&c.length, &word, sizeof(word))


cdef inline uint64_t chain_word(const chain *c) noexcept nogil:
    cdef uint64_t word
    memcpy(&word, &c.length, sizeof(word))
    return word


cdef inline const segment *chain_segments(const burst *b, const chain *c) noexcept nogil:
    """Return the segments of a chain in a burst."""
    if c.segment_count == 1:
        return <const segment *>c
    return &b.segments[c.first_segment]


cdef inline void put_element(used_element *element, uint32_t id, uint32_t length) noexcept nogil:
    """Write an element in one store: who reads it in one load need not wait until it is in the cache."""
    cdef uint64_t word = <uint64_t>length << 32 | id
    memcpy(element, &word, sizeof(word))


cdef inline uint32_t ring_broken(ring *r, uint32_t error, uint32_t head, uint64_t value) noexcept nogil:
    """Stop the ring for good at the first broken rule; returns `error`."""
    r.error = error
    r.error_head = head
    r.error_value = value
    return error


cdef inline uint32_t ring_pop(ring *r, burst *b, uint32_t most) noexcept nogil:
    """Take up to `most` chains that the driver made available, behind those left in `b`.

    Returns how many were taken. At a broken rule it stops there and sets the ring's error.
    """
    return r.pop(r, b, most)


cdef inline void ring_push(ring *r, const used_element *elements, uint32_t count) noexcept nogil:
    """Return chains, by their heads; the driver sees them at the next ring_show."""
    r.push(r, elements, count)


cdef inline bint ring_show(ring *r) noexcept nogil:
    """Let the driver see what was pushed; return whether that is anything."""
    return r.show(r)


cdef inline bint ring_wants_call(const ring *r) noexcept nogil:
    """Return whether the driver wants to be called for what it was shown last.

    A full fence comes between: what it was shown is visible before we read what it wants. It pairs with the
    driver's between asking for calls and looking at the ring once more.
    """
    return r.wants_call(r)


cdef inline bint ring_publish(ring *r) noexcept nogil:
    """Let the driver see what was pushed; return whether it wants to be called for that."""
    if not ring_show(r):
        return False
    fence_seq_cst()
    return ring_wants_call(r)


cdef inline bint ring_enable_notifications(ring *r) noexcept nogil:
    """Ask for a kick at the next available buffer; return whether one is there already."""
    return r.enable_notifications(r)


cdef inline void ring_disable_notifications(ring *r) noexcept nogil:
    """Tell the driver that kicks are not needed: we poll."""
    r.disable_notifications(r)


cdef inline uint32_t ring_waiting(const ring *r) noexcept nogil:
    """Return how many chains the driver seems to have available: a hint, which nothing may rely on."""
    return r.waiting(r)


cdef inline uint32_t ring_read_again(ring *r, uint16_t head, burst *b, chain *c) noexcept nogil:
    """Read a chain in flight once more, behind those in `b`; returns RING_OK, or why it cannot be."""
    return r.read_again(r, head, b, c)


cdef void ring_call(ring *r) noexcept nogil
cdef void make_room(burst *b) noexcept nogil
cdef uint32_t first_used_segment(const burst *b) noexcept nogil

cdef class Ring:
    cdef ring *ring                     # owned by the subclass
    cdef burst *scratch
    cdef readonly Window window
    cdef readonly object stale_base     # the base that was given, if the ring itself tells another; else None
    cdef uint64_t place(self, Window window, str name, offset, length, alignment) except 0
    cdef int start(self, Window window, size, receive, event_index, indirect, kick_fd, call_fd) except -1
