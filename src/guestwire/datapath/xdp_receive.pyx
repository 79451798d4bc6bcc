# cython: language_level=3
"""The receiving half of the xdp port.

A buffer that can hold the largest frame in one piece goes to the kernel itself: its fill address lies
``256 + headroom`` bytes before the place where the frame shall be, just behind the virtio_net_hdr. For any
other buffer the kernel gets a bounce frame, and the frame is copied when it arrives. ``posted`` lists what
the kernel has, in the order it got it; an arrival for anything else is not believed.

Some drivers misbehave when the fill ring runs dry. For them the kernel gets spare bounce frames whenever the
guest's own buffers are fewer than the ``reserve``; while any are out, as many of the guest's buffers wait for
what arrives in them.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memmove

cdef extern from "<sys/socket.h>" nogil:
    ssize_t recvfrom(int fd, void *data, size_t size, int flags, void *address, uint32_t *length)
    const int MSG_DONTWAIT

from guestwire.datapath.abi cimport used_element, xdp_desc
from guestwire.datapath.atomics cimport load_acquire_u32, load_relaxed_u16
from guestwire.datapath.chains cimport read_chain
from guestwire.datapath.counters cimport (
    COPY_BAD_PLACE,
    COPY_BOUNCE_MODE,
    COPY_BUFFER_TOO_SMALL,
    COPY_FEW_BUFFERS,
    COPY_PAGE_CROSSING,
    DROP_NO_BUFFERS,
    DROP_TOO_LONG,
    DROP_UNEXPECTED_PLACE,
    pair_counters,
)
from guestwire.datapath.frames cimport (
    DELIVER_NEVER,
    NET_HEADER,
    deliver,
    fill_chain,
    piece,
    write_net_header,
)
from guestwire.datapath.port cimport pair_context, port_interface
from guestwire.datapath.split_ring cimport (
    BURST_CHAINS,
    RING_OK,
    burst,
    chain,
    split_ring,
)
from guestwire.datapath.window cimport FRAME_BYTES, window_contiguous
from guestwire.datapath.xdp cimport (
    ARRIVED,
    COPY_NOT,
    GUEST_BUFFER,
    NO_HEAD,
    OFFSET_SHIFT,
    SEND_RESERVE,
    WITH_THE_KERNEL,
    address_bits,
    frame_address,
    posted_buffer,
    xdp_port,
)
from guestwire.datapath.xdp_socket cimport (
    ring_needs_wakeup,
    ring_release,
    ring_space,
    ring_submit,
    ring_waiting,
)


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
    cdef uint32_t size = pair.header_size
    header[0] = c.offset
    data[0] = c.offset + size
    if c.first_length >= size + needed:
        return True
    # A buffer for the header, and one for the frame.
    if c.first_length != size or c.segment_count == 1:
        return False
    data[0] = b.segments[c.first_segment + 1].offset
    return b.segments[c.first_segment + 1].length >= needed


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


cdef uint32_t chains_waiting(const xdp_port *x, const burst *buffers) noexcept nogil:
    """How many chains the guest has on offer: those taken from its ring, and those still in it.

    The guest's index decides here only which buffers are posted first; nothing else is built on it.
    """
    cdef const split_ring *ring = x.base.pair.rx
    cdef uint16_t in_ring = load_relaxed_u16(&ring.available.index) - ring.last_available
    return buffers.end - buffers.first + min(in_ring, ring.size)


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
    while count < most and c.first_length >= needed:
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


cdef void post_chains(xdp_port *x, burst *buffers) noexcept nogil:
    """Post the guest's buffers, and bounce frames for those to which the kernel must not write."""
    cdef pair_context *pair = x.base.pair
    cdef uint32_t space = post_space(x)
    cdef uint32_t waiting = buffers.end - buffers.first
    cdef uint64_t header, data
    cdef uint32_t count
    cdef uint8_t reason
    cdef chain *c
    if x.spare_posted:
        waiting = chains_waiting(x, buffers)
    else:
        count = post_plain(x, buffers, min(space, waiting))
        waiting -= count
        space -= count
    # A spare frame posted needs a chain that waits for what arrives in it: only chains beyond those are
    # posted themselves.
    while space and buffers.first != buffers.end and waiting > x.spare_posted:
        c = &buffers.chains[buffers.first]
        reason = COPY_BUFFER_TOO_SMALL
        if place_for_frame(pair, buffers, c, x.room_needed, &header, &data):
            reason = COPY_NOT
            if x.zero_copy:
                reason = obstacle_to_dma(x, header, data)
        if reason == COPY_NOT:
            post(x, data - x.umem - x.before_frame, header, GUEST_BUFFER, c.head, 0)
        elif c.length < pair.header_size + x.longest_frame:
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
    if x.guest_memory:
        post_chains(x, buffers)
        if x.reserve and x.chains_posted + max(x.spare_posted, chains_waiting(x, buffers)) < x.reserve:
            # Of the chains that wait, the next passes post those beyond the spare frames.
            post_spare_frames(x, x.reserve - x.chains_posted, COPY_FEW_BUFFERS, 0)
    else:
        post_spare_frames(x, x.fill.size, COPY_BOUNCE_MODE, SEND_RESERVE)
    if x.fill.mine != before:
        ring_submit(x.fill)
    # Looked at on every pass: the driver may ask for a wake-up after we have submitted.
    if ring_needs_wakeup(x.fill) and load_acquire_u32(x.fill.consumer) != x.fill.mine:
        recvfrom(self.fd, NULL, 0, MSG_DONTWAIT, NULL, NULL)
        self.pair.counters.system_calls += 1


