# cython: language_level=3
"""The window: one contiguous virtual range that holds a guest's memory and our bounce frames.

Layout, from low to high addresses::

    guard | region | region | ... | bounce frames

An offset in the window is an AF_XDP address, and ``base + offset`` a pointer, so that one UMEM
registration covers everything a frame can lie in. AF_XDP wants one mapping without holes: the guard
and what alignment leaves between regions are anonymous memory that nothing refers to.

A region's pages sit at an address congruent to their offset in the file modulo the largest page size
that could back them, so that huge pages stay huge.
"""

import fcntl
import os

from libc.errno cimport errno
from libc.stdint cimport uint8_t, uint32_t, uint64_t, uintptr_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset

cdef extern from "<sys/mman.h>" nogil:
    void *mmap(void *address, size_t length, int protection, int flags, int fd, long offset)
    int munmap(void *address, size_t length)
    const int PROT_NONE, PROT_READ, PROT_WRITE
    const int MAP_PRIVATE, MAP_SHARED, MAP_ANONYMOUS, MAP_NORESERVE, MAP_FIXED
    void *MAP_FAILED

cdef extern from "<sys/vfs.h>" nogil:
    struct statfs_t "statfs":
        long f_type
        long f_bsize
    int fstatfs(int fd, statfs_t *buffer)

cdef extern from "<signal.h>" nogil:
    ctypedef struct siginfo_t:
        void *si_addr
    ctypedef struct sigset_t:
        pass
    struct sigaction_t "sigaction":
        void (*sa_sigaction)(int, siginfo_t *, void *) noexcept nogil
        sigset_t sa_mask
        int sa_flags
    int sigaction(int number, const sigaction_t *new, sigaction_t *old)
    int sigemptyset(sigset_t *set)
    const int SIGBUS, SA_SIGINFO, SA_NODEFER, SA_ONSTACK

from guestwire.datapath.page_watch import PageWatch

from guestwire.datapath.atomics cimport (
    fence_seq_cst,
    load_acquire_u32,
    load_relaxed_u32,
    load_relaxed_u64,
    store_relaxed_u32,
    store_relaxed_u64,
    store_release_u32,
)

cdef enum:
    HUGETLBFS_MAGIC = 0x958458F6
    SMALL_PAGE = 4096
    HUGE_PAGE = 2 << 20
    MAX_REGIONS = 509
    MAX_WINDOWS = 1024

_MOST_BYTES = 1 << 46    # half of the address space that a process has


cdef uint64_t window_search(
    const window *w, uint32_t *hint, uint64_t address, uint64_t length
) noexcept nogil:
    """The slow half of window_translate: binary search in regions sorted by guest address."""
    cdef uint32_t low = 0
    cdef uint32_t high = w.region_count
    cdef uint32_t middle
    cdef const region *r
    while low < high:
        middle = (low + high) // 2
        r = &w.regions[middle]
        if address < r.guest_address:
            high = middle
        elif address - r.guest_address >= r.size:
            low = middle + 1
        else:
            if length > r.size - (address - r.guest_address):
                return 0
            hint[0] = middle
            return r.offset + (address - r.guest_address)
    return 0


# --- a memory file that shrinks under us -----------------------------------------------------------
#
# Touching a page behind the end of its file raises SIGBUS. The handler puts anonymous memory in the
# region's place, so that the access completes (with zeros) and the worker's next look at `fault`
# stops this guest alone. It runs in the faulting thread and calls nothing but mmap.
#
# Other windows come and go meanwhile, so the handler follows no pointer but that to the window in which the
# fault lies, which nobody closes while it is used. Where each window lies stands in a table that is never
# freed. A slot's sequence is odd while the slot is being changed: what was read then, or across a change, is
# another window's (tests/model/test_window_slots.py).

cdef struct slot:
    uint32_t sequence
    uint64_t base
    uint64_t size
    uint64_t window         # window *, or 0

cdef slot slots[MAX_WINDOWS]
cdef sigaction_t previous_action
cdef bint handler_installed = False


