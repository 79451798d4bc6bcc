# cython: language_level=3
"""Whether the pages of a guest's memory are still those that the kernel has pinned.

Whoever shares memory can punch holes in its files: QEMU does for free page reporting, a balloon and
virtio-mem. The guest then gets new pages, and AF_XDP keeps the old ones. The file does not tell: its size
stays, the blocks that it counts are complete again when the guest has touched the hole, and its time of
modification, which a hole changes (mm/shmem.c, shmem_truncate_range), is changed by page faults, too.

The kernel takes a page that leaves its file out of every page table, so a mapping of our own that nobody
ever touches shows each hole for good, however soon it is filled. It is locked, lest reclaim take pages out
as well, and read-only, lest it share page tables of huge pages with a mapping that is touched
(mm/hugetlb.c, huge_pmd_share). Where a file keeps times, it is looked at only after they have changed.
"""

import os
import time

from libc.errno cimport errno
from libc.stdint cimport uint64_t, uintptr_t
from libc.string cimport memset

cdef extern from "<unistd.h>" nogil:
    ssize_t pread(int fd, void *buffer, size_t size, long offset)

cdef extern from "<sys/ioctl.h>" nogil:
    """
    #include <stdint.h>
    #include <sys/ioctl.h>
    /* Linux 6.7, include/uapi/linux/fs.h; Documentation/admin-guide/mm/pagemap.rst */
    struct gw_page_region { uint64_t start, end, categories; };
    struct gw_pm_scan_arg {
        uint64_t size, flags, start, end, walk_end, vec, vec_len, max_pages;
        uint64_t category_inverted, category_mask, category_anyof_mask, return_mask;
    };
    #define GW_PAGEMAP_SCAN _IOWR('f', 16, struct gw_pm_scan_arg)
    #define GW_PAGE_IS_PRESENT (1 << 3)
    #define GW_PAGE_IS_SWAPPED (1 << 4)     /* a page that is just being moved looks so */
    #define GW_ENTRY_PRESENT_OR_SWAPPED (3ULL << 62)
    """
    struct gw_page_region:
        uint64_t start
    struct gw_pm_scan_arg:
        uint64_t size, start, end, vec, vec_len, max_pages, category_inverted, category_mask, return_mask
    const unsigned long GW_PAGEMAP_SCAN
    const uint64_t GW_PAGE_IS_PRESENT, GW_PAGE_IS_SWAPPED, GW_ENTRY_PRESENT_OR_SWAPPED
    int ioctl(int fd, unsigned long request, void *argument)

cdef extern from "<sys/mman.h>" nogil:
    """
    #include <sys/syscall.h>
    #include <unistd.h>
    /* By its number: under sanitizers the function of this name does nothing, and says that it did. */
    #define gw_mlock(address, length) ((int)syscall(SYS_mlock, (address), (size_t)(length)))
    #ifndef MADV_POPULATE_READ      /* Linux 5.14 */
    #define MADV_POPULATE_READ 22
    #endif
    """
    void *mmap(void *address, size_t length, int protection, int flags, int fd, long offset)
    int munmap(void *address, size_t length)
    int gw_mlock(const void *address, size_t length)
    int madvise(void *address, size_t length, int advice)
    const int PROT_READ, MAP_SHARED, MAP_NORESERVE, MADV_POPULATE_READ
    void *MAP_FAILED

cdef enum:
    ENTRIES = 4096              # pages looked up in one go

cdef uint64_t PAGE = os.sysconf("SC_PAGESIZE")

_COARSE_NS = 20_000_000         # files' times advance in steps of a tick: 1 to 10 ms
_END_BYTES = 16 << 20
_PIECE = 1 << 20
_SMALL_REGION = 128 << 20       # of memory that virtio-mem plugs, what Linux can use is as large at least


