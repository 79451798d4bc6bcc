# cython: language_level=3
"""The receiving half of the xdp port, part one: buffers for the kernel.

A buffer that can hold the largest frame in one piece goes to the kernel itself: its fill address lies
``256 + headroom`` bytes before the place where the frame shall be, just behind the virtio_net_hdr. For any
other buffer the kernel gets a bounce frame, and the frame is copied when it arrives. ``posted`` lists what
the kernel has, in the order it got it.

Where frames are longer than a chunk (``several_buffers``) a buffer qualifies if it has room for all that the
kernel writes into one, and the kernel goes on in the next.

Some drivers misbehave when the fill ring runs dry. For them the kernel gets spare bounce frames whenever the
guest's own buffers are fewer than the ``reserve``; while any are out, as many of the guest's buffers wait for
what arrives in them.

A port with stand-ins (xdp_stand_in) keeps half of the guest's buffers from the kernel, for what arrives
there.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

cdef extern from "<sys/socket.h>" nogil:
    ssize_t recvfrom(int fd, void *data, size_t size, int flags, void *address, uint32_t *length)
    const int MSG_DONTWAIT

from guestwire.datapath.abi cimport NET_HEADER
from guestwire.datapath.atomics cimport load_acquire_u32
from guestwire.datapath.counters cimport (
    COPY_BAD_PLACE,
    COPY_BOUNCE_MODE,
    COPY_BUFFER_TOO_SMALL,
    COPY_FEW_BUFFERS,
    COPY_PAGE_CROSSING,
)
from guestwire.datapath.port cimport pair_context
from guestwire.datapath.ring cimport BURST_CHAINS, chain, chain_segments, segment
from guestwire.datapath.window cimport window_contiguous
from guestwire.datapath.xdp cimport (
    COPY_NOT,
    GUEST_BUFFER,
    MOST_HELD,
    NO_HEAD,
    POSTED_LEAST,
    SEND_RESERVE,
    WITH_THE_KERNEL,
    frame_address,
    posted_buffer,
)
from guestwire.datapath.xdp_socket cimport ring_needs_wakeup, ring_space, ring_submit, ring_waiting


cdef inline void post(
    xdp_port *x, uint64_t address, uint64_t header, uint32_t frame, uint16_t head, uint8_t reason
) noexcept nogil:
    cdef posted_buffer *e = &x.posted[x.posted_end & x.posted_mask]
    e.address = address
    e.header = header
    e.frame = frame
    e.head = head
    e.state = WITH_THE_KERNEL
    e.reason = reason
    x.posted_end += 1
    (<uint64_t *>x.fill.entries)[x.fill.mine & x.fill.mask] = address
    x.fill.mine += 1
    if head == NO_HEAD:
        x.spare_posted += 1
    else:
        x.chains_posted += 1


cdef inline bint place_for_frame(
    const pair_context *pair, const burst *b, const chain *c, uint32_t needed,
    uint64_t *header, uint64_t *data
) noexcept nogil:
    """Find where header and frame go if `needed` bytes lie in one piece behind a header in one piece."""
    cdef const segment *s = chain_segments(b, c)
    cdef uint32_t size = pair.header_size
    header[0] = s[0].offset
    data[0] = s[0].offset + size
    if s[0].length >= size + needed:
        return True
    # A buffer for the header, and one for the frame.
    if s[0].length != size or c.segment_count == 1:
        return False
    data[0] = s[1].offset
    return s[1].length >= needed


cdef inline void post_frame(xdp_port *x, uint16_t head, uint8_t reason) noexcept nogil:
    x.free_count -= 1
    post(x, frame_address(x, x.free_frames[x.free_count]), 0, x.free_frames[x.free_count], head, reason)


cdef void close_gaps(xdp_port *x) noexcept nogil:
    """Move together what the kernel still has, in order: one buffer that never comes back holds up none."""
    cdef uint32_t to = x.posted_end
    cdef uint32_t i = x.posted_end
    cdef uint32_t overtaken = x.overtaken
    cdef bint passed = False
    while i != x.posted_first:
        if i == overtaken and not passed:
            passed, x.overtaken = True, to
        i -= 1
        if x.posted[i & x.posted_mask].state == WITH_THE_KERNEL:
            to -= 1
            x.posted[to & x.posted_mask] = x.posted[i & x.posted_mask]
        elif not passed:
            # It was returned: what is before it is older than a returned chain, and stays so.
            passed, x.overtaken = True, to
    x.posted_first = to


cdef void post_again(xdp_port *x, const posted_buffer *e) noexcept nogil:
    """Post a buffer of the guest's once more that has come back and was not needed.

    It is older than chains that were returned since. There is room for it, since its entry was given back.
    """
    if x.posted_end - x.posted_first > x.posted_mask:
        close_gaps(x)
    ring_space(x.fill, 1)   # it has room, since all that was posted has; but its index may be an old one
    post(x, e.address, e.header, GUEST_BUFFER, e.head, 0)
    x.overtaken = x.posted_end
    ring_submit(x.fill)


cdef inline uint32_t post_space(xdp_port *x) noexcept nogil:
    if x.posted_end - x.posted_first > x.posted_mask and (
            x.chains_posted + x.spare_posted <= x.posted_mask // 2):
        close_gaps(x)
    return min(x.posted_mask + 1 - (x.posted_end - x.posted_first), ring_space(x.fill, BURST_CHAINS))


cdef void post_spare_frames(xdp_port *x, uint32_t most, uint8_t reason, uint32_t leave) noexcept nogil:
    """Post bounce frames that belong to no chain, until the kernel has `most` of them or `leave` are left."""
    cdef uint32_t space = post_space(x)
    while space and x.free_count > leave and x.spare_posted < most:
        post_frame(x, NO_HEAD, reason)
        space -= 1
    x.spares_lacking = x.spare_posted < most


cdef inline uint8_t obstacle_to_dma(const xdp_port *x, uint64_t header, uint64_t data) noexcept nogil:
    """Say why a NIC must not write to this place, or COPY_NOT.

    A virtio_net host NIC writes 12 bytes of its own right before the frame: they must be the header's.
    """
    cdef const pair_context *pair = x.base.pair
    if pair.header_size < 12 or data != header + pair.header_size:
        return COPY_BAD_PLACE
    if not window_contiguous(pair.window, data - x.before_frame, x.chunk):
        return COPY_PAGE_CROSSING
    return COPY_NOT


cdef inline uint32_t post_plain(xdp_port *x, burst *buffers, uint32_t most) noexcept nogil:
    """Post up to `most` buffers from the burst's front, as long as the kernel or the NIC may write to each.

    Only those that hold header and frame in one piece, as most do. Returns how many; the next one, if any,
    is for `post_chains`.
    """
    cdef const pair_context *pair = x.base.pair
    cdef const uint8_t *joined = pair.window.joined if x.zero_copy else NULL
    cdef uint32_t header_size = pair.header_size
    cdef uint32_t needed = header_size + x.room_needed
    cdef uint64_t before = x.before_frame - header_size
    cdef uint64_t last = x.chunk - 1
    cdef uint64_t umem = x.umem
    cdef uint64_t *fill = <uint64_t *>x.fill.entries
    cdef uint32_t mask = x.fill.mask
    cdef uint32_t position = x.fill.mine
    cdef posted_buffer *posted = x.posted
    cdef uint32_t posted_mask = x.posted_mask
    cdef uint32_t end = x.posted_end
    cdef const chain *c = &buffers.chains[buffers.first]
    cdef uint32_t count = 0
    cdef uint64_t start
    cdef posted_buffer *e
    if joined != NULL and header_size < NET_HEADER:
        return 0
    while count < most and c.segment_count == 1 and c.length >= needed:
        start = c.offset - before
        # No chunk is longer than a page: it crosses one border at most.
        if joined != NULL and (start ^ (start + last)) >> 12 and not joined[start >> 12]:
            break
        e = &posted[end & posted_mask]
        e.address = start - umem
        e.header = c.offset
        e.frame = GUEST_BUFFER
        e.head = c.head
        e.state = WITH_THE_KERNEL
        fill[position & mask] = start - umem
        position += 1
        end += 1
        count += 1
        c += 1
    buffers.first += count
    x.posted_end = end
    x.fill.mine = position
    x.chains_posted += count
    return count


cdef inline uint32_t held_for_stand_ins(const xdp_port *x) noexcept nogil:
    """How many chains the kernel does not get, so that frames of other queues find some.

    Drivers offer buffers again only once enough have come back: older Linux kernels when more than half of
    the ring is free. Used up, these are enough for any, so that the driver fills them up.
    """
    return min(x.base.pair.rx.size // 2 + 1, <uint32_t>MOST_HELD) if x.stand_in_count else 0


cdef void post_chains(xdp_port *x, burst *buffers, uint32_t held) noexcept nogil:
    """Post the guest's buffers but for those `held`, and bounce frames where the kernel must not write."""
    cdef pair_context *pair = x.base.pair
    cdef uint32_t space = post_space(x)
    cdef uint32_t waiting = buffers.end - buffers.first
    cdef uint64_t header, data
    cdef uint32_t count
    cdef uint8_t reason
    cdef chain *c
    # A spare frame posted needs a chain that waits for what arrives in it: only chains beyond those are
    # posted themselves.
    cdef uint32_t keep = max(x.spare_posted, held)
    if keep:
        waiting = chains_waiting(x, buffers)
    if x.spare_posted == 0 and waiting > keep:
        count = post_plain(x, buffers, min(space, waiting - keep, buffers.end - buffers.first))
        waiting -= count
        space -= count
    while space and buffers.first != buffers.end and waiting > keep:
        c = &buffers.chains[buffers.first]
        reason = COPY_BUFFER_TOO_SMALL
        if place_for_frame(pair, buffers, c, x.room_needed, &header, &data):
            reason = COPY_NOT
            if x.zero_copy:
                reason = obstacle_to_dma(x, header, data)
            elif x.several_buffers and data != header + pair.header_size:
                # What is not a frame's beginning belongs where the header is, and that is too short.
                reason = COPY_BAD_PLACE
        if reason == COPY_NOT:
            post(x, data - x.umem - x.before_frame, header, GUEST_BUFFER, c.head, 0)
        elif x.several_buffers or c.length < pair.header_size + x.longest_frame:
            # It cannot hold a frame by itself: it waits here for arrivals in spare frames.
            post_spare_frames(x, chains_waiting(x, buffers), reason, SEND_RESERVE)
            return
        elif x.free_count > (SEND_RESERVE if x.chains_posted + x.spare_posted >= x.reserve else 0):
            post_frame(x, c.head, reason)
        else:
            return
        buffers.first += 1
        waiting -= 1
        space -= 1


