# cython: language_level=3
"""An AF_XDP socket: its registered memory (UMEM) and its four rings (kernel, networking/af_xdp.rst)."""

import os

from libc.errno cimport errno
from libc.stdint cimport uint32_t, uint64_t, uintptr_t
from libc.string cimport memset
from posix.unistd cimport close

cdef extern from "<sys/socket.h>" nogil:
    struct sockaddr:
        pass
    int socket(int domain, int kind, int protocol)
    int bind(int fd, const sockaddr *address, uint32_t size)
    int setsockopt(int fd, int level, int option, const void *value, uint32_t size)
    int getsockopt(int fd, int level, int option, void *value, uint32_t *size)
    const int SOCK_RAW, SOCK_CLOEXEC

cdef extern from "<sys/mman.h>" nogil:
    void *mmap(void *address, size_t length, int protection, int flags, int fd, long offset)
    int munmap(void *address, size_t length)
    const int PROT_READ, PROT_WRITE
    const int MAP_SHARED, MAP_POPULATE
    void *MAP_FAILED

from guestwire.datapath.abi cimport (
    AF_XDP,
    SOL_XDP,
    XDP_COPY,
    XDP_MAX_TX_SKB_BUDGET,
    XDP_MMAP_OFFSETS,
    XDP_OPTIONS,
    XDP_OPTIONS_ZEROCOPY,
    XDP_PGOFF_RX_RING,
    XDP_PGOFF_TX_RING,
    XDP_RX_RING,
    XDP_STATISTICS,
    XDP_TX_RING,
    XDP_UMEM_COMPLETION_RING,
    XDP_UMEM_FILL_RING,
    XDP_UMEM_PGOFF_COMPLETION_RING,
    XDP_UMEM_PGOFF_FILL_RING,
    XDP_UMEM_REG,
    XDP_UMEM_UNALIGNED_CHUNK_FLAG,
    XDP_USE_NEED_WAKEUP,
    XDP_USE_SG,
    XDP_ZEROCOPY,
    sockaddr_xdp,
    xdp_desc,
    xdp_mmap_offsets,
    xdp_options,
    xdp_statistics,
    xdp_umem_reg,
)
from guestwire.datapath.window cimport Window


cdef enum:
    SEND_BUDGET = 256           # descriptors that the kernel sends in one call, in copy mode


class XdpSocketError(OSError):
    """The kernel refused a step of the socket's set-up.

    Attributes:
        step: ``socket``, ``register memory``, ``rings`` or ``bind``.
    """

    def __init__(self, number, step):
        super().__init__(number, os.strerror(number))
        self.step = step


cdef void unmap_ring(socket_ring *r) noexcept nogil:
    if r.area != NULL:
        munmap(r.area, r.area_size)
        memset(r, 0, sizeof(socket_ring))


