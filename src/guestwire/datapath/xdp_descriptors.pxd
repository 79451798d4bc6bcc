"""Descriptors on the tx ring of an xdp port: pieces in the guest's pages, and copies in bounce frames."""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from guestwire.datapath.abi cimport XDP_PKT_CONTD, xdp_desc
from guestwire.datapath.xdp cimport OFFSET_SHIFT, frame_address, xdp_port

cdef enum:
    NO_SPACE = -2               # beside GOOD_FRAME and DROP_...: later

cdef inline void return_sent(xdp_port *x, uint32_t head) noexcept nogil:
    x.sent_elements[x.sent].id = head
    x.sent_elements[x.sent].length = 0
    x.sent += 1

cdef inline void put_descriptor(
    xdp_port *x, uint64_t address, uint32_t length, bint continued
) noexcept nogil:
    cdef xdp_desc *d = &(<xdp_desc *>x.tx.entries)[x.tx.mine & x.tx.mask]
    d.addr = address
    d.len = length
    d.options = XDP_PKT_CONTD if continued else 0
    x.tx.mine += 1
    x.descriptors_out += 1

cdef inline void put_pieces(xdp_port *x, uint16_t head, uint32_t first, uint32_t end) noexcept nogil:
    """One descriptor a piece. The address is split into base and offset so that the offset is the head."""
    cdef uint64_t address
    cdef uint32_t i
    for i in range(first, end):
        address = <uint64_t>(x.pieces[i].data - x.base.pair.window.base) - x.umem
        put_descriptor(
            x, (address - head) | <uint64_t>head << OFFSET_SHIFT, x.pieces[i].length, i + 1 < end)
    x.pieces_left[head] += end - first

cdef inline void count_in_place(xdp_port *x, uint32_t count) noexcept nogil:
    if x.zero_copy:
        x.base.pair.counters.tx.zero_copy_frames += count
    else:
        x.base.pair.counters.tx.direct_frames += count

cdef inline uint8_t *next_bounce_frame(const xdp_port *x) noexcept nogil:
    """The memory of the bounce frame that `put_copied` uses first; there is a free one."""
    return x.base.pair.window.base + x.umem + frame_address(x, x.free_frames[x.free_count - 1])

cdef inline uint32_t frames_to_copy(const xdp_port *x, uint32_t length) noexcept nogil:
    """How many bounce frames, and descriptors, hold a copy of `length` bytes: one has a chunk of bytes."""
    return 1 if length <= x.chunk else (length + x.chunk - 1) // x.chunk

cdef inline uint32_t free_to_send(const xdp_port *x) noexcept nogil:
    """How many bounce frames sending may take and leave receiving its share: the reserve, and half of all."""
    cdef uint32_t posted = x.chains_posted + x.spare_posted
    cdef uint32_t owed = x.reserve - posted if posted < x.reserve else 0
    if x.spares_lacking and 2 * x.spare_posted < x.frame_count:
        owed = max(owed, x.frame_count // 2 - x.spare_posted)
    return x.free_count - owed if x.free_count > owed else 0

cdef uint32_t split_pieces(xdp_port *x, uint32_t count) noexcept nogil
cdef uint32_t gather(xdp_port *x, uint32_t first, uint8_t *to, uint32_t length) noexcept nogil
cdef uint32_t put_copied(
    xdp_port *x, uint32_t first, uint32_t count, uint32_t filled, uint32_t length
) noexcept nogil