cdef posted_buffer *find_posted(xdp_port *x, uint64_t address) noexcept nogil:
    """The entry for an arrival. The kernel keeps the order but for buffers it had to put back."""
    cdef uint32_t i = x.posted_first
    cdef posted_buffer *e
    while i != x.posted_end:
        e = &x.posted[i & x.posted_mask]
        if e.address == address and e.state == WITH_THE_KERNEL:
            return e
        i += 1
    return NULL


cdef inline void skip_arrived(xdp_port *x) noexcept nogil:
    while x.posted_first != x.posted_end and x.posted[x.posted_first & x.posted_mask].state == ARRIVED:
        x.posted_first += 1


cdef void finish_posted(xdp_port *x, posted_buffer *e) noexcept nogil:
    e.state = ARRIVED
    if e.head == NO_HEAD:
        x.spare_posted -= 1
    else:
        x.chains_posted -= 1
    if e.frame != GUEST_BUFFER:
        x.free_frames[x.free_count] = e.frame
        x.free_count += 1
    skip_arrived(x)


cdef inline void return_chain(xdp_port *x, posted_buffer *e, uint32_t written) noexcept nogil:
    x.received_elements[x.received].id = e.head
    x.received_elements[x.received].length = written
    x.received += 1
    finish_posted(x, e)


cdef void count_copied(pair_counters *counters, uint32_t reason, uint32_t length) noexcept nogil:
    counters.rx.frames += 1
    counters.rx.bytes += length
    counters.rx.copied_frames[reason] += 1
    counters.rx.copied_bytes += length


cdef void arrive_in_guest_buffer(
    xdp_port *x, posted_buffer *e, uint32_t shift, uint32_t length
) noexcept nogil:
    """A frame in the guest's own buffer, out of turn, too long, or not where it was to be."""
    cdef pair_context *pair = x.base.pair
    cdef pair_counters *counters = pair.counters
    cdef uint8_t *at = pair.window.base + x.umem + e.address
    if length > x.room_needed or shift + length > x.chunk:
        # More than the interface's largest frame: never promised to fit.
        counters.rx.drops[DROP_TOO_LONG] += 1
        return_chain(x, e, 0)
        return
    if shift != x.before_frame:
        memmove(at + x.before_frame, at + shift, length)
        count_copied(counters, COPY_BAD_PLACE, length)
    else:
        counters.rx.frames += 1
        counters.rx.bytes += length
        if x.zero_copy:
            counters.rx.zero_copy_frames += 1
        else:
            counters.rx.direct_frames += 1
    write_net_header(pair.window.base + e.header, pair.header_size, 1)
    return_chain(x, e, pair.header_size + length)


cdef void arrive_for_chain(xdp_port *x, posted_buffer *e, const piece *frame) noexcept nogil:
    """A frame in the bounce frame that stands for a chain: copy it there.

    The chain's descriptors are read and checked again; the guest may have changed them.
    """
    cdef pair_context *pair = x.base.pair
    cdef uint8_t header[12]
    cdef uint32_t total = pair.header_size + frame.length
    cdef chain c
    x.scratch.segment_end = 0
    if read_chain(pair.rx, e.head, x.scratch, &c) != RING_OK or c.length < total:
        pair.counters.rx.drops[DROP_TOO_LONG] += 1
        total = 0
    else:
        write_net_header(header, pair.header_size, 1)
        fill_chain(pair, x.scratch, &c, 0, header, pair.header_size)
        fill_chain(pair, x.scratch, &c, pair.header_size, frame.data, frame.length)
        count_copied(pair.counters, e.reason, frame.length)
    return_chain(x, e, total)


