"""What happens to a buffer when a frame arrives in it: shared by whatever takes frames from the kernel."""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy

from guestwire.datapath.abi cimport VIRTIO_NET_F_GUEST_CSUM, net_header
from guestwire.datapath.counters cimport pair_counters
from guestwire.datapath.frames cimport HEADER_FIELDS, piece
from guestwire.datapath.window cimport FRAME_BYTES
from guestwire.datapath.xdp cimport ARRIVED, GUEST_BUFFER, posted_buffer, xdp_port

cdef posted_buffer *find_posted(xdp_port *x, uint64_t address) noexcept nogil
cdef void finish_posted(xdp_port *x, posted_buffer *e) noexcept nogil
cdef void count_copied(pair_counters *counters, uint32_t reason, uint32_t length) noexcept nogil
cdef void finish_before_copy(
    xdp_port *x, const piece *pieces, uint32_t count, uint32_t length
) noexcept nogil
cdef int deliver_copy(
    xdp_port *x, const piece *pieces, uint32_t count, uint32_t length, const net_header *header
) noexcept nogil
cdef bint arrive_in_spares(
    xdp_port *x, const piece *pieces, uint32_t count, uint32_t length, uint8_t reason,
    const net_header *header
) noexcept nogil

cdef inline void skip_arrived(xdp_port *x) noexcept nogil:
    while x.posted_first != x.posted_end and x.posted[x.posted_first & x.posted_mask].state == ARRIVED:
        x.posted_first += 1

cdef inline void return_chain(xdp_port *x, posted_buffer *e, uint32_t written, uint64_t at) noexcept nogil:
    """Give a chain back with `written` bytes; `at` is where they lie in one piece, or 0."""
    x.received_elements[x.received].id = e.head
    x.received_elements[x.received].length = written
    x.received_at[x.received] = at
    x.received += 1
    finish_posted(x, e)

cdef inline bint may_mark(const xdp_port *x) noexcept nogil:
    """Whether the guest takes frames that are marked as having an unfinished checksum."""
    return x.base.pair.offloads & VIRTIO_NET_F_GUEST_CSUM != 0

cdef inline void write_offload(const xdp_port *x, uint64_t at, const net_header *header) noexcept nogil:
    """Complete the virtio_net_hdr at this place, of which num_buffers is written."""
    memcpy(x.base.pair.window.base + at, header, HEADER_FIELDS)

cdef inline void count_placed(xdp_port *x, uint32_t count, uint64_t octets) noexcept nogil:
    cdef pair_counters *counters = x.base.pair.counters
    counters.rx.frames += count
    counters.rx.bytes += octets
    if x.zero_copy:
        counters.rx.zero_copy_frames += count
    else:
        counters.rx.direct_frames += count

cdef inline void in_bounce_frame(
    const xdp_port *x, const posted_buffer *e, uint32_t shift, uint32_t length, piece *p
) noexcept nogil:
    """The kernel is believed, but not about what lies outside of what it was given."""
    p.data = x.base.pair.window.base + x.umem + e.address + shift
    p.length = min(length, FRAME_BYTES - min(shift, <uint32_t>FRAME_BYTES))

cdef inline void in_buffer(
    const xdp_port *x, const posted_buffer *e, uint32_t shift, uint32_t length, piece *p
) noexcept nogil:
    """The same for any buffer; no bytes where the guest's own was not to be written."""
    if e.frame != GUEST_BUFFER:
        in_bounce_frame(x, e, shift, length, p)
        return
    p.data = x.base.pair.window.base + x.umem + e.address + shift
    p.length = length if shift == x.before_frame and length <= x.room_needed else 0
