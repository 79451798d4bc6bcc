"""The device side of one split virtqueue (virtio 1.3, 2.7)."""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from guestwire.datapath.abi cimport split_available, split_descriptor, split_used, used_element
from guestwire.datapath.window cimport Window, window

cdef enum:
    BURST_CHAINS = 64       # chains taken from a ring in one go
    BURST_SEGMENTS = 1024   # buffers they may have together, and so one chain at most

cdef struct segment:
    uint64_t offset         # in the window
    uint32_t length
    uint32_t reserved

cdef struct chain:
    uint64_t offset         # of the first segment: all that the common chain of one segment needs
    uint32_t first_length
    uint32_t length         # of all segments
    uint16_t head
    uint16_t segment_count
    uint32_t first_segment  # index in the burst's segments

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

cdef struct split_ring:
    # Set when the ring starts, then only read.
    const split_descriptor *descriptors
    const split_available *available
    split_used *used
    const window *window
    uint8_t *in_flight          # by head: popped and not pushed
    uint16_t size
    uint16_t mask
    uint16_t direction          # DESCRIPTOR_F_WRITE for a receive ring, 0 for a transmit ring
    bint event_index            # VIRTIO_F_EVENT_IDX
    bint indirect               # VIRTIO_F_INDIRECT_DESC
    int kick_fd                 # -1: none
    int call_fd                 # -1: none
    # The worker's.
    uint32_t region_hint
    uint16_t last_available     # the next entry of the available ring to read
    uint16_t next_used          # the next entry of the used ring to write
    uint16_t published_used     # the used index the driver can see
    uint16_t in_flight_count
    uint32_t error              # RingError, 0: none
    uint32_t error_head
    uint64_t error_value        # the offending index, address or length
    uint64_t kicks
    uint64_t calls
    bint call_owed              # the driver wants a call, and there is no descriptor to give it

cdef inline uint32_t ring_broken(
    split_ring *ring, uint32_t error, uint32_t head, uint64_t value
) noexcept nogil:
    """Stop the ring for good at the first broken rule; returns `error`."""
    ring.error = error
    ring.error_head = head
    ring.error_value = value
    return error

cdef uint32_t split_ring_pop(split_ring *ring, burst *b, uint32_t most) noexcept nogil
cdef void split_ring_push(split_ring *ring, const used_element *elements, uint32_t count) noexcept nogil
cdef bint split_ring_publish(split_ring *ring) noexcept nogil
cdef void split_ring_call(split_ring *ring) noexcept nogil
cdef void split_ring_disable_notifications(split_ring *ring) noexcept nogil
cdef bint split_ring_enable_notifications(split_ring *ring) noexcept nogil

cdef class SplitRing:
    cdef split_ring ring
    cdef burst *scratch
    cdef readonly Window window
