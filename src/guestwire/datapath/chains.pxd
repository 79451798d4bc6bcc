"""Reading chains of descriptors: what rings of both kinds check, and the chains of a split ring."""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from guestwire.datapath.abi cimport DESCRIPTOR_F_WRITE, NET_HEADER
from guestwire.datapath.atomics cimport prefetch_write
from guestwire.datapath.ring cimport (
    ADDRESS_OUTSIDE_MEMORY,
    BURST_FULL,
    BURST_SEGMENTS,
    CHAIN_TOO_LARGE,
    CHAIN_TOO_LONG,
    DIRECTION,
    INDIRECT_LENGTH,
    RING_OK,
    ZERO_LENGTH,
    burst,
    chain,
    ring,
    ring_broken,
    segment,
)
from guestwire.datapath.split_ring cimport split_ring
from guestwire.datapath.window cimport window_translate

cdef enum:
    DESCRIPTOR_SIZE = 16        # of either kind


cdef inline uint32_t read_buffer(
    ring *r, uint32_t head, uint64_t address, uint32_t length, uint16_t flags, burst *b, chain *c
) noexcept nogil:
    """Check one buffer's descriptor and append it to the chain."""
    cdef uint64_t offset
    cdef segment *s
    if c.segment_count >= r.size or c.segment_count >= BURST_SEGMENTS:
        return ring_broken(r, CHAIN_TOO_LONG, head, c.segment_count)
    if c.first_segment + c.segment_count >= BURST_SEGMENTS:
        return BURST_FULL
    if flags & DESCRIPTOR_F_WRITE != r.direction:
        return ring_broken(r, DIRECTION, head, flags)
    if length == 0:
        return ring_broken(r, ZERO_LENGTH, head, address)
    offset = window_translate(r.window, &r.region_hint, address, length)
    if offset == 0:
        return ring_broken(r, ADDRESS_OUTSIDE_MEMORY, head, address)
    if c.length + length < c.length:
        return ring_broken(r, CHAIN_TOO_LARGE, head, length)
    s = &b.segments[c.first_segment + c.segment_count]
    s.offset = offset
    s.length = length
    c.segment_count += 1
    c.length += length
    return RING_OK


cdef inline uint16_t table_flags(const ring *r, uint16_t flags) noexcept nogil:
    """Return the flags of a descriptor in an indirect table, as read_buffer is to see them.

    On a transmit ring WRITE says nothing there: DPDK's driver for packed rings leaves it set. That is safe:
    a transmit ring's buffers are only ever read, and reading what the driver lets us write harms nobody.
    """
    return flags & r.direction


cdef inline uint64_t find_table(ring *r, uint32_t head, uint64_t address, uint32_t length) noexcept nogil:
    """Check where an indirect table lies; return its window offset, or 0 with the ring's error set."""
    cdef uint64_t offset
    if length == 0 or length % DESCRIPTOR_SIZE:
        ring_broken(r, INDIRECT_LENGTH, head, length)
        return 0
    offset = window_translate(r.window, &r.region_hint, address, length)
    if offset == 0:
        ring_broken(r, ADDRESS_OUTSIDE_MEMORY, head, address)
    return offset


cdef inline void chain_begin(chain *c, uint16_t head, const burst *b) noexcept nogil:
    """Begin a chain behind the segments in `b`."""
    c.head = head
    c.length = 0
    c.segment_count = 0
    c.first_segment = b.segment_end


cdef inline void chain_end(chain *c, const burst *b) noexcept nogil:
    """Complete a chain of which all segments are there."""
    c.offset = b.segments[c.first_segment].offset


cdef inline void add_chain(burst *b, const chain *c) noexcept nogil:
    """Have the chain behind the burst's last one be part of it, with its segments if it needs them."""
    b.end += 1
    if c.segment_count > 1:
        b.segment_end += c.segment_count


cdef inline void prefetch_frame(const uint8_t *buffer) noexcept nogil:
    """Ask for the line in which a frame will begin in a receive buffer, for writing.

    No store is to wait then until the guest's CPU gives it away: worth a quarter at 1,500 bytes.
    """
    prefetch_write(buffer + NET_HEADER)


cdef uint32_t read_chains(split_ring *ring, burst *b, uint32_t count) noexcept nogil
cdef uint32_t read_chain(split_ring *ring, uint16_t head, burst *b, chain *c) noexcept nogil
