# cython: language_level=3
"""Which pages of a window a device sees in one piece: what zero-copy mode must know of each border.

Without an IOMMU that translates, pages are neighbours to a device if they are in physical memory, which
the kernel tells a process with CAP_SYS_ADMIN (Documentation/admin-guide/mm/pagemap.rst). To others is
known what needs no asking: the inside of a huge page of hugetlbfs is one piece.
"""

import os

from libc.errno cimport errno
from libc.stdint cimport uint8_t, uint32_t, uint64_t, uintptr_t
from libc.stdlib cimport calloc, free

from guestwire.datapath.window cimport Window, mapping, window

cdef extern from "<unistd.h>" nogil:
    ssize_t pread(int fd, void *buffer, size_t size, long offset)

cdef extern from "<sys/mman.h>" nogil:
    """
    #ifndef MADV_POPULATE_WRITE     /* Linux 5.14 */
    #define MADV_POPULATE_WRITE 23
    #endif
    #define PAGEMAP_PRESENT (1ULL << 63)
    #define PAGEMAP_FRAME_NUMBER ((1ULL << 55) - 1)
    """
    int madvise(void *address, size_t length, int advice)
    const int MADV_POPULATE_WRITE
    const uint64_t PAGEMAP_PRESENT, PAGEMAP_FRAME_NUMBER

cdef enum:
    PAGE = 4096
    ENTRIES = 4096              # pages looked up in one go


def find_contiguous_pages(Window of):
    """Mark the pages that are in one piece with the next, for `window_contiguous`.

    Pages can move until they are pinned, so what is found before the window is registered is an estimate.

    Returns:
        The share, 0 to 1, of the borders between guest pages that a frame may cross.

    Raises:
        OSError: the kernel does not let us look.
    """
    cdef window *w = &of.w
    cdef uint64_t joined = 0, borders = 0
    cdef uint32_t i
    cdef int failure = 0
    cdef int pagemap
    cdef uint64_t *entries = <uint64_t *>calloc(ENTRIES, sizeof(uint64_t))
    allocate_marks(of)
    if entries == NULL:
        raise MemoryError
    pagemap = os.open("/proc/self/pagemap", os.O_RDONLY | os.O_CLOEXEC)
    try:
        with nogil:
            for i in range(w.mapping_count):
                if not failure:
                    failure = join_pages(w, &w.mappings[i], pagemap, entries, &joined)
                    borders += w.mappings[i].length // PAGE - 1
    finally:
        os.close(pagemap)
        free(entries)
    if failure:
        raise OSError(failure, "cannot read /proc/self/pagemap: " + os.strerror(failure))
    return <double>joined / <double>borders if borders else 1.0


cdef int allocate_marks(Window of) except -1:
    if of.w.joined == NULL:
        of.w.joined = <uint8_t *>calloc(of.w.size // PAGE + 1, 1)
        if of.w.joined == NULL:
            raise MemoryError
    return 0


cdef int join_pages(
    window *w, const mapping *m, int pagemap, uint64_t *entries, uint64_t *joined
) noexcept nogil:
    """Mark the pages of one mapping; returns an errno, or 0."""
    cdef uint64_t first = m.start // PAGE
    cdef uint64_t end = (m.start + m.length) // PAGE
    cdef uint64_t page, number
    cdef uint64_t before = 0
    cdef ssize_t size = 0
    cdef uint64_t i = 0
    # What is not there yet has no place yet. If there is no memory for it, registering will say so.
    madvise(w.base + m.start, m.length, MADV_POPULATE_WRITE)
    for page in range(first, end):
        if i * sizeof(uint64_t) == <uint64_t>size:
            size = pread(pagemap, entries, min(end - page, <uint64_t>ENTRIES) * sizeof(uint64_t),
                         (<uintptr_t>w.base // PAGE + page) * sizeof(uint64_t))
            i = 0
            if size <= 0:
                return errno
        number = entries[i] & PAGEMAP_FRAME_NUMBER if entries[i] & PAGEMAP_PRESENT else 0
        i += 1
        if page > first:
            w.joined[page - 1] = (page - first) * PAGE % m.page != 0 or (before != 0 and number == before + 1)
            joined[0] += w.joined[page - 1]
        before = number
    w.joined[end - 1] = False
    return 0
