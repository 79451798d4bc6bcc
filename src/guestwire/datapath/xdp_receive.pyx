# cython: language_level=3
"""The receiving half of the xdp port, part two: frames from the kernel.

``posted`` lists what the kernel has, in the order it got it (xdp_post); an arrival for anything else is not
believed. Most frames arrive in the next buffer posted, which is the guest's own, and need but a header.

Where the interface hands over frames with unfinished checksums, every frame that has arrived is looked at
once more before the guest gets it (`finish_received`).
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memmove, memset

from guestwire.datapath.abi cimport (
    VIRTIO_NET_F_GUEST_TSO4,
    VIRTIO_NET_F_GUEST_TSO6,
    XDP_PKT_CONTD,
    net_header,
    used_element,
    xdp_desc,
)
from guestwire.datapath.counters cimport (
    COPY_BAD_PLACE,
    DROP_TOO_LONG,
    DROP_UNEXPECTED_PLACE,
    pair_counters,
)
from guestwire.datapath.frames cimport fill_chain, fill_header, piece, write_net_header
from guestwire.datapath.port cimport pair_context, port_interface
from guestwire.datapath.receive_checksum cimport finish_checksum
from guestwire.datapath.ring cimport BURST_CHAINS, RING_OK, chain, chain_segments, ring_read_again
from guestwire.datapath.xdp cimport (
    ARRIVED,
    GUEST_BUFFER,
    NO_HEAD,
    OFFSET_SHIFT,
    WITH_THE_KERNEL,
    address_bits,
    posted_buffer,
    xdp_port,
)
from guestwire.datapath.xdp_arrivals cimport (
    arrive_in_spares,
    count_copied,
    count_placed,
    find_posted,
    finish_before_copy,
    finish_posted,
    in_bounce_frame,
    may_mark,
    return_chain,
    skip_arrived,
    write_offload,
)
from guestwire.datapath.xdp_socket cimport ring_release, ring_waiting
from guestwire.datapath.xdp_spanned cimport take_merged, take_spanned
from guestwire.datapath.xdp_stand_in cimport stand_ins_poll


cdef void finish_scattered(xdp_port *x, uint8_t *frame, uint32_t length, uint64_t header) noexcept nogil:
    """Finish the checksum of a frame whose header, already written, lies elsewhere."""
    cdef net_header found
    cdef piece whole
    whole.data, whole.length = frame, length
    memset(&found, 0, sizeof(found))
    if finish_checksum(&whole, 1, length, &found, may_mark(x)):
        x.base.pair.counters.rx.checksums += 1
        if found.flags:
            write_offload(x, header, &found)


cdef void arrive_in_guest_buffer(
    xdp_port *x, posted_buffer *e, uint32_t shift, uint32_t length
) noexcept nogil:
    """A frame in the guest's own buffer, out of turn, too long, or not where it was to be."""
    cdef pair_context *pair = x.base.pair
    cdef pair_counters *counters = pair.counters
    cdef uint8_t *at = pair.window.base + x.umem + e.address
    cdef bint in_one_piece
    if length > x.room_needed or shift + length > x.chunk:
        # More than the interface's largest frame: never promised to fit.
        counters.rx.drops[DROP_TOO_LONG] += 1
        return_chain(x, e, 0, 0)
        return
    if shift != x.before_frame:
        memmove(at + x.before_frame, at + shift, length)
        count_copied(counters, COPY_BAD_PLACE, length)
    else:
        count_placed(x, 1, length)
    write_net_header(pair.window.base + e.header, pair.header_size, 1)
    # A header in a buffer of its own: the frame is elsewhere.
    in_one_piece = at + x.before_frame == pair.window.base + e.header + pair.header_size
    if x.finish_checksums and not in_one_piece:
        finish_scattered(x, at + x.before_frame, length, e.header)
    return_chain(x, e, pair.header_size + length, e.header if in_one_piece else 0)