cdef bint repair_fault(window *w, uint64_t address) noexcept nogil:
    cdef uint64_t offset = address - <uintptr_t>w.base
    cdef uint32_t i
    cdef mapping *m
    if offset >= w.size:
        return False
    for i in range(w.mapping_count):
        m = &w.mappings[i]
        if offset - m.start < m.length:
            if mmap(w.base + m.start, m.length, PROT_READ | PROT_WRITE,
                    MAP_FIXED | MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0) == MAP_FAILED:
                return False
            store_relaxed_u32(&w.fault, i + 1)
            return True
    return False


cdef void set_slot(slot *s, uint64_t base, uint64_t size, uint64_t of) noexcept nogil:
    """Change a slot; the GIL is held, so that nobody else does."""
    store_relaxed_u32(&s.sequence, s.sequence + 1)
    fence_seq_cst()     # the odd sequence before what changes: pairs with the fence in window_of_fault
    store_relaxed_u64(&s.base, base)
    store_relaxed_u64(&s.size, size)
    store_relaxed_u64(&s.window, of)
    store_release_u32(&s.sequence, s.sequence + 1)  # what has changed before the even sequence


cdef window *window_of_fault(const slot *s, uint64_t address) noexcept nogil:
    """Return the window in a slot if an address lies in it, else NULL."""
    cdef uint32_t sequence = load_acquire_u32(&s.sequence)
    cdef uint64_t base = load_relaxed_u64(&s.base)
    cdef uint64_t size = load_relaxed_u64(&s.size)
    cdef uint64_t of = load_relaxed_u64(&s.window)
    fence_seq_cst()     # what was read before the sequence once more: pairs with the fence in set_slot
    if sequence & 1 or load_relaxed_u32(&s.sequence) != sequence or address - base >= size:
        return NULL
    return <window *><uintptr_t>of


cdef void on_bus_error(int number, siginfo_t *info, void *context) noexcept nogil:
    cdef int i
    cdef int saved_errno = errno
    cdef window *w
    for i in range(MAX_WINDOWS):
        w = window_of_fault(&slots[i], <uintptr_t>info.si_addr)
        if w != NULL and repair_fault(w, <uintptr_t>info.si_addr):
            (&errno)[0] = saved_errno
            return
    # Not ours: the access repeats and whoever was there before us deals with it.
    sigaction(SIGBUS, &previous_action, NULL)


cdef int watch_window(window *w) except -1:
    global handler_installed
    cdef sigaction_t action
    cdef int i
    if not handler_installed:
        memset(&action, 0, sizeof(action))
        action.sa_sigaction = on_bus_error
        action.sa_flags = SA_SIGINFO | SA_NODEFER | SA_ONSTACK
        sigemptyset(&action.sa_mask)
        if sigaction(SIGBUS, &action, &previous_action):
            raise OSError(errno, "cannot install the SIGBUS handler: " + os.strerror(errno))
        handler_installed = True
    for i in range(MAX_WINDOWS):
        if slots[i].window == 0:
            set_slot(&slots[i], <uintptr_t>w.base, w.size, <uintptr_t>w)
            return 0
    raise OSError(f"more than {MAX_WINDOWS} guests in one process")


cdef void unwatch_window(window *w) noexcept nogil:
    cdef int i
    for i in range(MAX_WINDOWS):
        if slots[i].window == <uintptr_t>w:
            set_slot(&slots[i], 0, 0, 0)


def _require_shared_memory(fd):
    """Refuse a file whose pages somebody else could make us wait for: a FUSE file, a disk.

    Only shared memory and hugetlbfs know seals; asking for them touches no file system.
    """
    try:
        fcntl.fcntl(fd, fcntl.F_GET_SEALS)
    except OSError as error:
        raise ValueError("a region's file is no shared memory: it must be a memfd, or lie on tmpfs or "
                         "hugetlbfs") from error


def _page_size(int fd):
    """Return the page size of the file system behind `fd`, in bytes."""
    cdef statfs_t s
    if fstatfs(fd, &s):
        raise OSError(errno, f"fstatfs of memory file descriptor {fd}: {os.strerror(errno)}")
    return s.f_bsize if s.f_type == HUGETLBFS_MAGIC else SMALL_PAGE


