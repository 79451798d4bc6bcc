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
    XDP_ZEROCOPY,
    sockaddr_xdp,
    xdp_desc,
    xdp_mmap_offsets,
    xdp_options,
    xdp_statistics,
    xdp_umem_reg,
)
from guestwire.datapath.window cimport Window


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
    """An AF_XDP socket bound to one queue of an interface.

    Args:
        window: whose memory is registered: all of it, or with ``guest_memory=False`` the bounce frames only.
        interface_index, queue: what to bind to.
        zero_copy: ask for the driver's zero-copy mode, else for copy mode.
        chunk: bytes of a chunk, 2,048 to 4,096. headroom: bytes the kernel leaves free before a frame, on
            top of its own 256.
        ring_size: entries of each of the four rings, a power of two.

    Raises:
        XdpSocketError: the kernel refuses; nothing is left behind.
    """

    def __cinit__(self):
        self.fd = -1

    def __init__(self, Window window, *, guest_memory, interface_index, queue, zero_copy, chunk, headroom,
                 ring_size):
        self.fd = socket(AF_XDP, SOCK_RAW | SOCK_CLOEXEC, 0)
        if self.fd < 0:
            raise XdpSocketError(errno, "socket")
        try:
            self._register(window, guest_memory, chunk, headroom)
            self._make_rings(ring_size)
            self._bind(interface_index, queue, zero_copy)
        except BaseException:
            self.close()
            raise

    def _register(self, Window window, guest_memory, chunk, headroom):
        cdef xdp_umem_reg r
        cdef uint64_t first = 0 if guest_memory else window.w.bounce_offset
        memset(&r, 0, sizeof(r))
        r.addr = <uintptr_t>window.w.base + first
        r.len = window.w.size - first
        r.chunk_size = chunk
        r.headroom = headroom
        r.flags = XDP_UMEM_UNALIGNED_CHUNK_FLAG
        self._set_option("register memory", XDP_UMEM_REG, &r, sizeof(r))

    def _make_rings(self, ring_size):
        cdef int entries = ring_size
        cdef xdp_mmap_offsets o
        for option in (XDP_UMEM_FILL_RING, XDP_UMEM_COMPLETION_RING, XDP_RX_RING, XDP_TX_RING):
            self._set_option("rings", option, &entries, sizeof(entries))
        self._get_option(XDP_MMAP_OFFSETS, &o, sizeof(o))
        self._map_ring(&self.rx, entries, sizeof(xdp_desc), <const uint64_t *>&o.rx, XDP_PGOFF_RX_RING)
        self._map_ring(&self.tx, entries, sizeof(xdp_desc), <const uint64_t *>&o.tx, XDP_PGOFF_TX_RING)
        self._map_ring(&self.fill, entries, sizeof(uint64_t), <const uint64_t *>&o.fr,
                       XDP_UMEM_PGOFF_FILL_RING)
        self._map_ring(&self.completion, entries, sizeof(uint64_t), <const uint64_t *>&o.cr,
                       XDP_UMEM_PGOFF_COMPLETION_RING)

    def _bind(self, interface_index, queue, zero_copy):
        cdef sockaddr_xdp a
        cdef xdp_options options
        memset(&a, 0, sizeof(a))
        a.sxdp_family = AF_XDP
        a.sxdp_ifindex = interface_index
        a.sxdp_queue_id = queue
        a.sxdp_flags = XDP_USE_NEED_WAKEUP | (XDP_ZEROCOPY if zero_copy else XDP_COPY)
        if bind(self.fd, <const sockaddr *>&a, sizeof(a)):
            raise XdpSocketError(errno, "bind")
        self._get_option(XDP_OPTIONS, &options, sizeof(options))
        self.zero_copy = options.flags & XDP_OPTIONS_ZEROCOPY != 0

    cdef int _set_option(self, str step, int option, const void *value, uint32_t size) except -1:
        if setsockopt(self.fd, SOL_XDP, option, value, size):
            raise XdpSocketError(errno, step)
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