cdef bint arrive_in_spare(xdp_port *x, posted_buffer *e, const piece *frame) noexcept nogil:
    """A frame in a spare bounce frame: copy it to the next chains. Returns False if it has to wait."""
    cdef pair_context *pair = x.base.pair
    cdef int buffers = deliver(pair, frame, 1, frame.length, &x.received_elements[x.received])
    if buffers > 0:
        x.received += buffers
        x.overtaken = x.posted_end
        count_copied(pair.counters, e.reason, frame.length)
    elif buffers == DELIVER_NEVER:
        pair.counters.rx.drops[DROP_TOO_LONG] += 1
    elif x.chains_posted == 0 or chains_waiting(x, pair.buffers) > pair.buffers.end - pair.buffers.first:
        # It waits until the worker has taken more chains from the ring, or the guest offers some.
        x.base.wants_buffers = True
        return False
    else:
        # Waiting could be for ever: the guest offers more only when it gets back what it has posted,
        # and that is behind this frame.
        pair.counters.rx.drops[DROP_NO_BUFFERS] += 1
    finish_posted(x, e)
    return True


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
    # The kernel is believed, but not about what lies outside of what it was given.
    frame.data = x.base.pair.window.base + x.umem + e.address + shift
    frame.length = min(length, FRAME_BYTES - min(shift, <uint32_t>FRAME_BYTES))
    if e.head == NO_HEAD:
        return arrive_in_spare(x, e, &frame)
    arrive_for_chain(x, e, &frame)
    return True


cdef inline uint32_t take_in_place(xdp_port *x, uint32_t most) noexcept nogil:
    """Take up to `most` arrivals as long as each is in the next buffer posted, which is the guest's own.

    All that such a frame needs is its header. Returns how many; the next arrival, if any, is for `arrive`.
    """
    cdef uint8_t *base = x.base.pair.window.base
    cdef pair_counters *counters = x.base.pair.counters
    cdef uint16_t header_size = x.base.pair.header_size
    cdef uint32_t room = x.room_needed
    cdef uint64_t shift = <uint64_t>x.before_frame << OFFSET_SHIFT
    cdef const xdp_desc *arrivals = <const xdp_desc *>x.rx.entries
    cdef uint32_t mask = x.rx.mask
    cdef uint32_t position = x.rx.mine
    cdef posted_buffer *posted = x.posted
    cdef uint32_t posted_mask = x.posted_mask
    cdef uint32_t first = x.posted_first
    cdef used_element *element = &x.received_elements[x.received]
    cdef uint32_t count = 0
    cdef uint64_t octets = 0
    cdef const xdp_desc *d
    cdef posted_buffer *e
    most = min(most, x.posted_end - first)
    while count < most:
        d = &arrivals[position & mask]
        e = &posted[first & posted_mask]
        if (d.addr != e.address | shift or d.len > room or e.frame != GUEST_BUFFER
                or e.state != WITH_THE_KERNEL):
            break
        write_net_header(base + e.header, header_size, 1)
        element.id = e.head
        element.length = header_size + d.len
        e.state = ARRIVED
        octets += d.len
        element += 1
        position += 1
        first += 1
        count += 1
    x.rx.mine = position
    x.received += count
    x.chains_posted -= count
    x.posted_first = first
    skip_arrived(x)
    counters.rx.frames += count
    counters.rx.bytes += octets
    if x.zero_copy:
        counters.rx.zero_copy_frames += count
    else:
        counters.rx.direct_frames += count
    return count


cdef bint take_other(xdp_port *x) noexcept nogil:
    """Take the next arrival, whatever it is. Returns False if it has to wait."""
    cdef const xdp_desc *d = &(<const xdp_desc *>x.rx.entries)[x.rx.mine & x.rx.mask]
    cdef posted_buffer *e = find_posted(x, address_bits(d.addr))
    if e == NULL:
        x.base.pair.counters.rx.drops[DROP_UNEXPECTED_PLACE] += 1
    elif not arrive(x, e, d.addr >> OFFSET_SHIFT, d.len):
        return False
    x.rx.mine += 1
    return True


cdef uint32_t xdp_rx_poll(port_interface *self, const used_element **done) noexcept nogil:
    cdef xdp_port *x = <xdp_port *>self
    cdef uint32_t waiting
    x.received = 0
    done[0] = x.received_elements
    if x.closed:
        return_skipped(x)
        return x.received
    self.wants_buffers = x.guest_memory and (
        x.spare_posted != 0 or 2 * x.chains_posted < self.pair.rx.size)
    waiting = ring_waiting(x.rx)
    while waiting and x.received < BURST_CHAINS:
        waiting -= take_in_place(x, min(waiting, BURST_CHAINS - x.received))
        if waiting and x.received < BURST_CHAINS:
            if not take_other(x):
                break
            waiting -= 1
    ring_release(x.rx)
    return x.received