cdef class PageWatch:
    """Watches the pages of a guest's memory while any of it is pinned.

    All but `suspect` is called by one thread at a time.

    Args:
        regions: tuples ``(guest_address, size, fd, file_offset, page_size)`` in bytes but the descriptor,
            which is borrowed until `close`; a page size above the machine's means hugetlbfs.
        scan: ask by PAGEMAP_SCAN where the kernel knows it (Linux 6.7), which takes a third of the time.

    Attributes:
        lost: whether a page was found to be taken away; whoever starts afresh sets it to False.
    """

    cdef public bint lost
    cdef readonly int watchers
    cdef list files             # of [fd, whether it is on hugetlbfs, its time when it was looked at, or None]
    cdef list regions           # of (guest address, size, number of the file, offset in it, page size)
    cdef list views             # of (address, length, number of the file): what nobody touches
    cdef int pagemap
    cdef bint scan

    def __init__(self, regions, *, scan=True):
        self.scan = scan
        self.files, self.regions, self.views = [], [], []
        self.pagemap = -1
        numbers = {}
        for guest_address, size, fd, offset, page in sorted(regions):
            status = os.fstat(fd)
            name = status.st_dev, status.st_ino
            if name not in numbers:
                numbers[name] = len(self.files)
                self.files.append([fd, page > PAGE, None])
            self.regions.append((guest_address, size, numbers[name], offset, page))

    def begin(self):
        """Watch from now on: all that is in memory after this, and leaves, is noticed; memory is populated.

        To be called before memory is pinned, and `end` when it no longer is, each as often.

        Raises:
            OSError: there is no memory for it, or the kernel does not let us look.
        """
        if self.watchers == 0:
            self._forget()
            try:
                self.pagemap = os.open("/proc/self/pagemap", os.O_RDONLY | os.O_CLOEXEC)
                for _, size, file, offset, page in self.regions:
                    self._view(file, offset // page * page, -(-(offset + size) // page) * page)
            except BaseException:
                self._forget()
                raise
        self.watchers += 1

    cdef int _view(self, int file, uint64_t first, uint64_t end) except -1:
        cdef int fd = self.files[file][0]
        cdef void *view
        cdef int failure = 0
        with nogil:
            view = mmap(NULL, end - first, PROT_READ, MAP_SHARED | MAP_NORESERVE, fd, <long>first)
            # A limit on locked memory is no reason not to watch.
            if view == MAP_FAILED or (gw_mlock(view, end - first) and
                                      madvise(view, end - first, MADV_POPULATE_READ)):
                failure = errno
        if view != MAP_FAILED:
            self.views.append((<uintptr_t>view, end - first, file))
        if failure:
            raise OSError(failure, "guest memory cannot be mapped to be watched: " + os.strerror(failure))
        return 0

    def end(self):
        """Watch no longer, if nobody else wants it. What takes long about that is left to `tidy`."""
        if self.watchers:   # it may have been closed before
            self.watchers -= 1

    def tidy(self):
        """Unmap what nobody watches any more: a tenth of a second for each GiB in small pages."""
        if self.watchers == 0:
            self._forget()

    @property
    def suspect(self):
        """Whether `look` has anything to look at; in any thread."""
        try:
            return any(huge or os.fstat(fd).st_mtime_ns != seen for fd, huge, seen in self.files)
        except OSError:     # the file is just being closed
            return True

    def look(self):
        """Return whether a page has been taken away since `begin`; what was found once stays so (`lost`).

        Pages that cannot be looked at count as taken away.
        """
        cdef uint64_t address, length
        cdef bint found
        if self.watchers == 0 or self.lost:
            return self.lost
        suspects = [self._suspect(file) for file in self.files]
        for address, length, file in self.views:
            if suspects[file]:
                with nogil:
                    found = missing(self.pagemap, address, length, self.scan)
                if found:
                    self.lost = True
                    break
        return self.lost

    def _suspect(self, file):
        """Tell whether a hole can have been punched in a file since the last look."""
        fd, huge, seen = file
        if huge:    # its times do not change
            return True
        now = os.fstat(fd).st_mtime_ns
        # A change within the same tick as this look would not be seen at the next.
        file[2] = now if now < time.time_ns() - _COARSE_NS else None
        return now != seen

    def untouched(self):
        """Return ``(guest_address, size)`` of memory that seems not to be plugged yet, or None.

        Neither the frontend nor the file says what virtio-mem has plugged. It has a file of its own and plugs
        from the beginning on; a guest that uses all of a region has touched its end, where Linux keeps its
        books. So it is a region that lies in another file than the guest's first memory, is larger than
        128 MiB, and ends in 16 MiB of zeros. A DIMM that was plugged just now looks the same.
        """
        for guest_address, size, file, offset, _ in self.regions:
            if file != self.regions[0][2] and size > _SMALL_REGION \
                    and _is_zero(self.files[file][0], offset + size):
                return guest_address, size
        return None

    def _forget(self):
        cdef uint64_t address, length
        for address, length, _ in self.views:
            with nogil:
                munmap(<void *><uintptr_t>address, length)
        self.views = []
        for file in self.files:
            file[2] = None
        if self.pagemap >= 0:
            os.close(self.pagemap)
            self.pagemap = -1

    def close(self):
        """Let go of everything. Closing twice is harmless."""
        self._forget()
        self.watchers = 0
        self.files, self.regions = [], []


def _is_zero(fd, end):
    """Tell whether the last bytes before `end` of a file are zero. Reading a hole does not fill it."""
    piece, nothing = bytearray(_PIECE), bytes(_PIECE)
    return all(
        os.preadv(fd, [piece], end - behind) == _PIECE and piece == nothing
        for behind in range(_PIECE, _END_BYTES + 1, _PIECE)
    )


cdef bint missing(int pagemap, uint64_t address, uint64_t length, bint by_scan) noexcept nogil:
    """Return whether a page is missing in our page table."""
    cdef gw_page_region hole
    cdef gw_pm_scan_arg scan
    cdef int found = -1
    memset(&scan, 0, sizeof(scan))
    scan.size = sizeof(scan)
    scan.start = address
    scan.end = address + length
    scan.vec = <uintptr_t>&hole
    scan.vec_len = scan.max_pages = 1
    scan.category_inverted = scan.category_mask = GW_PAGE_IS_PRESENT | GW_PAGE_IS_SWAPPED
    scan.return_mask = GW_PAGE_IS_PRESENT
    if by_scan:
        found = ioctl(pagemap, GW_PAGEMAP_SCAN, &scan)
    return found > 0 if found >= 0 else missing_entry(pagemap, address, length)


cdef bint missing_entry(int pagemap, uint64_t address, uint64_t length) noexcept nogil:
    """Do the same one page at a time: how it is before Linux 6.7."""
    cdef uint64_t[ENTRIES] entries
    cdef uint64_t page = address // PAGE
    cdef uint64_t end = page + length // PAGE
    cdef ssize_t size, i
    while page < end:
        size = pread(pagemap, entries, min(end - page, <uint64_t>ENTRIES) * sizeof(uint64_t),
                     page * sizeof(uint64_t))
        if size <= 0:
            return True
        for i in range(size // <ssize_t>sizeof(uint64_t)):
            if not entries[i] & GW_ENTRY_PRESENT_OR_SWAPPED:
                return True
        page += size // sizeof(uint64_t)
    return False