cdef class XdpSocket:
    """An AF_XDP socket: its memory registered, its rings made; `bind` puts it on a queue of an interface.

    Registering pins the memory and takes long for a large guest, binding takes the queue from somebody else:
    so they are two steps.

    Args:
        window: whose memory is registered: all of it, or with ``guest_memory=False`` the bounce frames only.
        frames: of those, which: window offsets, multiples of a page; None for all.
        chunk: bytes of a chunk, 2,048 to 4,096. headroom: bytes the kernel leaves free before a frame, on
            top of its own 256.
        ring_size: entries of the fill, completion and tx ring, a power of two. rx_size: of the rx ring.

    Attributes:
        fd: the socket; -1 once it is closed.
        zero_copy: the driver uses the memory itself (XDP_OPTIONS).
        umem_offset: where in the window the registered memory begins.

    Raises:
        XdpSocketError: the kernel refuses; nothing is left behind.
    """

    def __cinit__(self):
        self.fd = -1

    def __init__(self, Window window, *, guest_memory, chunk, headroom, ring_size, rx_size, frames=None):
        self.guest_memory, self.chunk, self.headroom = guest_memory, chunk, headroom
        self.umem_offset = 0 if guest_memory else window.w.bounce_offset
        end = window.w.size
        if frames is not None:
            self.umem_offset, end = frames.start, frames.stop
        self.fd = socket(AF_XDP, SOCK_RAW | SOCK_CLOEXEC, 0)
        if self.fd < 0:
            raise XdpSocketError(errno, "socket")
        try:
            self._register(window, end)
            self._make_rings(ring_size, rx_size)
        except BaseException:
            self.close()
            raise

    def _register(self, Window window, uint64_t end):
        cdef xdp_umem_reg r
        memset(&r, 0, sizeof(r))
        r.addr = <uintptr_t>window.w.base + self.umem_offset
        r.len = end - self.umem_offset
        r.chunk_size = self.chunk
        r.headroom = self.headroom
        r.flags = XDP_UMEM_UNALIGNED_CHUNK_FLAG
        self._set_option("register memory", XDP_UMEM_REG, &r, sizeof(r))

    def _make_rings(self, ring_size, rx_size):
        cdef xdp_mmap_offsets o
        cdef int entries
        for option, size in ((XDP_UMEM_FILL_RING, ring_size), (XDP_UMEM_COMPLETION_RING, ring_size),
                             (XDP_RX_RING, rx_size), (XDP_TX_RING, ring_size)):
            entries = size
            self._set_option("rings", option, &entries, sizeof(entries))
        # Linux before 6.17 does not know the option, and sends 32 descriptors a call.
        entries = min(SEND_BUDGET, ring_size)
        setsockopt(self.fd, SOL_XDP, XDP_MAX_TX_SKB_BUDGET, &entries, sizeof(entries))
        self._get_option(XDP_MMAP_OFFSETS, &o, sizeof(o))
        self._map_ring(&self.rx, rx_size, sizeof(xdp_desc), <const uint64_t *>&o.rx, XDP_PGOFF_RX_RING)
        self._map_ring(&self.tx, ring_size, sizeof(xdp_desc), <const uint64_t *>&o.tx, XDP_PGOFF_TX_RING)
        self._map_ring(&self.fill, ring_size, sizeof(uint64_t), <const uint64_t *>&o.fr,
                       XDP_UMEM_PGOFF_FILL_RING)
        self._map_ring(&self.completion, ring_size, sizeof(uint64_t), <const uint64_t *>&o.cr,
                       XDP_UMEM_PGOFF_COMPLETION_RING)

    def bind(self, *, interface_index, queue, zero_copy, several_buffers=False):
        """Bind to a queue, in the driver's zero-copy mode or in copy mode. May be tried again.

        With ``several_buffers`` a received frame may lie in several buffers (XDP_USE_SG).

        Raises:
            XdpSocketError: the kernel or the driver refuses.
        """
        cdef sockaddr_xdp a
        cdef xdp_options options
        cdef int refusal = 0
        memset(&a, 0, sizeof(a))
        a.sxdp_family = AF_XDP
        a.sxdp_ifindex = interface_index
        a.sxdp_queue_id = queue
        a.sxdp_flags = XDP_USE_NEED_WAKEUP | (XDP_ZEROCOPY if zero_copy else XDP_COPY)
        if several_buffers:
            a.sxdp_flags |= XDP_USE_SG
        # Mapping all pages for the device and resetting the NIC's queue can take long.
        with nogil:
            if bind(self.fd, <const sockaddr *>&a, sizeof(a)):
                refusal = errno
        if refusal:
            raise XdpSocketError(refusal, "bind")
        self._get_option(XDP_OPTIONS, &options, sizeof(options))
        self.zero_copy = options.flags & XDP_OPTIONS_ZEROCOPY != 0

    cdef int _set_option(self, str step, int option, const void *value, uint32_t size) except -1:
        cdef int refusal = 0
        # Pinning the memory of a large guest takes a tenth of a second for each GiB.
        with nogil:
            if setsockopt(self.fd, SOL_XDP, option, value, size):
                refusal = errno
        if refusal:
            raise XdpSocketError(refusal, step)
        return 0

    cdef int _get_option(self, int option, void *value, uint32_t size) except -1:
        if getsockopt(self.fd, SOL_XDP, option, value, &size):
            raise XdpSocketError(errno, "rings")
        return 0

    cdef int _map_ring(
        self, socket_ring *r, uint32_t entries, uint32_t entry_size, const uint64_t *offsets, uint64_t page
    ) except -1:
        """Map one ring; `offsets` are those of its producer, consumer, entries and flags, in bytes."""
        cdef uint64_t size = offsets[2] + <uint64_t>entries * entry_size
        cdef char *area = <char *>mmap(
            NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, self.fd, page)
        if <void *>area == MAP_FAILED:
            raise XdpSocketError(errno, "rings")
        r.area, r.area_size = area, size
        r.producer = <uint32_t *>(area + offsets[0])
        r.consumer = <uint32_t *>(area + offsets[1])
        r.entries = area + offsets[2]
        r.flags = <uint32_t *>(area + offsets[3])
        r.size = entries
        r.mask = entries - 1
        return 0

    def statistics(self):
        """Return what the kernel counted for this socket (XDP_STATISTICS)."""
        cdef xdp_statistics s
        memset(&s, 0, sizeof(s))
        if self.fd < 0:
            raise ValueError("the socket is closed")
        self._get_option(XDP_STATISTICS, &s, sizeof(s))
        return {
            "rx_dropped": s.rx_dropped,
            "rx_ring_full": s.rx_ring_full,
            "rx_fill_ring_empty": s.rx_fill_ring_empty_descs,
            "rx_invalid_descriptors": s.rx_invalid_descs,
            "tx_invalid_descriptors": s.tx_invalid_descs,
        }

    def close(self):
        """Release the socket. The kernel does so only once its rings are unmapped, too."""
        self._unmap()
        if self.fd >= 0:
            close(self.fd)
            self.fd = -1

    def _unmap(self):
        unmap_ring(&self.fill)
        unmap_ring(&self.completion)
        unmap_ring(&self.rx)
        unmap_ring(&self.tx)

    def __dealloc__(self):
        self.close()
