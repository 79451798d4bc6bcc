# cython: language_level=3
"""Frames that span several posted buffers: long ones, and merged ones.

The kernel puts the first byte of each buffer's part where a header has room before it; of a mergeable frame
only the first buffer has a header, and all but the last must be used "completely" (virtio 1.3, 5.1.6.4.1).
So everything behind the first part moves forward, and buffers that are then not needed are posted again.
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memset

from guestwire.datapath.abi cimport XDP_PKT_CONTD, net_header, xdp_desc
from guestwire.datapath.atomics cimport load_acquire_u32
from guestwire.datapath.counters cimport (
    COPY_MERGED,
    COPY_SEVERAL_BUFFERS,
    DROP_NO_BUFFERS,
    DROP_TOO_LONG,
    DROP_UNEXPECTED_PLACE,
)
from guestwire.datapath.frames cimport buffers_for, fill_chain, piece, write_net_header
from guestwire.datapath.merging cimport merge_append, merge_begin, merge_close
from guestwire.datapath.port cimport pair_context
from guestwire.datapath.receive_checksum cimport finish_checksum
from guestwire.datapath.ring cimport RING_OK, burst, chain, chain_segments, ring_read_again
from guestwire.datapath.xdp cimport (
    GUEST_BUFFER,
    MOST_BUFFERS,
    NO_HEAD,
    OFFSET_SHIFT,
    SPANNED,
    WITH_THE_KERNEL,
    address_bits,
    posted_buffer,
    xdp_port,
)
from guestwire.datapath.xdp_arrivals cimport (
    arrive_in_spares,
    count_copied,
    find_posted,
    finish_posted,
    in_buffer,
    may_mark,
    return_chain,
    write_offload,
)
from guestwire.datapath.xdp_post cimport post_again

# A frame of which each part arrived in a buffer of its own.
cdef struct spanned:
    posted_buffer *buffers[MOST_BUFFERS]
    piece pieces[MOST_BUFFERS]
    posted_buffer unused[MOST_BUFFERS]
    uint32_t count
    uint32_t own                # of the buffers, those that are the guest's
    uint32_t length


cdef inline bint add_part(xdp_port *x, spanned *s, const xdp_desc *d) noexcept nogil:
    """Add an arrival; returns False if it is in no buffer of ours, or not where it was to be.

    It is the kernel's no more, so that it is found once.
    """
    cdef posted_buffer *e = find_posted(x, address_bits(d.addr))
    if e == NULL:
        return False
    in_buffer(x, e, d.addr >> OFFSET_SHIFT, d.len, &s.pieces[s.count])
    s.buffers[s.count] = e
    s.count += 1
    e.state = SPANNED
    s.own += e.frame == GUEST_BUFFER
    s.length += s.pieces[s.count - 1].length
    return s.pieces[s.count - 1].length != 0


cdef inline void leave(spanned *s, uint32_t first) noexcept nogil:
    """Leave the parts from `first` on for later."""
    cdef uint32_t i
    for i in range(first, s.count):
        s.buffers[i].state = WITH_THE_KERNEL


cdef void give_up(xdp_port *x, spanned *s, uint32_t reason) noexcept nogil:
    """Drop the frame; its buffers come back empty."""
    cdef uint32_t i
    x.base.pair.counters.rx.drops[reason] += 1
    for i in range(s.count):
        if s.buffers[i].head == NO_HEAD:
            finish_posted(x, s.buffers[i])
        else:
            return_chain(x, s.buffers[i], 0, 0)


cdef bint read_posted(xdp_port *x, const posted_buffer *e, chain *c) noexcept nogil:
    """Read a posted chain once more, since the guest may have changed it."""
    x.scratch.segment_end = 0
    return ring_read_again(x.base.pair.rx, e.head, x.scratch, c) == RING_OK


cdef int fill_buffers(xdp_port *x, spanned *s) noexcept nogil:
    """Move all behind the first part to where it belongs; returns how many buffers hold the frame, or 0.

    Parts only move towards the front, and each is moved before anything is moved to where it was. The lengths
    are then those of what is in each buffer. 0 means that the guest has changed its descriptors.
    """
    cdef pair_context *pair = x.base.pair
    cdef uint32_t filled = pair.header_size + s.pieces[0].length
    cdef uint32_t buffer = 0
    cdef uint32_t i, part
    cdef piece rest
    cdef chain c
    if not read_posted(x, s.buffers[0], &c) or c.length < filled:
        return 0
    for i in range(1, s.count):
        rest = s.pieces[i]
        while rest.length:
            if filled == c.length:
                s.pieces[buffer].length = filled
                buffer += 1
                filled = 0
                # As long as the chains are what they were when they were posted, they hold what has arrived.
                if buffer > i or not read_posted(x, s.buffers[buffer], &c):
                    return 0
            part = min(c.length - filled, rest.length)
            fill_chain(pair, x.scratch, &c, filled, rest.data, part)
            filled += part
            rest.data += part
            rest.length -= part
    s.pieces[buffer].length = filled
    return buffer + 1


cdef void arrive_in_guest_buffers(
    xdp_port *x, spanned *s, const net_header *header, uint32_t reason
) noexcept nogil:
    """Give the guest a frame that lies in its own buffers; `header` is all but num_buffers of its header."""
    cdef pair_context *pair = x.base.pair
    cdef uint64_t at = s.buffers[0].header
    cdef uint32_t first = s.pieces[0].length
    cdef uint32_t i
    cdef int used = fill_buffers(x, s)
    if used == 0:
        give_up(x, s, DROP_NO_BUFFERS)
        return
    if header.gso_type:
        pair.counters.rx.gso_frames += 1
        pair.counters.rx.segments += s.count
    write_net_header(pair.window.base + at, pair.header_size, used)
    write_offload(x, at, header)
    for i in range(s.count):
        if <int>i < used:
            return_chain(x, s.buffers[i], s.pieces[i].length, 0)
        else:
            s.unused[i] = s.buffers[i][0]
            finish_posted(x, s.buffers[i])
    # Only now: making room moves entries.
    for i in range(used, s.count):
        post_again(x, &s.unused[i])
    count_copied(pair.counters, reason, s.length)
    pair.counters.rx.copied_bytes -= first


cdef bint find_parts(xdp_port *x, spanned *s, bint *good) noexcept nogil:
    """Find the parts of the next frame; returns False if the kernel has not handed over all of them yet."""
    cdef const xdp_desc *d
    cdef uint32_t i
    # Acquire: as in ring_waiting, which looks only when it believes that nothing waits.
    x.rx.theirs = load_acquire_u32(x.rx.producer)
    for i in range(min(x.rx.theirs - x.rx.mine, <uint32_t>MOST_BUFFERS)):
        d = &(<const xdp_desc *>x.rx.entries)[(x.rx.mine + i) & x.rx.mask]
        if not add_part(x, s, d):
            good[0] = False
        if not d.options & XDP_PKT_CONTD or i + 1 == MOST_BUFFERS:
            x.rx.mine += i + 1
            return True
    leave(s, 0)
    return False


cdef uint32_t take_spanned(xdp_port *x) noexcept nogil:
    """Take the next frame, which is in several arrivals; returns how many, 0 if it has to wait."""
    cdef uint32_t before = x.rx.mine
    cdef bint good = True
    cdef net_header header
    cdef spanned s
    s.count = s.own = s.length = 0
    if not find_parts(x, &s, &good):
        return 0
    memset(&header, 0, sizeof(header))
    if not good:
        give_up(x, &s, DROP_UNEXPECTED_PLACE)
    elif s.length > x.longest_frame:
        give_up(x, &s, DROP_TOO_LONG)
    elif s.own == s.count:
        if x.finish_checksums and finish_checksum(s.pieces, s.count, s.length, &header, may_mark(x)):
            x.base.pair.counters.rx.checksums += 1
        arrive_in_guest_buffers(x, &s, &header, COPY_SEVERAL_BUFFERS)
    elif s.own:
        # The guest has begun to offer other buffers, too small ones or larger ones, in mid-frame.
        give_up(x, &s, DROP_NO_BUFFERS)
    elif arrive_in_spares(x, s.pieces, s.count, s.length, s.buffers[0].reason, NULL):
        finish_all(x, &s)
    else:
        leave(&s, 0)
        x.rx.mine = before
        return 0
    return x.rx.mine - before


cdef void finish_all(xdp_port *x, spanned *s) noexcept nogil:
    cdef uint32_t i
    for i in range(s.count):
        finish_posted(x, s.buffers[i])


cdef bint has_room(const xdp_port *x, uint32_t length) noexcept nogil:
    """Tell whether the guest's waiting chains can take a merged frame, and its header in one piece."""
    cdef const pair_context *pair = x.base.pair
    cdef const burst *b = pair.buffers
    return buffers_for(pair, pair.header_size + length) > 0 and (
        chain_segments(b, &b.chains[b.first]).length >= pair.header_size)