cdef void xdp_rx_post(port_interface *self, burst *buffers) noexcept nogil:
    cdef xdp_port *x = <xdp_port *>self
    cdef uint32_t before = x.fill.mine
    cdef uint32_t held = held_for_stand_ins(x)
    cdef uint32_t reserve = max(x.reserve, <uint32_t>POSTED_LEAST) if held else x.reserve
    cdef uint32_t waiting
    if x.guest_memory:
        post_chains(x, buffers, held)
        if reserve:
            # Of the chains that wait, the next passes post those beyond the spare frames, or those held.
            waiting = chains_waiting(x, buffers)
            if x.chains_posted + max(x.spare_posted, waiting - min(waiting, held)) < reserve:
                post_spare_frames(x, reserve - x.chains_posted, COPY_FEW_BUFFERS, 0)
    else:
        post_spare_frames(x, x.fill.size, COPY_BOUNCE_MODE, SEND_RESERVE)
    if x.fill.mine != before:
        ring_submit(x.fill)
        # A driver that found the ring empty just before may say only later that it wants to be woken: a look
        # before we sleep, or a call that the kernel makes hang on the same flag, could come too early.
        self.look_later = x.zero_copy
    # Looked at on every pass: the driver may ask for a wake-up after we have submitted. When busy polling is
    # preferred nobody but this call makes the NIC's driver look for frames, and for those that have left.
    if ((ring_needs_wakeup(x.fill) and load_acquire_u32(x.fill.consumer) != x.fill.mine)
            or (x.busy_poll and ring_waiting(x.rx) == 0)):
        recvfrom(self.fd, NULL, 0, MSG_DONTWAIT, NULL, NULL)
        self.pair.counters.system_calls += 1
