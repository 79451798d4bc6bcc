"""An AF_XDP socket: its registered memory (UMEM) and its four rings."""

from libc.stdint cimport uint32_t, uint64_t

from guestwire.datapath.abi cimport XDP_RING_NEED_WAKEUP, xdp_desc
from guestwire.datapath.atomics cimport load_acquire_u32, load_relaxed_u32, store_release_u32

cdef struct socket_ring:
    uint32_t *producer
    uint32_t *consumer
    uint32_t *flags
    void *entries
    uint32_t size
    uint32_t mask
    uint32_t mine           # our index: producer of fill and tx, consumer of rx and completion
    uint32_t theirs         # the kernel's index as last read
    void *area
    uint64_t area_size

cdef inline uint32_t ring_space(socket_ring *r, uint32_t wanted) noexcept nogil:
    """Return how many entries we may write, reading the kernel's index only if it seems too few."""
    cdef uint32_t space = r.size - (r.mine - r.theirs)
    if space < wanted:
        # Acquire: the kernel has finished reading an entry before we write it anew; pairs with the
        # kernel's release of its consumer index.
        r.theirs = load_acquire_u32(r.consumer)
        space = r.size - (r.mine - r.theirs)
    return space

cdef inline uint32_t ring_waiting(socket_ring *r) noexcept nogil:
    """Return how many entries we may read."""
    if r.mine == r.theirs:
        # Acquire: entries, and the frames they name, are read after the index; pairs with the
        # kernel's release of its producer index.
        r.theirs = load_acquire_u32(r.producer)
    return r.theirs - r.mine

cdef inline void ring_submit(socket_ring *r) noexcept nogil:
    """Hand the entries written so far to the kernel."""
    # Release: entries are visible before the index; pairs with the kernel's acquire of it.
    store_release_u32(r.producer, r.mine)

cdef inline void ring_release(socket_ring *r) noexcept nogil:
    """Give the entries read so far back to the kernel."""
    # Release: our reads of the entries are done before the kernel writes them anew.
    store_release_u32(r.consumer, r.mine)

cdef inline bint ring_needs_wakeup(const socket_ring *r) noexcept nogil:
    return load_relaxed_u32(r.flags) & XDP_RING_NEED_WAKEUP != 0

cdef class XdpSocket:
    cdef readonly int fd
    cdef readonly bint guest_memory
    cdef readonly bint zero_copy
    cdef readonly uint32_t chunk
    cdef readonly uint32_t headroom
    cdef readonly uint64_t umem_offset
    cdef socket_ring fill
    cdef socket_ring completion
    cdef socket_ring rx
    cdef socket_ring tx

    cdef int _set_option(self, str step, int option, const void *value, uint32_t size) except -1
    cdef int _get_option(self, int option, void *value, uint32_t size) except -1
    cdef int _map_ring(
        self, socket_ring *r, uint32_t entries, uint32_t entry_size, const uint64_t *offsets, uint64_t page
    ) except -1