def _place(regions):
    """Decide where each region's pages go; return them with the end of the last, in bytes.

    Largest pages first, then by guest address, so that regions that are neighbours in the guest and in
    the file are neighbours here.
    """
    for _, _, _, fd, _ in regions:
        _require_shared_memory(fd)
    pages = [(_page_size(fd), guest, user, size, fd, file_offset)
             for guest, user, size, fd, file_offset in regions]
    pages.sort(key=lambda p: (-p[0], p[1]))
    end = GUARD_BYTES
    placed = []
    for page, guest, user, size, fd, file_offset in pages:
        file_size = os.fstat(fd).st_size
        if file_offset + size > file_size:
            raise ValueError(
                f"the memory region at guest address {guest:#x} ends {file_offset + size:#x} bytes "
                f"into a file of {file_size:#x} bytes"
            )
        first = file_offset // page * page
        last = -(-(file_offset + size) // page) * page
        alignment = max(page, HUGE_PAGE) if last - first >= HUGE_PAGE else page
        start = end + (first + GUARD_BYTES - end) % alignment
        placed.append((guest, user, size, fd, first, start, last - first, start + file_offset - first, page))
        end = start + last - first
    if end > _MOST_BYTES:
        raise ValueError(f"the memory regions have {end:#x} bytes together: more than can be mapped")
    return placed, end


cdef class Window:
    """A guest's memory, mapped side by side in one range, and our bounce frames behind it.

    Args:
        regions: up to 509 tuples ``(guest_address, user_address, size, fd, file_offset)``, all in bytes
            but the file descriptor, which is borrowed until `close` (`pages`). No two may overlap.
        bounce_frames: how many frames of 4,096 bytes of our own to append.

    Attributes:
        guest_bytes: the regions' together.
        pages: whether the files keep their pages (`PageWatch`).

    Raises:
        ValueError: the regions do not fit their files, or there are none or too many.
        OSError: the kernel refuses a mapping.
    """

    def __init__(self, regions, *, bounce_frames=256):
        if not 1 <= len(regions) <= MAX_REGIONS:
            raise ValueError(f"{len(regions)} memory regions: between 1 and {MAX_REGIONS} are possible")
        placed, end = _place(regions)
        end = -(-end // SMALL_PAGE) * SMALL_PAGE
        self.w.bounce_offset = end
        self.w.bounce_frames = bounce_frames
        self.w.size = end + bounce_frames * FRAME_BYTES
        # A region's `start` is congruent to its file offset plus the guard, so what follows the guard must
        # lie at a multiple of the largest page, hugetlbfs's 1 GiB included.
        largest = max(HUGE_PAGE, max(_page_size(fd) for _, _, _, fd, _ in regions))
        self.reservation_size = self.w.size + largest
        self.reservation = <uint8_t *>mmap(
            NULL, self.reservation_size, PROT_NONE,
            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
        if self.reservation == MAP_FAILED:
            self.reservation = NULL
            raise OSError(errno, f"cannot reserve {self.reservation_size:#x} bytes of address space: "
                                 + os.strerror(errno))
        self.w.base = self.reservation + (-<uintptr_t>self.reservation - GUARD_BYTES) % <uint64_t>largest
        try:
            self._map(placed)
            self.pages = PageWatch([(guest, size, fd, offset, _page_size(fd))
                                    for guest, _, size, fd, offset in regions])
            watch_window(&self.w)
        except BaseException:
            self.close()
            raise
        self.guest_bytes = sum(size for _, _, size, _, _ in regions)

    cdef int _map(self, list placed) except -1:
        cdef window *w = &self.w
        cdef mapping *m
        cdef region *r = NULL
        cdef uint32_t i
        w.mappings = <mapping *>calloc(len(placed), sizeof(mapping))
        w.regions = <region *>calloc(len(placed), sizeof(region))
        if w.mappings == NULL or w.regions == NULL:
            raise MemoryError
        # Everything that no region covers is anonymous memory: first all of it, then the regions on top.
        if mmap(w.base, w.size, PROT_READ | PROT_WRITE,
                MAP_FIXED | MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0) == MAP_FAILED:
            raise OSError(errno, "cannot map the window: " + os.strerror(errno))
        for i, (guest, user, size, fd, file_offset, start, length, offset, page) in enumerate(placed):
            m = &w.mappings[i]
            m.user_address, m.size, m.offset = user, size, offset
            m.start, m.length, m.page = start, length, page
            if mmap(w.base + m.start, m.length, PROT_READ | PROT_WRITE,
                    MAP_FIXED | MAP_SHARED, fd, file_offset) == MAP_FAILED:
                raise OSError(errno, f"cannot map {length:#x} bytes of guest memory at guest address "
                                     f"{guest:#x}: {os.strerror(errno)}")
            w.mapping_count += 1
        for guest, _, size, _, _, _, _, offset, _ in sorted(placed):
            if r != NULL and guest == r.guest_address + r.size and offset == r.offset + r.size:
                r.size += size
                continue
            r = &w.regions[w.region_count]
            r.guest_address, r.size, r.offset = guest, size, offset
            w.region_count += 1
        return 0

    @property
    def size(self):
        """Bytes from the guard's first to the last bounce frame's last: what AF_XDP registers."""
        return self.w.size

    @property
    def bounce_offset(self):
        """Where the bounce frames begin, as an offset in the window."""
        return self.w.bounce_offset

    @property
    def fault(self):
        """Which region's file shrank under us, as a sentence; None if none did."""
        cdef uint32_t i = load_relaxed_u32(&self.w.fault)
        if i == 0:
            return None
        return (f"the file behind the guest's memory at frontend address "
                f"{self.w.mappings[i - 1].user_address:#x} was truncated")

    def translate_user(self, user_address, length):
        """Return the window offset of `length` bytes at the frontend's virtual `user_address`.

        Raises:
            ValueError: they do not lie in one region.
        """
        cdef uint32_t i
        cdef mapping *m
        for i in range(self.w.mapping_count):
            m = &self.w.mappings[i]
            if m.user_address <= user_address and user_address + length <= m.user_address + m.size:
                return m.offset + (user_address - m.user_address)
        raise ValueError(
            f"{length} bytes at frontend address {user_address:#x} are outside the guest's memory")

    def translate_guest(self, guest_address, length):
        """Return the window offset of `length` bytes at guest-physical `guest_address`.

        Raises:
            ValueError: they do not lie in one region.
        """
        cdef uint32_t hint = 0
        cdef uint64_t offset = window_translate(&self.w, &hint, guest_address, length)
        if not offset:
            raise ValueError(f"{length} bytes at guest address {guest_address:#x} are outside its memory")
        return offset

    def read(self, offset, length):
        """Return `length` bytes at window `offset`."""
        if offset < 0 or length < 0 or offset + length > self.w.size:
            raise ValueError(f"{length} bytes at offset {offset:#x} are outside the window")
        cdef uint64_t at = offset
        cdef size_t n = length
        return (<char *>self.w.base + at)[:n]

    def write(self, offset, data):
        """Store the bytes `data` at window `offset`."""
        cdef const uint8_t[::1] view = data
        cdef uint64_t at
        if offset < 0 or offset + len(view) > self.w.size:
            raise ValueError(f"{len(view)} bytes at offset {offset:#x} are outside the window")
        at = offset
        if len(view):
            memcpy(self.w.base + at, &view[0], len(view))

    def close(self):
        """Unmap everything. Nothing may use the window any more; closing twice is harmless."""
        if self.reservation != NULL:
            unwatch_window(&self.w)
            if self.pages is not None:
                self.pages.close()
            munmap(self.reservation, self.reservation_size)
            self.reservation = NULL
            self.w.base = NULL
            self.w.size = 0
            self.w.mapping_count = 0
            self.w.region_count = 0

    def __dealloc__(self):
        self.close()
        free(self.w.mappings)
        free(self.w.regions)
        free(self.w.joined)
