"""The window: one contiguous virtual range that holds a guest's memory and our bounce frames."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t

cdef enum:
    # The guard keeps `address - head index` (up to 32,767) and `address - headroom - 256` (up to a
    # chunk) from running below the window; see ARCHITECTURE.md, "Addresses".
    GUARD_BYTES = 65536
    FRAME_BYTES = 4096

cdef struct region:
    uint64_t guest_address
    uint64_t size
    uint64_t offset         # in the window

cdef struct mapping:
    uint64_t user_address   # the frontend's virtual address of the region
    uint64_t size
    uint64_t offset         # of the region in the window
    uint64_t start          # of the pages mapped for it, in the window
    uint64_t length         # of these pages
    uint64_t page           # their size

cdef struct window:
    uint8_t *base
    uint64_t size
    uint64_t bounce_offset
    uint32_t bounce_frames
    uint32_t region_count   # for translation: neighbours in guest and window are one region
    uint32_t mapping_count
    uint32_t fault          # 1 + index of the mapping whose file shrank under us, else 0
    region *regions
    mapping *mappings
    uint8_t *joined         # by page of 4,096 bytes: it and the next are one piece of memory to a device

cdef inline uint64_t window_translate(
    const window *w, uint32_t *hint, uint64_t address, uint64_t length
) noexcept nogil:
    """Return the window offset of `length` guest-physical bytes at `address`, 0 if not in memory.

    This is the only place that turns an address from a guest into an offset. `hint` remembers the
    region of the last call, which is nearly always the right one. No offset is 0: the guard is there.
    """
    cdef const region *r = &w.regions[hint[0]]
    cdef uint64_t distance = address - r.guest_address
    if distance < r.size and length <= r.size - distance:
        return r.offset + distance
    return window_search(w, hint, address, length)

# A region as the loops over common buffers have it: in locals, so that most buffers cost two comparisons.
cdef struct near_region:
    uint64_t address        # in the guest
    uint64_t size
    uint64_t offset         # in the window

cdef inline near_region window_near(const window *w, uint32_t hint) noexcept nogil:
    cdef const region *r = &w.regions[hint]
    cdef near_region n
    n.address = r.guest_address
    n.size = r.size
    n.offset = r.offset
    return n

cdef inline bint near_holds(const near_region *n, uint64_t distance, uint64_t length) noexcept nogil:
    """Whether a buffer of at least one byte lies in the region, `distance` behind its beginning."""
    # A length of 0 becomes the largest number.
    return distance < n.size and length - 1 < n.size - distance

cdef inline bint window_contiguous(const window *w, uint64_t offset, uint64_t length) noexcept nogil:
    """Tell whether a device sees `length` bytes at `offset` in one piece."""
    cdef uint64_t page
    for page in range(offset >> 12, (offset + length - 1) >> 12):
        if not w.joined[page]:
            return False
    return True

cdef uint64_t window_search(
    const window *w, uint32_t *hint, uint64_t address, uint64_t length
) noexcept nogil

cdef class Window:
    cdef window w
    cdef uint8_t *reservation
    cdef uint64_t reservation_size
    cdef readonly uint64_t guest_bytes
    cdef readonly object pages

    cdef int _map(self, list placed) except -1
