# cython: language_level=3
"""An AF_XDP socket without a kernel: a test does what the kernel and the NIC would do.

The rings are those of a real socket (kernel, networking/af_xdp.rst), in ordinary memory. Nothing moves by
itself: every step of the kernel's side is a call, so a test says in which order buffers come back, and can
do what only a broken driver does::

    socket = FakeXdpSocket(window, chunk=2048)
    port = XdpPort(socket, ...)
    ...
    first, second = socket.take_fill(2)
    socket.deliver(second, frame)           # out of order
    socket.describe(second, len(frame))     # delivered twice
"""

import os
from typing import NamedTuple

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc

from guestwire.datapath.abi cimport (
    XDP_PGOFF_RX_RING,
    XDP_PGOFF_TX_RING,
    XDP_PKT_CONTD,
    XDP_RING_NEED_WAKEUP,
    XDP_UMEM_PGOFF_COMPLETION_RING,
    XDP_UMEM_PGOFF_FILL_RING,
    xdp_desc,
)
from guestwire.datapath.atomics cimport (
    load_acquire_u32,
    load_relaxed_u32,
    store_relaxed_u32,
    store_release_u32,
)
from guestwire.datapath.window cimport Window, window_contiguous
from guestwire.datapath.xdp_socket cimport XdpSocket, socket_ring

cdef enum:
    KERNEL_HEADROOM = 256       # XDP_PACKET_HEADROOM
    OFFSET_SHIFT = 48           # XSK_UNALIGNED_BUF_OFFSET_SHIFT
    MOST_DESCRIPTORS = 18       # of one sent frame in copy mode: MAX_SKB_FRAGS + 1
    LARGEST_RING = 1 << 20
    PAGE = 4096

# Where the kernel puts a ring's producer, consumer, entries and flags (struct xdp_ring).
cdef uint64_t[4] RING_OFFSETS = [0, 128, 320, 196]


class SentFrame(NamedTuple):
    """A frame taken from the tx ring.

    Attributes:
        data: its bytes.
        addresses: of its descriptors, as they were written: what their completions give back.
        lengths: of its descriptors.
    """

    data: bytes
    addresses: tuple
    lengths: tuple


class Waiting(NamedTuple):
    """How many entries of each ring have been written and not yet read.

    Attributes:
        fill, tx: entries for the kernel. rx, completion: entries from it.
    """

    fill: int
    tx: int
    rx: int
    completion: int


cdef inline uint32_t to_take(const socket_ring *r) noexcept nogil:
    """Return how many entries of a ring that the kernel reads are waiting: fill, tx."""
    # Acquire: entries are read after the index; pairs with the release in ring_submit.
    return load_acquire_u32(r.producer) - load_relaxed_u32(r.consumer)


cdef inline uint32_t to_write(const socket_ring *r) noexcept nogil:
    """Return how many entries of a ring that the kernel writes are free: rx, completion."""
    # Acquire: an entry is written anew after it was read; pairs with the release in ring_release.
    return r.size - (load_relaxed_u32(r.producer) - load_acquire_u32(r.consumer))


cdef inline void taken(socket_ring *r, uint32_t count) noexcept nogil:
    # Release: the entries have been read before they may be written anew; pairs with ring_space.
    store_release_u32(r.consumer, load_relaxed_u32(r.consumer) + count)


cdef inline void written(socket_ring *r, uint32_t count) noexcept nogil:
    # Release: entries and frames are visible before the index; pairs with ring_waiting.
    store_release_u32(r.producer, load_relaxed_u32(r.producer) + count)


cdef inline uint64_t *address_entry(const socket_ring *r, uint32_t index) noexcept nogil:
    return &(<uint64_t *>r.entries)[index & r.mask]


cdef inline xdp_desc *descriptor_entry(const socket_ring *r, uint32_t index) noexcept nogil:
    return &(<xdp_desc *>r.entries)[index & r.mask]


cdef inline uint64_t base_address(uint64_t address) noexcept nogil:
    return address & ((<uint64_t>1 << OFFSET_SHIFT) - 1)


