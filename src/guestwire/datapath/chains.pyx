# cython: language_level=3
"""Reading the chains of a split ring, whose descriptors are the driver's (virtio 1.3, 2.7.5).

Each descriptor is read once into locals, checked, and only the result is kept; the order of the checks is
that of guestwire.virtio.ring_errors.
"""

from libc.stdint cimport uint16_t, uint32_t, uint64_t

from guestwire.datapath.abi cimport (
    DESCRIPTOR_F_INDIRECT,
    DESCRIPTOR_F_NEXT,
    split_descriptor,
)
from guestwire.datapath.atomics cimport load_relaxed_u16, load_relaxed_u64
from guestwire.datapath.ring cimport (
    BURST_SEGMENTS,
    HEAD_IN_FLIGHT,
    HEAD_OUT_OF_RANGE,
    INDIRECT_NESTED,
    INDIRECT_NOT_NEGOTIATED,
    INDIRECT_WITH_NEXT,
    NEXT_OUT_OF_RANGE,
    RING_OK,
    burst,
    chain,
    ring_broken,
)
from guestwire.datapath.split_ring cimport split_ring
from guestwire.datapath.window cimport region


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


cdef uint32_t read_table(
    ring *r, uint16_t head, const split_descriptor *table, uint32_t entries,
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
            if not r.indirect:
                return ring_broken(r, INDIRECT_NOT_NEGOTIATED, head, index)
            if nested:
                return ring_broken(r, INDIRECT_NESTED, head, index)
            if d.flags & DESCRIPTOR_F_NEXT:
                return ring_broken(r, INDIRECT_WITH_NEXT, head, index)
            offset = find_table(r, head, d.address, d.length)
            if offset == 0:
                return r.error
            return read_table(
                r, head, <const split_descriptor *>(r.window.base + offset),
                d.length // DESCRIPTOR_SIZE, 0, True, b, c)
        error = read_buffer(r, head, d.address, d.length, d.flags, b, c)
        if error:
            return error
        if not d.flags & DESCRIPTOR_F_NEXT:
            return RING_OK
        if d.next >= entries:
            return ring_broken(r, NEXT_OUT_OF_RANGE, head, d.next)
        index = d.next


cdef uint32_t read_chain(split_ring *ring, uint16_t head, burst *b, chain *c) noexcept nogil:
    """Read and check the chain at `head` into `c`, its segments behind those in `b`.

    Returns RING_OK, BURST_FULL, or the RingError, which is then the ring's as well.
    """
    cdef uint32_t error
    chain_begin(c, head, b)
    error = read_table(&ring.common, head, ring.descriptors, ring.common.size, head, False, b, c)
    if error == RING_OK:
        chain_end(c, b)
    return error


cdef uint32_t read_chains(split_ring *ring, burst *b, uint32_t count) noexcept nogil:
    """Read `count` chains behind those in `b`; returns how many could be."""
    # In locals: a store to in_flight might change anything else, for all that the compiler knows.
    cdef const split_descriptor *descriptors = ring.descriptors
    cdef const uint16_t *entries = ring.available.ring
    cdef const region *r = &ring.common.window.regions[ring.common.region_hint]
    cdef uint64_t region_address = r.guest_address
    cdef uint64_t region_size = r.size
    cdef uint64_t region_offset = r.offset
    cdef uint16_t *in_flight = ring.common.in_flight
    cdef uint16_t direction = ring.common.direction
    cdef uint32_t size = ring.common.size
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
            ring_broken(&ring.common, HEAD_OUT_OF_RANGE, head, position & mask)
            break
        if in_flight[head]:
            ring_broken(&ring.common, HEAD_IN_FLIGHT, head, position & mask)
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
            r = &ring.common.window.regions[ring.common.region_hint]
            region_address, region_size, region_offset = r.guest_address, r.size, r.offset
        in_flight[head] = 1
        position += 1
        c += 1
    else:
        i = count
    b.segment_end = segment_end
    return i
