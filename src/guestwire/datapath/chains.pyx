# cython: language_level=3
"""Reading the chains of a split ring, whose descriptors are the driver's (virtio 1.3, 2.7.5).

Each descriptor is read once into locals, checked, and only the result is kept; the order of the checks is
that of guestwire.virtio.ring_errors.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from guestwire.datapath.abi cimport (
    DESCRIPTOR_F_INDIRECT,
    DESCRIPTOR_F_NEXT,
    split_descriptor,
)
from guestwire.datapath.atomics cimport load_relaxed_u16, load_relaxed_u64
from guestwire.datapath.branches cimport unlikely
from guestwire.datapath.ring cimport (
    CHAIN_HEAD_SHIFT,
    HEAD_IN_FLIGHT,
    HEAD_OUT_OF_RANGE,
    INDIRECT_NESTED,
    INDIRECT_NOT_NEGOTIATED,
    INDIRECT_WITH_NEXT,
    NEXT_OUT_OF_RANGE,
    ONE_BUFFER,
    RING_OK,
    burst,
    chain,
    put_chain_of_one,
    ring_broken,
)
from guestwire.datapath.split_ring cimport split_ring
from guestwire.datapath.window cimport near_holds, near_region, window_near


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
        error = read_buffer(
            r, head, d.address, d.length, table_flags(r, d.flags) if nested else d.flags, b, c)
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


cdef uint32_t read_common_chains(split_ring *ring, burst *b, uint32_t most) noexcept nogil:
    """Read chains of one buffer in the region of the last one, up to the first other one; return how many.

    Most chains are of this kind, and need neither a walk nor a search.
    """
    # In locals: a store to in_flight might change anything else, for all that the compiler knows.
    cdef const split_descriptor *descriptors = ring.descriptors
    cdef const uint16_t *entries = ring.available.ring
    cdef near_region near = window_near(ring.common.window, ring.common.region_hint)
    cdef const uint8_t *buffers = ring.common.window.base + near.offset
    cdef uint16_t *in_flight = ring.common.in_flight
    cdef uint16_t direction = ring.common.direction
    cdef uint32_t size = ring.common.size
    cdef uint32_t mask = ring.mask
    cdef uint32_t position = ring.last_available
    cdef chain *c = &b.chains[b.end]
    cdef uint32_t i
    cdef uint64_t head, distance
    cdef split_descriptor d
    for i in range(most):
        head = load_relaxed_u16(&entries[(position + i) & mask])
        if unlikely(head >= size or in_flight[head]):
            break
        d = read_descriptor(&descriptors[head])
        if unlikely(d.flags != direction):
            break
        distance = d.address - near.address
        if unlikely(not near_holds(&near, distance, d.length)):
            break
        put_chain_of_one(&c[i], near.offset + distance, ONE_BUFFER | head << CHAIN_HEAD_SHIFT | d.length)
        in_flight[head] = 1
        if direction:
            prefetch_frame(buffers + distance)
    else:
        i = most
    b.end += i
    ring.last_available += i
    return i


cdef bint read_any_chain(split_ring *ring, burst *b) noexcept nogil:
    """Read the next chain; returns False if the burst is full or a rule was broken."""
    cdef uint32_t position = ring.last_available & ring.mask
    cdef uint32_t head = load_relaxed_u16(&ring.available.ring[position])
    cdef chain *c = &b.chains[b.end]
    if head >= ring.common.size:
        ring_broken(&ring.common, HEAD_OUT_OF_RANGE, head, position)
        return False
    if ring.common.in_flight[head]:
        ring_broken(&ring.common, HEAD_IN_FLIGHT, head, position)
        return False
    if read_chain(ring, head, b, c):
        return False
    ring.common.in_flight[head] = 1
    add_chain(b, c)
    ring.last_available += 1
    return True


cdef uint32_t read_chains(split_ring *ring, burst *b, uint32_t count) noexcept nogil:
    """Read `count` chains behind those in `b`; returns how many could be."""
    cdef uint32_t taken = read_common_chains(ring, b, count)
    while taken < count and read_any_chain(ring, b):
        taken += 1
        if taken < count:
            taken += read_common_chains(ring, b, count - taken)
    return taken