cdef inline uint64_t place(uint64_t address) noexcept nogil:
    """Return where an address points: base and offset added up."""
    return base_address(address) + (address >> OFFSET_SHIFT)


cdef class FakeXdpSocket(XdpSocket):
    """An AF_XDP socket whose kernel side is the test's.

    The descriptor is an eventfd, readable when something was delivered or completed; calls that wake a real
    kernel fail on it and change nothing.

    Args:
        window: whose memory is registered: all of it, or with ``guest_memory=False`` the bounce frames only.
        zero_copy: claim that a NIC uses the memory itself.
        chunk: bytes of a chunk. headroom: bytes left free before a frame, on top of the kernel's 256.
        ring_size: entries of the fill, completion and tx ring, a power of two. rx_size: of the rx ring, if
            it differs.

    Raises:
        ValueError: a ring's size is no power of two up to 1,048,576.
    """

    cdef Window window

    def __init__(self, Window window not None, *, guest_memory=True, zero_copy=False, chunk=4096, headroom=0,
                 ring_size=64, rx_size=None):
        rx_size = ring_size if rx_size is None else rx_size
        for size in (ring_size, rx_size):
            if not 1 <= size <= LARGEST_RING or size & (size - 1):
                raise ValueError(f"a ring of {size} entries: a power of two up to {LARGEST_RING:,} is needed")
        self.window = window
        self.guest_memory, self.zero_copy = guest_memory, zero_copy
        self.chunk, self.headroom = chunk, headroom
        self.umem_offset = 0 if guest_memory else window.w.bounce_offset
        self._make_rings(ring_size, rx_size)
        self.fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def _make_rings(self, ring_size, rx_size):
        # A file with holes: its rings lie at the offsets at which the kernel offers a socket's.
        self.fd = os.memfd_create("rings", os.MFD_CLOEXEC)
        try:
            os.ftruncate(self.fd, XDP_UMEM_PGOFF_COMPLETION_RING + RING_OFFSETS[2]
                         + ring_size * sizeof(uint64_t))
            self._map_ring(&self.rx, rx_size, sizeof(xdp_desc), RING_OFFSETS, XDP_PGOFF_RX_RING)
            self._map_ring(&self.tx, ring_size, sizeof(xdp_desc), RING_OFFSETS, XDP_PGOFF_TX_RING)
            self._map_ring(&self.fill, ring_size, sizeof(uint64_t), RING_OFFSETS, XDP_UMEM_PGOFF_FILL_RING)
            self._map_ring(&self.completion, ring_size, sizeof(uint64_t), RING_OFFSETS,
                           XDP_UMEM_PGOFF_COMPLETION_RING)
        finally:
            os.close(self.fd)
            self.fd = -1

    def statistics(self):
        """Return nothing: no kernel counts."""
        self._require_open()
        return {}

    # --- receiving -----------------------------------------------------------------------------------

    def take_fill(self, most=None):
        """Take up to `most` addresses, or all, from the fill ring: the buffers are the kernel's now.

        Raises:
            ValueError: at one of them the kernel could not place a chunk; a real one takes such an address
                and never says so.
        """
        self._require_open()
        cdef uint32_t first = load_relaxed_u32(self.fill.consumer)
        cdef uint32_t count = self._how_many(to_take(&self.fill), most)
        addresses = [address_entry(&self.fill, first + i)[0] for i in range(count)]
        taken(&self.fill, count)
        for address in addresses:
            # Cookies are not kept: the kernel drops the upper bits.
            self._require_chunk(base_address(address))
        return addresses

    def deliver(self, address, frame, *, offset=None, before=b"", continued=False):
        """Write a frame `offset` bytes behind `address` and put it on the rx ring.

        Args:
            address: of the buffer, as it was taken from the fill ring.
            frame: the frame's bytes.
            offset: where in the buffer, by default 256 bytes and the headroom: where a kernel puts it.
            before: what a NIC leaves right before the frame: virtio_net its own header.
            continued: the frame goes on in the next buffer.

        Raises:
            ValueError: it does not fit in the registered memory, or the rx ring is full.
        """
        cdef uint64_t shift = self._frame_offset(offset)
        self.write(address + shift - len(before), bytes(before) + bytes(frame))
        self.describe(address, len(frame), offset=shift, options=XDP_PKT_CONTD if continued else 0)

    def describe(self, address, length, *, offset=None, options=0):
        """Put a descriptor on the rx ring, whatever it says, and write nothing else.

        Raises:
            ValueError: the rx ring is full.
        """
        self._require_open()
        cdef xdp_desc *d
        if to_write(&self.rx) == 0:
            raise ValueError(f"the rx ring is full: {self.rx.size} entries wait")
        d = descriptor_entry(&self.rx, load_relaxed_u32(self.rx.producer))
        d.addr = <uint64_t>address | self._frame_offset(offset) << OFFSET_SHIFT
        d.len = length
        d.options = options
        written(&self.rx, 1)
        os.eventfd_write(self.fd, 1)

    # --- sending -------------------------------------------------------------------------------------

    def take_tx(self, most=None):
        """Take up to `most` descriptors, or all, from the tx ring, as ``(address, length, options)``."""
        self._require_open()
        cdef uint32_t first = load_relaxed_u32(self.tx.consumer)
        cdef uint32_t count = self._how_many(to_take(&self.tx), most)
        descriptors = self._waiting_tx(first, count)
        taken(&self.tx, count)
        return descriptors

    def take_frames(self, most=None):
        """Take up to `most` whole frames, or all, from the tx ring, as `SentFrame`.

        Raises:
            ValueError: a kernel would refuse one of them. All remain in the ring.
        """
        self._require_open()
        cdef uint32_t count = 0
        frames, pieces = [], []
        for descriptor in self._waiting_tx(load_relaxed_u32(self.tx.consumer), to_take(&self.tx)):
            if len(frames) == most:
                break
            pieces.append(descriptor)
            if not descriptor[2] & XDP_PKT_CONTD:
                frames.append(self._sent(pieces))
                count += len(pieces)
                pieces = []
        taken(&self.tx, count)
        return frames

    def complete(self, addresses):
        """Put addresses on the completion ring, whatever they are.

        Copy mode of Linux 6.18 to 7.2 clears bit 0 of a frame's first one.

        Raises:
            ValueError: the ring has no room for them; then none was written.
        """
        self._require_open()
        cdef uint32_t first = load_relaxed_u32(self.completion.producer)
        if len(addresses) > to_write(&self.completion):
            raise ValueError(f"the completion ring has {self.completion.size} entries, "
                             f"{to_write(&self.completion)} of them free: not {len(addresses)}")
        for i, address in enumerate(addresses):
            address_entry(&self.completion, first + <uint32_t>i)[0] = address
        written(&self.completion, len(addresses))
        os.eventfd_write(self.fd, 1)

    # --- both ----------------------------------------------------------------------------------------

    def serve(self, *, receive=0, send=0, length=1514):
        """Be a fast NIC: deliver and send at once, in order, without touching a frame.

        Args:
            receive: how many frames of `length` bytes to deliver, if there are as many buffers.
            send: how many descriptors to take and complete, if there are as many.

        Returns:
            How many were ``(delivered, sent)``.
        """
        self._require_open()
        cdef uint32_t delivered = min(<uint32_t>receive, to_take(&self.fill), to_write(&self.rx))
        cdef uint32_t sent = min(<uint32_t>send, to_take(&self.tx), to_write(&self.completion))
        cdef uint64_t shift = self._frame_offset(None) << OFFSET_SHIFT
        cdef uint32_t frame_length = length
        cdef uint32_t i
        cdef xdp_desc *d
        with nogil:
            for i in range(delivered):
                d = descriptor_entry(&self.rx, self.rx.producer[0] + i)
                d.addr = base_address(address_entry(&self.fill, self.fill.consumer[0] + i)[0]) | shift
                d.len = frame_length
                d.options = 0
            taken(&self.fill, delivered)
            written(&self.rx, delivered)
            for i in range(sent):
                address_entry(&self.completion, self.completion.producer[0] + i)[0] = (
                    descriptor_entry(&self.tx, self.tx.consumer[0] + i).addr)
            taken(&self.tx, sent)
            written(&self.completion, sent)
        return delivered, sent

    @property
    def waiting(self):
        """What each ring holds."""
        self._require_open()
        return Waiting(to_take(&self.fill), to_take(&self.tx), self.rx.size - to_write(&self.rx),
                       self.completion.size - to_write(&self.completion))

    def need_wakeup(self, *, fill, tx):
        """Say whether the owner must make a system call for the kernel to look at its rings."""
        self._require_open()
        store_relaxed_u32(self.fill.flags, XDP_RING_NEED_WAKEUP if fill else 0)
        store_relaxed_u32(self.tx.flags, XDP_RING_NEED_WAKEUP if tx else 0)

    def read(self, address, length):
        """Return `length` bytes of the registered memory."""
        return self.window.read(self._window_offset(address, length), length)

    def write(self, address, data):
        """Store bytes in the registered memory."""
        self.window.write(self._window_offset(address, len(data)), data)

    def _window_offset(self, address, length):
        if not 0 <= address <= address + length <= self.window.w.size - self.umem_offset:
            raise ValueError(f"{length} bytes at address {address:#x} are outside the registered memory")
        return self.umem_offset + address

    def _require_open(self):
        if self.fd < 0:
            raise ValueError("the socket is closed")

    def _how_many(self, uint32_t waiting, most):
        return waiting if most is None else min(waiting, most)

    def _frame_offset(self, offset):
        return KERNEL_HEADROOM + self.headroom if offset is None else offset

    def _waiting_tx(self, uint32_t first, uint32_t count):
        descriptors = []
        for i in range(count):
            d = descriptor_entry(&self.tx, first + <uint32_t>i)[0]
            descriptors.append((d.addr, d.len, d.options))
        return descriptors

    def _require_chunk(self, address):
        self._require_memory(address, self.chunk, "a buffer")

    def _require_memory(self, address, length, what):
        """Refuse what a kernel refuses: memory not registered, or that a NIC does not see in one piece."""
        offset = self._window_offset(address, length)
        if self.zero_copy and not window_contiguous(&self.window.w, offset, length):
            raise ValueError(f"{what} of {length} bytes at address {address:#x} crosses pages that a device "
                             "does not see in one piece")

    def _sent(self, pieces):
        if len(pieces) > MOST_DESCRIPTORS:
            raise ValueError(f"a frame of {len(pieces)} descriptors: the kernel takes {MOST_DESCRIPTORS}")
        data = []
        for address, length, _ in pieces:
            if not 1 <= length <= self.chunk:
                raise ValueError(f"a descriptor of {length} bytes: a chunk has {self.chunk}")
            self._require_memory(place(address), length, "a frame")
            data.append(self.read(place(address), length))
        addresses, lengths, _ = zip(*pieces)
        return SentFrame(b"".join(data), addresses, lengths)


def scatter_pages(Window window not None, piece):
    """Make the datapath believe that a device sees a window's memory in pieces of so many bytes.

    So tests have huge pages where there are none, and know where the borders are.

    Args:
        window: the guest's memory; its offsets that are multiples of `piece` are borders.
        piece: a multiple of 4,096, such as the size of a huge page.
    """
    cdef uint64_t pages = piece // PAGE
    cdef uint64_t page
    if piece % PAGE or pages == 0:
        raise ValueError(f"pieces of {piece} bytes: they must be whole pages of {PAGE}")
    if window.w.joined == NULL:
        window.w.joined = <uint8_t *>calloc(window.w.size // PAGE + 1, 1)
        if window.w.joined == NULL:
            raise MemoryError
    for page in range(window.w.size // PAGE):
        window.w.joined[page] = (page + 1) % pages != 0