cdef void arrive_for_chain(xdp_port *x, posted_buffer *e, const piece *frame) noexcept nogil:
    """A frame in the bounce frame that stands for a chain: copy it there.

    The chain's descriptors are read and checked again; the guest may have changed them.
    """
    cdef pair_context *pair = x.base.pair
    cdef uint32_t total = pair.header_size + frame.length
    cdef uint64_t at = 0
    cdef bint in_one_piece
    cdef chain c
    x.scratch.segment_end = 0
    if ring_read_again(pair.rx, e.head, x.scratch, &c) != RING_OK or c.length < total:
        pair.counters.rx.drops[DROP_TOO_LONG] += 1
        total = 0
    else:
        in_one_piece = chain_segments(x.scratch, &c).length >= total
        if x.finish_checksums and not in_one_piece:
            finish_before_copy(x, frame, 1, frame.length)
        fill_header(pair, x.scratch, &c, 1)
        fill_chain(pair, x.scratch, &c, pair.header_size, frame.data, frame.length)
        count_copied(pair.counters, e.reason, frame.length)
        if in_one_piece:
            at = c.offset
    return_chain(x, e, total, at)


cdef void return_skipped(xdp_port *x) noexcept nogil:
    """After the socket is closed: return empty what the kernel passed over, up to the last arrival.

    So the chains not returned are the newest, and one available index describes them exactly.
    """
    cdef uint32_t last = x.posted_end
    cdef uint32_t i
    cdef posted_buffer *e
    while (last != x.posted_first and last != x.overtaken
           and x.posted[(last - 1) & x.posted_mask].state == WITH_THE_KERNEL):
        last -= 1
    i = x.posted_first
    while i != last and x.received < BURST_CHAINS:
        e = &x.posted[i & x.posted_mask]
        i += 1
        if e.state == WITH_THE_KERNEL:
            if e.head != NO_HEAD:
                x.received_elements[x.received].id = e.head
                x.received_elements[x.received].length = 0
                x.received += 1
            finish_posted(x, e)


cdef bint arrive(xdp_port *x, posted_buffer *e, uint32_t shift, uint32_t length) noexcept nogil:
    """Deal with an arrival in a buffer that the kernel had. Returns False if it has to wait."""
    cdef piece frame
    if e.frame == GUEST_BUFFER:
        arrive_in_guest_buffer(x, e, shift, length)
        return True
    in_bounce_frame(x, e, shift, length, &frame)
    if e.head != NO_HEAD:
        arrive_for_chain(x, e, &frame)
        return True
    if not arrive_in_spares(x, &frame, 1, frame.length, e.reason, NULL):
        return False
    finish_posted(x, e)
    return True


cdef inline uint32_t take_in_place(xdp_port *x, uint32_t most) noexcept nogil:
    """Take up to `most` arrivals as long as each is in the next buffer posted, which is the guest's own.

    All that such a frame needs is its header. Returns how many; the next arrival, if any, is for `arrive`.
    """
    cdef uint8_t *base = x.base.pair.window.base
    cdef uint16_t header_size = x.base.pair.header_size
    cdef uint32_t room = x.room_needed
    cdef uint64_t shift = <uint64_t>x.before_frame << OFFSET_SHIFT
    cdef const xdp_desc *arrivals = <const xdp_desc *>x.rx.entries
    cdef uint32_t mask = x.rx.mask
    cdef uint32_t position = x.rx.mine
    cdef posted_buffer *posted = x.posted
    cdef uint32_t posted_mask = x.posted_mask
    cdef uint32_t first = x.posted_first
    # Of a frame whose header lies elsewhere the checksum is finished by `arrive`.
    cdef bint together = x.finish_checksums
    cdef uint64_t to_frame = x.umem + x.before_frame - header_size
    cdef used_element *element = &x.received_elements[x.received]
    cdef uint64_t *at = &x.received_at[x.received]
    cdef uint32_t count = 0
    cdef uint64_t octets = 0
    cdef const xdp_desc *d
    cdef posted_buffer *e
    most = min(most, x.posted_end - first)
    while count < most:
        d = &arrivals[position & mask]
        e = &posted[first & posted_mask]
        if (d.addr != e.address | shift or d.len > room or e.frame != GUEST_BUFFER
                or e.state != WITH_THE_KERNEL or d.options & XDP_PKT_CONTD):
            break
        if together and e.address + to_frame != e.header:
            break
        write_net_header(base + e.header, header_size, 1)
        element.id = e.head
        element.length = header_size + d.len
        at[0] = e.header
        e.state = ARRIVED
        octets += d.len
        element += 1
        at += 1
        position += 1
        first += 1
        count += 1
    x.rx.mine = position
    x.received += count
    x.chains_posted -= count
    x.posted_first = first
    skip_arrived(x)
    count_placed(x, count, octets)
    return count


