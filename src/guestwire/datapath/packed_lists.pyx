# cython: language_level=3
"""Reading the lists of a packed ring, whose descriptors the driver made available (virtio 1.3, 2.8.21).

Each descriptor is read once into locals, checked, and only the result is used; the order of the checks is
that of guestwire.virtio.ring_errors. Copies of descriptors (`kept`) are checked whenever they are read again.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from guestwire.datapath.abi cimport (
    DESCRIPTOR_F_INDIRECT,
    DESCRIPTOR_F_NEXT,
    packed_descriptor,
)
from guestwire.datapath.atomics cimport load_acquire_u64, load_relaxed_u64
from guestwire.datapath.branches cimport unlikely
from guestwire.datapath.chains cimport (
    DESCRIPTOR_SIZE,
    add_chain,
    chain_begin,
    chain_end,
    find_table,
    prefetch_frame,
    read_buffer,
    table_flags,
)
from guestwire.datapath.ring cimport (
    CHAIN_HEAD_SHIFT,
    CHAIN_TOO_LONG,
    DESCRIPTOR_IN_FLIGHT,
    HEAD_IN_FLIGHT,
    HEAD_OUT_OF_RANGE,
    INDIRECT_NESTED,
    INDIRECT_NOT_NEGOTIATED,
    INDIRECT_WITH_NEXT,
    ONE_BUFFER,
    RING_OK,
    burst,
    chain,
    put_chain_of_one,
    ring,
    ring_broken,
)
from guestwire.datapath.window cimport near_holds, near_region, window_near


cdef inline packed_descriptor descriptor_from(uint64_t low, uint64_t high) noexcept nogil:
    cdef packed_descriptor copy
    copy.address = low
    copy.length = <uint32_t>high
    copy.id = <uint16_t>(high >> 32)
    copy.flags = <uint16_t>(high >> 48)
    return copy


cdef inline packed_descriptor read_descriptor(const packed_descriptor *d) noexcept nogil:
    """Read a descriptor once: two loads, so that the driver cannot change a field between two uses."""
    return descriptor_from(load_relaxed_u64(<const uint64_t *>d), load_relaxed_u64(second_word(d)))


# --- copies of descriptors in flight -----------------------------------------------------------------------

cdef inline void keep(packed_ring *r, uint32_t taken, const packed_descriptor *d) noexcept nogil:
    """Keep a copy of the next descriptor of a list, of which `taken` were kept before."""
    cdef uint32_t copy = r.kept_free[r.kept_free_count - 1 - taken]
    r.kept[copy] = d[0]
    if taken:
        r.kept_next[r.kept_free[r.kept_free_count - taken]] = copy


cdef inline void own_kept(packed_ring *r, uint16_t id, uint32_t count) noexcept nogil:
    """The list was read: its copies belong to its buffer id."""
    r.kept_first[id] = r.kept_free[r.kept_free_count - 1]
    r.kept_free_count -= count


cdef void keep_run(packed_ring *r, const packed_descriptor *d, const chain *c, uint32_t count) noexcept nogil:
    """Keep the descriptors of lists of one, as they are now: they are checked when they are read again."""
    cdef packed_descriptor copy
    cdef uint32_t i
    for i in range(count):
        copy = read_descriptor(&d[i])
        keep(r, 0, &copy)
        own_kept(r, c[i].head, 1)


# --- lists -----------------------------------------------------------------------------------------------

cdef uint32_t read_table(
    ring *self, uint32_t head, const packed_descriptor *d, burst *b, chain *c
) noexcept nogil:
    """Read the indirect table that a descriptor refers to: all of it, in order (2.8.7)."""
    cdef uint64_t offset = find_table(self, head, d.address, d.length)
    cdef const packed_descriptor *table = <const packed_descriptor *>(self.window.base + offset)
    cdef uint32_t i, error
    cdef packed_descriptor entry
    if offset == 0:
        return self.error
    for i in range(d.length // DESCRIPTOR_SIZE):
        entry = read_descriptor(&table[i])
        if entry.flags & DESCRIPTOR_F_INDIRECT:
            return ring_broken(self, INDIRECT_NESTED, head, i)
        error = read_buffer(
            self, head, entry.address, entry.length, table_flags(self, entry.flags), b, c)
        if error:
            return error
    return RING_OK


cdef uint32_t read_element(
    ring *self, uint32_t head, uint32_t taken, const packed_descriptor *d, burst *b, chain *c
) noexcept nogil:
    """Read what one descriptor of a list refers to; `taken` come before it."""
    if not d.flags & DESCRIPTOR_F_INDIRECT:
        return read_buffer(self, head, d.address, d.length, d.flags, b, c)
    if not self.indirect:
        return ring_broken(self, INDIRECT_NOT_NEGOTIATED, head, d.flags)
    if taken or d.flags & DESCRIPTOR_F_NEXT:
        return ring_broken(self, INDIRECT_WITH_NEXT, head, d.flags)
    return read_table(self, head, d, b, c)


cdef uint32_t read_list(packed_ring *r, packed_descriptor d, burst *b, chain *c) noexcept nogil:
    """Read the list that begins at next_available with `d` into `c`, its segments behind those in `b`.

    Returns over how many descriptors it extends; 0 if the burst is full or a rule was broken.
    """
    cdef ring *self = &r.common
    cdef uint32_t head = r.next_available
    cdef uint32_t position = head
    cdef uint32_t taken = 0
    chain_begin(c, 0, b)
    while True:
        if taken >= self.size:
            ring_broken(self, CHAIN_TOO_LONG, head, taken)
            return 0
        if r.descriptors_in_flight + taken >= self.size:
            ring_broken(self, DESCRIPTOR_IN_FLIGHT, head, position)
            return 0
        if read_element(self, head, taken, &d, b, c):
            return 0
        if r.kept != NULL:
            keep(r, taken, &d)
        taken += 1
        if not d.flags & DESCRIPTOR_F_NEXT:
            break
        position = position + 1 if position + 1 < self.size else 0
        d = read_descriptor(&r.descriptors[position])
    if d.id >= self.size:
        ring_broken(self, HEAD_OUT_OF_RANGE, head, d.id)
        return 0
    if self.in_flight[d.id]:
        ring_broken(self, HEAD_IN_FLIGHT, head, d.id)
        return 0
    c.head = d.id
    chain_end(c, b)
    return taken


cdef uint32_t read_list_again(ring *self, uint16_t head, burst *b, chain *c) noexcept nogil:
    # Checked anew: the memory may have changed since, and what is in an indirect table is still the driver's.
    cdef packed_ring *r = <packed_ring *>self
    cdef uint32_t taken, error
    cdef uint32_t copy = r.kept_first[head]
    chain_begin(c, head, b)
    for taken in range(self.in_flight[head]):
        error = read_element(self, head, taken, &r.kept[copy], b, c)
        if error:
            return error
        copy = r.kept_next[copy]
    chain_end(c, b)
    return RING_OK


cdef inline void advance_available(packed_ring *r, uint32_t descriptors, uint32_t lists) noexcept nogil:
    """Move next_available behind lists that were taken."""
    cdef uint32_t position = r.next_available + descriptors
    if position >= r.common.size:
        position -= r.common.size
        r.available_flags ^= TURN
    r.next_available = position
    r.descriptors_in_flight += descriptors
    r.seen -= min(r.seen, descriptors)
    r.seen_lists -= min(r.seen_lists, lists)


cdef uint32_t read_common_lists(packed_ring *r, burst *b, uint32_t most) noexcept nogil:
    """Read lists of one buffer in the region of the last one, up to the first other one or the ring's end.

    Most lists are of this kind, and need neither a walk nor a search.
    """
    # In locals: a store to in_flight might change anything else, for all that the compiler knows.
    cdef ring *self = &r.common
    cdef packed_descriptor *d = &r.descriptors[r.next_available]
    cdef near_region near = window_near(self.window, self.region_hint)
    cdef const uint8_t *buffers = self.window.base + near.offset
    cdef uint16_t direction = self.direction
    cdef uint16_t *in_flight = self.in_flight
    cdef uint32_t size = self.size
    # An available descriptor's second word without these is what a chain has: length and buffer id.
    cdef uint64_t flags = <uint64_t>(r.available_flags | direction) << 48
    cdef chain *c = &b.chains[b.end]
    cdef uint32_t i, id
    cdef uint64_t word, distance
    most = min(most, size - r.next_available, size - r.descriptors_in_flight)
    for i in range(most):
        # Acquire: the address is read after the flags, which make the descriptor available; pairs with the
        # driver's barrier before it stores those flags (2.8.21.1).
        word = load_acquire_u64(second_word(&d[i])) ^ flags
        id = word >> CHAIN_HEAD_SHIFT
        # With other flags it is larger than any.
        if unlikely(id >= size or in_flight[id]):
            break
        distance = load_relaxed_u64(<const uint64_t *>&d[i]) - near.address
        if unlikely(not near_holds(&near, distance, <uint32_t>word)):
            break
        put_chain_of_one(&c[i], near.offset + distance, word | ONE_BUFFER)
        in_flight[id] = 1
        if direction:
            prefetch_frame(buffers + distance)
    else:
        i = most
    if r.kept != NULL:
        keep_run(r, d, c, i)
    b.end += i
    advance_available(r, i, i)
    return i


cdef uint32_t read_any_list(packed_ring *r, burst *b) noexcept nogil:
    """Read the next list, if one is available; returns how many were read."""
    cdef packed_descriptor *d = &r.descriptors[r.next_available]
    cdef chain *c = &b.chains[b.end]
    cdef uint32_t taken
    # Acquire: as above, for the rest of the list.
    cdef uint64_t high = load_acquire_u64(second_word(d))
    if <uint16_t>(high >> 48) & TURN != r.available_flags:
        return 0
    taken = read_list(r, descriptor_from(load_relaxed_u64(<const uint64_t *>d), high), b, c)
    if taken == 0:
        return 0
    if r.kept != NULL:
        own_kept(r, c.head, taken)
    r.common.in_flight[c.head] = taken
    add_chain(b, c)
    advance_available(r, taken, 1)
    return 1


cdef uint32_t read_lists(packed_ring *r, burst *b, uint32_t most) noexcept nogil:
    cdef uint32_t count = read_common_lists(r, b, most)
    while count < most and read_any_list(r, b):
        count += 1
        if count < most:
            count += read_common_lists(r, b, most - count)
    return count
