"""The descriptors of a packed ring, and the lists that they form (virtio 1.3, 2.8)."""

from libc.stdint cimport uint16_t, uint32_t, uint64_t

from guestwire.datapath.abi cimport (
    DESCRIPTOR_F_AVAIL,
    DESCRIPTOR_F_USED,
    packed_descriptor,
)
from guestwire.datapath.atomics cimport load_acquire_u64
from guestwire.datapath.packed_ring cimport packed_ring
from guestwire.datapath.ring cimport burst, chain, ring

cdef enum:
    TURN = DESCRIPTOR_F_AVAIL | DESCRIPTOR_F_USED


cdef inline uint64_t *second_word(const packed_descriptor *d) noexcept nogil:
    """Return where a descriptor's length, id and flags are."""
    return <uint64_t *>d + 1


cdef inline bint is_available_with(const packed_ring *r, uint32_t position, uint16_t *found) noexcept nogil:
    """Whether a descriptor behind next_available, less than once round the ring, is available.

    `found` becomes its flags.
    """
    cdef uint16_t flags = r.available_flags
    if position >= r.common.size:
        position -= r.common.size
        flags ^= TURN
    # Acquire: what belongs to the descriptor is read after the flags; pairs with the driver's barrier before
    # it stores them (2.8.21.1).
    found[0] = load_acquire_u64(second_word(&r.descriptors[position])) >> 48
    return found[0] & TURN == flags


cdef inline bint is_available(const packed_ring *r, uint32_t position) noexcept nogil:
    cdef uint16_t _
    return is_available_with(r, position, &_)


cdef inline void release_kept(packed_ring *r, uint16_t id, uint32_t count) noexcept nogil:
    cdef uint32_t copy = r.kept_first[id]
    while count:
        r.kept_free[r.kept_free_count] = copy
        r.kept_free_count += 1
        copy = r.kept_next[copy]
        count -= 1


# Read up to `most` lists from next_available on, behind those in `b`; stop at a broken rule. Return how many.
cdef uint32_t read_lists(packed_ring *r, burst *b, uint32_t most) noexcept nogil

# See ring_read_again.
cdef uint32_t read_list_again(ring *self, uint16_t head, burst *b, chain *c) noexcept nogil