cdef uint32_t take_other(xdp_port *x) noexcept nogil:
    """Take the next frame, whatever it is; returns how many arrivals that were, 0 if it has to wait."""
    cdef const xdp_desc *d = &(<const xdp_desc *>x.rx.entries)[x.rx.mine & x.rx.mask]
    cdef posted_buffer *e
    if d.options & XDP_PKT_CONTD:
        return take_spanned(x)
    e = find_posted(x, address_bits(d.addr))
    if e == NULL:
        x.base.pair.counters.rx.drops[DROP_UNEXPECTED_PLACE] += 1
    elif not arrive(x, e, d.addr >> OFFSET_SHIFT, d.len):
        return 0
    x.rx.mine += 1
    return 1


cdef void finish_received(xdp_port *x) noexcept nogil:
    """Finish the checksums of frames that have arrived and lie in one piece."""
    cdef pair_context *pair = x.base.pair
    cdef net_header found
    cdef piece whole
    cdef uint32_t i
    for i in range(x.received):
        if x.received_at[i] == 0:
            continue
        memset(&found, 0, sizeof(found))
        whole.data = pair.window.base + x.received_at[i] + pair.header_size
        whole.length = x.received_elements[i].length - pair.header_size
        if finish_checksum(&whole, 1, whole.length, &found, may_mark(x)):
            pair.counters.rx.checksums += 1
            if found.flags:
                write_offload(x, x.received_at[i], &found)


cdef inline bint merges(const xdp_port *x) noexcept nogil:
    return x.merge and x.base.pair.mergeable and (
        x.base.pair.offloads & (VIRTIO_NET_F_GUEST_TSO4 | VIRTIO_NET_F_GUEST_TSO6) != 0)


cdef uint32_t take(xdp_port *x, uint32_t waiting, bint merging) noexcept nogil:
    """Take some of the arrivals that wait, in order; returns how many, 0 if the next has to wait."""
    cdef uint32_t taken
    cdef uint32_t most = min(waiting, BURST_CHAINS - x.received)
    if merging:
        taken = take_merged(x, waiting)
        if taken:
            return taken
        most = 1
    taken = take_in_place(x, most)
    return taken if taken else take_other(x)


cdef uint32_t xdp_rx_poll(port_interface *self, const used_element **done) noexcept nogil:
    cdef xdp_port *x = <xdp_port *>self
    cdef uint32_t waiting
    cdef bint merging = merges(x)
    x.received = 0
    done[0] = x.received_elements
    if x.closed:
        return_skipped(x)
        return x.received
    self.wants_buffers = x.guest_memory and (
        x.spare_posted != 0 or 2 * x.chains_posted < self.pair.rx.size)
    if x.stand_in_count:
        stand_ins_poll(x)
    waiting = ring_waiting(x.rx)
    while waiting and x.received < BURST_CHAINS:
        if take(x, waiting, merging) == 0:
            break
        waiting = x.rx.theirs - x.rx.mine
    ring_release(x.rx)
    if x.finish_checksums:
        finish_received(x)
    return x.received