cdef void find_run(xdp_port *x, spanned *s, uint32_t waiting) noexcept nogil:
    """Find arrivals, all in the guest's buffers or all in spare ones, that together are one segmented frame.

    Of all but the first, only the payload remains.
    """
    cdef const xdp_desc *d
    cdef uint32_t payload, i
    cdef bint fits
    for i in range(min(waiting, <uint32_t>MOST_BUFFERS)):
        d = &(<const xdp_desc *>x.rx.entries)[(x.rx.mine + i) & x.rx.mask]
        if d.options & XDP_PKT_CONTD:
            return
        fits = add_part(x, s, d)
        if s.count != i + 1:
            return
        if fits and s.buffers[i].head != NO_HEAD and s.buffers[i].frame != GUEST_BUFFER:
            fits = False        # a bounce frame that stands for a chain: its frame belongs there
        if fits and i == 0:
            merge_begin(&x.merger, <uint8_t *>s.pieces[0].data, s.pieces[0].length)
            continue
        if fits:
            fits = (s.own == 0 or s.own == s.count) and (s.own or has_room(x, s.length)) and (
                merge_append(&x.merger, s.pieces[i].data, s.pieces[i].length, &payload))
        if not fits:
            leave(s, i)
            s.length -= s.pieces[i].length
            s.own -= s.buffers[i].frame == GUEST_BUFFER
            s.count = i
            return
        s.length -= payload
        s.pieces[i].data += payload
        s.pieces[i].length -= payload


cdef uint32_t take_merged(xdp_port *x, uint32_t waiting) noexcept nogil:
    """Take the next frames, if several can be merged; returns how many, 0 if they cannot."""
    cdef net_header header
    cdef spanned s
    s.count = s.own = s.length = 0
    x.merger.offloads = x.base.pair.offloads
    find_run(x, &s, waiting)
    memset(&header, 0, sizeof(header))
    if not merge_close(&x.merger, &header):
        leave(&s, 0)
        return 0
    x.rx.mine += s.count
    if s.own:
        arrive_in_guest_buffers(x, &s, &header, COPY_MERGED)
    else:
        # There is room: it was looked for before the headers were changed.
        arrive_in_spares(x, s.pieces, s.count, s.length, COPY_MERGED, &header)
        x.base.pair.counters.rx.gso_frames += 1
        x.base.pair.counters.rx.segments += s.count
        finish_all(x, &s)
    return s.count
