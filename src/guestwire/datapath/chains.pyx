# cython: language_level=3
"""Reading chains of descriptors, which are the driver's (virtio 1.3, 2.7.5).

Each descriptor is read once into locals, checked, and only the result is kept; the order of the checks is
that of guestwire.virtio.ring_errors.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from guestwire.datapath.abi cimport (
    DESCRIPTOR_F_INDIRECT,
    DESCRIPTOR_F_NEXT,
    DESCRIPTOR_F_WRITE,
    split_descriptor,
)
from guestwire.datapath.atomics cimport load_relaxed_u16, load_relaxed_u64
from guestwire.datapath.split_ring cimport (
    ADDRESS_OUTSIDE_MEMORY,
    BURST_SEGMENTS,
    CHAIN_TOO_LARGE,
    CHAIN_TOO_LONG,
    DIRECTION,
    HEAD_IN_FLIGHT,
    HEAD_OUT_OF_RANGE,
    INDIRECT_LENGTH,
    INDIRECT_NESTED,
    INDIRECT_NOT_NEGOTIATED,
    INDIRECT_WITH_NEXT,
    NEXT_OUT_OF_RANGE,
    RING_OK,
    ZERO_LENGTH,
    burst,
    chain,
    ring_broken,
    segment,
    split_ring,
)
from guestwire.datapath.window cimport region, window_translate


cdef inline split_descriptor read_descriptor(const split_descriptor *d) noexcept nogil:
    """Read a descriptor once: two loads, so that the driver cannot change a field between two uses."""
    cdef const uint64_t *words = <const uint64_t *>d
    cdef uint64_t low = load_relaxed_u64(&words[0])
    cdef uint64_t high = load_relaxed_u64(&words[1])
    cdef split_descriptor copy
    copy.address = low
    copy.length = <uint32_t>high
    copy.flags = <uint16_t>(high >> 32)
    copy.next = <uint16_t>(high >> 48)
    return copy


cdef enum:
    BURST_FULL = 0xFFFF         # not the driver's fault: the next burst has room for the chain


cdef inline uint32_t read_buffer(
    split_ring *ring, uint16_t head, const split_descriptor *d, burst *b, chain *c
) noexcept nogil:
    """Check one buffer descriptor and append it to the chain."""
    cdef uint64_t offset
    cdef segment *s
    if c.segment_count >= ring.size or c.segment_count >= BURST_SEGMENTS:
        return ring_broken(ring, CHAIN_TOO_LONG, head, c.segment_count)
    if c.first_segment + c.segment_count >= BURST_SEGMENTS:
        return BURST_FULL
    if d.flags & DESCRIPTOR_F_WRITE != ring.direction:
        return ring_broken(ring, DIRECTION, head, d.flags)
    if d.length == 0:
        return ring_broken(ring, ZERO_LENGTH, head, d.address)
    offset = window_translate(ring.window, &ring.region_hint, d.address, d.length)
    if offset == 0:
        return ring_broken(ring, ADDRESS_OUTSIDE_MEMORY, head, d.address)
    if c.length + d.length < c.length:
        return ring_broken(ring, CHAIN_TOO_LARGE, head, d.length)
    s = &b.segments[c.first_segment + c.segment_count]
    s.offset = offset
    s.length = d.length
    c.segment_count += 1
    c.length += d.length
    return RING_OK


cdef uint32_t read_table(
    split_ring *ring, uint16_t head, const split_descriptor *table, uint32_t entries,
    uint32_t index, bint nested, burst *b, chain *c
) noexcept nogil:
    """Follow a chain through `table` from `index`; one level of recursion for an indirect table.

    It ends: each step appends a buffer, and read_buffer refuses more buffers than the queue size.
    """
    cdef split_descriptor d
    cdef uint64_t offset
    cdef uint32_t error
    while True:
        d = read_descriptor(&table[index])
        if d.flags & DESCRIPTOR_F_INDIRECT:
            if not ring.indirect:
                return ring_broken(ring, INDIRECT_NOT_NEGOTIATED, head, index)
            if nested:
                return ring_broken(ring, INDIRECT_NESTED, head, index)
            if d.flags & DESCRIPTOR_F_NEXT:
                return ring_broken(ring, INDIRECT_WITH_NEXT, head, index)
            if d.length == 0 or d.length % sizeof(split_descriptor):
                return ring_broken(ring, INDIRECT_LENGTH, head, d.length)
            offset = window_translate(ring.window, &ring.region_hint, d.address, d.length)
            if offset == 0:
                return ring_broken(ring, ADDRESS_OUTSIDE_MEMORY, head, d.address)
            return read_table(
                ring, head, <const split_descriptor *>(ring.window.base + offset),
                d.length // sizeof(split_descriptor), 0, True, b, c)
        error = read_buffer(ring, head, &d, b, c)
        if error:
            return error
        if not d.flags & DESCRIPTOR_F_NEXT:
            return RING_OK
        if d.next >= entries:
            return ring_broken(ring, NEXT_OUT_OF_RANGE, head, d.next)
        index = d.next


cdef uint32_t read_chain(split_ring *ring, uint16_t head, burst *b, chain *c) noexcept nogil:
    """Read and check the chain at `head` into `c`, its segments behind those in `b`.

    Returns RING_OK, BURST_FULL, or the RingError, which is then the ring's as well.
    """
    cdef uint32_t error
    c.head = head
    c.length = 0
    c.segment_count = 0
    c.first_segment = b.segment_end
    error = read_table(ring, head, ring.descriptors, ring.size, head, False, b, c)
    if error == RING_OK:
        c.offset = b.segments[c.first_segment].offset
        c.first_length = b.segments[c.first_segment].length
    return error


cdef uint32_t read_chains(split_ring *ring, burst *b, uint32_t count) noexcept nogil:
    """Read `count` chains behind those in `b`; returns how many could be."""
    # In locals: a store to in_flight might change anything else, for all that the compiler knows.
    cdef const split_descriptor *descriptors = ring.descriptors
    cdef const uint16_t *entries = ring.available.ring
    cdef const region *r = &ring.window.regions[ring.region_hint]
    cdef uint64_t region_address = r.guest_address
    cdef uint64_t region_size = r.size
    cdef uint64_t region_offset = r.offset
    cdef uint8_t *in_flight = ring.in_flight
    cdef uint16_t direction = ring.direction
    cdef uint32_t size = ring.size
    cdef uint32_t mask = ring.mask
    cdef uint32_t position = ring.last_available
    cdef uint32_t segment_end = b.segment_end
    cdef chain *c = &b.chains[b.end]
    cdef uint32_t i, head
    cdef uint64_t distance
    cdef split_descriptor d
    for i in range(count):
        head = load_relaxed_u16(&entries[position & mask])
        if head >= size:
            ring_broken(ring, HEAD_OUT_OF_RANGE, head, position & mask)
            break
        if in_flight[head]:
            ring_broken(ring, HEAD_IN_FLIGHT, head, position & mask)
            break
        d = read_descriptor(&descriptors[head])
        distance = d.address - region_address
        if (d.flags == direction and d.length and segment_end < BURST_SEGMENTS
                and distance < region_size and d.length <= region_size - distance):
            # The common chain is one buffer in the region of the last one: no walk, no search.
            c.offset = region_offset + distance
            c.first_length = c.length = d.length
            c.head = head
            c.segment_count = 1
            c.first_segment = segment_end
            b.segments[segment_end].offset = region_offset + distance
            b.segments[segment_end].length = d.length
            segment_end += 1
        else:
            b.segment_end = segment_end
            if read_chain(ring, head, b, c):
                break
            segment_end += c.segment_count
            r = &ring.window.regions[ring.region_hint]
            region_address, region_size, region_offset = r.guest_address, r.size, r.offset
        in_flight[head] = 1
        position += 1
        c += 1
    else:
        i = count
    b.segment_end = segment_end
    return i
