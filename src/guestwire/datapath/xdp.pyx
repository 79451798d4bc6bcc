# cython: language_level=3
"""The xdp port: guest buffers on the rings of an AF_XDP socket.

Receive. A buffer that can hold the largest frame in one piece goes to the kernel itself: its fill address
lies ``256 + headroom`` bytes before the place where the frame shall be, just behind the virtio_net_hdr. For
any other buffer the kernel gets a bounce frame, and the frame is copied when it arrives. ``posted`` lists
what the kernel has, in the order it got it; an arrival for anything else is not believed.

Transmit. The pieces of a frame become descriptors that point into the guest's pages, with the chain's head
in the upper 16 bits of the address, which the completion gives back. What cannot be described so is copied
to a bounce frame, and the chain is the guest's again at once.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memmove
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec

cdef extern from "<sys/socket.h>" nogil:
    ssize_t sendto(int fd, const void *data, size_t size, int flags, const void *address, uint32_t length)
    ssize_t recvfrom(int fd, void *data, size_t size, int flags, void *address, uint32_t *length)
    const int MSG_DONTWAIT

from guestwire.datapath.abi cimport XDP_PKT_CONTD, used_element, xdp_desc
from guestwire.datapath.atomics cimport load_acquire_u32
from guestwire.datapath.counters cimport (
    COPY_BAD_PLACE,
    COPY_BOUNCE_MODE,
    COPY_BUFFER_TOO_SMALL,
    COPY_PAGE_CROSSING,
    COPY_SCATTERED,
    DROP_NO_BUFFERS,
    DROP_TOO_LONG,
    DROP_UNEXPECTED_PLACE,
    pair_counters,
)
from guestwire.datapath.frames cimport (
    DELIVER_NEVER,
    check_sent_frame,
    deliver,
    fill_chain,
    frame_pieces,
    piece,
    write_net_header,
)
from guestwire.datapath.port cimport Port, pair_context, port
from guestwire.datapath.split_ring cimport (
    BURST_CHAINS,
    BURST_SEGMENTS,
    RING_OK,
    burst,
    chain,
    split_ring_read_chain,
)
from guestwire.datapath.window cimport FRAME_BYTES, window, window_contiguous
from guestwire.datapath.xdp_socket cimport (
    XdpSocket,
    ring_needs_wakeup,
    ring_release,
    ring_space,
    ring_submit,
    ring_waiting,
    socket_ring,
)

cdef enum:
    KERNEL_HEADROOM = 256       # XDP_PACKET_HEADROOM
    OFFSET_SHIFT = 48           # XSK_UNALIGNED_BUF_OFFSET_SHIFT
    MOST_PIECES = 17            # of one frame; the kernel's copy mode takes 18 descriptors
    NO_HEAD = 0xFFFF            # a bounce frame for whichever chain comes next
    GUEST_BUFFER = 0xFFFFFFFF   # not a bounce frame
    SEND_RESERVE = 64           # bounce frames that receiving leaves for sending
    WAKES_A_BURST = 4           # the kernel sends 32 frames a call in copy mode
    DRAIN_NS = 100000000        # the longest wait for frames on their way out
    COPY_NOT = 0xFF             # beside the reasons: no copy
    WITH_THE_KERNEL = 1
    ARRIVED = 0

cdef uint64_t ADDRESS_MASK = (<uint64_t>1 << OFFSET_SHIFT) - 1

cdef struct posted_buffer:
    uint64_t address            # in the UMEM, as written to the fill ring
    uint64_t header             # window offset of the virtio_net_hdr, for a guest buffer
    uint32_t frame              # number of the bounce frame, or GUEST_BUFFER
    uint16_t head               # the chain, or NO_HEAD
    uint8_t state
    uint8_t reason              # why a bounce frame: COPY_...

cdef struct xdp_port:
    port base
    socket_ring *fill
    socket_ring *completion
    socket_ring *rx
    socket_ring *tx
    uint64_t umem               # window offset of UMEM address 0
    uint64_t bounce             # UMEM address of the first bounce frame
    uint32_t chunk
    uint32_t before_frame       # bytes from a fill address to its frame
    uint32_t room_needed        # bytes a guest buffer must have behind the header
    uint32_t longest_frame
    uint32_t most_pieces        # descriptors a sent frame may have
    bint guest_memory           # the guest's memory is registered: direct or zero-copy
    bint zero_copy
    bint closed
    # Receive.
    posted_buffer *posted
    uint32_t posted_mask
    uint32_t posted_first
    uint32_t posted_end
    uint32_t chains_posted      # entries with a chain: more of the guest's buffers come only after them
    uint32_t spare_posted       # entries without
    uint32_t received
    used_element received_elements[2 * BURST_CHAINS]
    burst *scratch              # for reading a chain a second time
    # Transmit.
    uint8_t *pieces_left        # by head: descriptors the kernel still has
    uint32_t descriptors_out
    uint32_t sent
    used_element sent_elements[BURST_CHAINS]
    piece pieces[BURST_SEGMENTS]
    # Bounce frames that nobody uses.
    uint32_t *free_frames
    uint32_t free_count


# --- receive ---------------------------------------------------------------------------------------

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


cdef inline uint64_t frame_address(const xdp_port *x, uint32_t frame) noexcept nogil:
    return x.bounce + <uint64_t>frame * FRAME_BYTES


cdef bint place_for_frame(
    const pair_context *pair, const burst *b, const chain *c, uint32_t needed,
    uint64_t *header, uint64_t *data
) noexcept nogil:
    """Find where header and frame go if `needed` bytes lie in one piece behind a header in one piece."""
    cdef uint32_t size = pair.header_size
    cdef uint32_t i = c.first_segment
    header[0] = c.offset
    if c.first_length > size:
        data[0] = c.offset + size
        return c.first_length - size >= needed
    if c.first_length < size or c.segment_count == 1:
        return False
    data[0] = b.segments[i + 1].offset
    return b.segments[i + 1].length >= needed


cdef inline void post_frame(xdp_port *x, uint16_t head, uint8_t reason) noexcept nogil:
    x.free_count -= 1
    post(x, frame_address(x, x.free_frames[x.free_count]), 0, x.free_frames[x.free_count], head, reason)


cdef void post_spare_frames(xdp_port *x, uint32_t space, uint32_t most, uint8_t reason) noexcept nogil:
    while space and x.free_count > SEND_RESERVE and x.spare_posted < most:
        post_frame(x, NO_HEAD, reason)
        space -= 1


cdef void xdp_rx_post(port *self, burst *buffers) noexcept nogil:
    cdef xdp_port *x = <xdp_port *>self
    cdef pair_context *pair = self.pair
    cdef uint32_t space = x.posted_mask + 1 - (x.posted_end - x.posted_first)
    cdef uint32_t before = x.fill.mine
    cdef uint64_t header, data
    cdef uint8_t reason
    cdef chain *c
    space = min(space, ring_space(x.fill, BURST_CHAINS))
    if not x.guest_memory:
        post_spare_frames(x, space, x.fill.size, COPY_BOUNCE_MODE)
    while x.guest_memory and space and buffers.first < buffers.end:
        c = &buffers.chains[buffers.first]
        reason = COPY_BUFFER_TOO_SMALL
        if place_for_frame(pair, buffers, c, x.room_needed, &header, &data):
            reason = COPY_PAGE_CROSSING
            if not x.zero_copy or window_contiguous(pair.window, data - x.before_frame, x.chunk):
                reason = COPY_NOT
        if reason == COPY_NOT:
            post(x, data - x.umem - x.before_frame, header, GUEST_BUFFER, c.head, 0)
        elif c.length < pair.header_size + x.longest_frame:
            # It cannot hold a frame by itself: it waits here for arrivals in spare frames.
            post_spare_frames(x, space, BURST_CHAINS, reason)
            break
        elif x.free_count > SEND_RESERVE:
            post_frame(x, c.head, reason)
        else:
            break
        buffers.first += 1
        space -= 1
    if x.fill.mine != before:
        ring_submit(x.fill)
        if ring_needs_wakeup(x.fill):
            recvfrom(self.fd, NULL, 0, MSG_DONTWAIT, NULL, NULL)
            pair.counters.system_calls += 1


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


cdef void finish_posted(xdp_port *x, posted_buffer *e) noexcept nogil:
    e.state = ARRIVED
    if e.head == NO_HEAD:
        x.spare_posted -= 1
    else:
        x.chains_posted -= 1
    if e.frame != GUEST_BUFFER:
        x.free_frames[x.free_count] = e.frame
        x.free_count += 1
    while x.posted_first != x.posted_end and x.posted[x.posted_first & x.posted_mask].state == ARRIVED:
        x.posted_first += 1


cdef void count_copied(pair_counters *counters, uint32_t reason, uint32_t length) noexcept nogil:
    counters.rx.frames += 1
    counters.rx.bytes += length
    counters.rx.copied_frames[reason] += 1
    counters.rx.copied_bytes += length


cdef void arrive_in_place(xdp_port *x, posted_buffer *e, uint32_t shift, uint32_t length) noexcept nogil:
    """A frame in the guest's own buffer: all that is missing is its header."""
    cdef pair_context *pair = x.base.pair
    cdef pair_counters *counters = pair.counters
    cdef uint8_t *at = pair.window.base + x.umem + e.address
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
    x.received_elements[x.received].id = e.head
    x.received_elements[x.received].length = pair.header_size + length
    x.received += 1
    finish_posted(x, e)


cdef void arrive_for_chain(xdp_port *x, posted_buffer *e, const piece *frame) noexcept nogil:
    """A frame in the bounce frame that stands for a chain: copy it there.

    The chain's descriptors are read and checked again; the guest may have changed them.
    """
    cdef pair_context *pair = x.base.pair
    cdef uint8_t header[12]
    cdef uint32_t total = pair.header_size + frame.length
    cdef chain c
    x.scratch.segment_end = 0
    if split_ring_read_chain(pair.rx, e.head, x.scratch, &c) != RING_OK or c.length < total:
        pair.counters.rx.drops[DROP_TOO_LONG] += 1
        total = 0
    else:
        write_net_header(header, pair.header_size, 1)
        fill_chain(pair, x.scratch, &c, 0, header, pair.header_size)
        fill_chain(pair, x.scratch, &c, pair.header_size, frame.data, frame.length)
        count_copied(pair.counters, e.reason, frame.length)
    x.received_elements[x.received].id = e.head
    x.received_elements[x.received].length = total
    x.received += 1
    finish_posted(x, e)


cdef bint arrive_in_spare(xdp_port *x, posted_buffer *e, const piece *frame) noexcept nogil:
    """A frame in a spare bounce frame: copy it to the next chains. Returns False if it has to wait."""
    cdef pair_context *pair = x.base.pair
    cdef int buffers = deliver(pair, frame, 1, frame.length, &x.received_elements[x.received])
    if buffers > 0:
        x.received += buffers
        count_copied(pair.counters, e.reason, frame.length)
    elif buffers == DELIVER_NEVER:
        pair.counters.rx.drops[DROP_TOO_LONG] += 1
    elif x.chains_posted == 0:
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
    while last != x.posted_first and x.posted[(last - 1) & x.posted_mask].state == WITH_THE_KERNEL:
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


cdef uint32_t xdp_rx_poll(port *self, const used_element **done) noexcept nogil:
    cdef xdp_port *x = <xdp_port *>self
    cdef pair_context *pair = self.pair
    cdef xdp_desc *d
    cdef uint64_t address
    cdef uint32_t shift, waiting
    cdef posted_buffer *e
    cdef piece frame
    x.received = 0
    done[0] = x.received_elements
    if x.closed:
        return_skipped(x)
        return x.received
    self.wants_buffers = x.guest_memory and 2 * x.chains_posted < pair.rx.size
    waiting = ring_waiting(x.rx)
    while waiting and x.received < BURST_CHAINS:
        d = &(<xdp_desc *>x.rx.entries)[x.rx.mine & x.rx.mask]
        address = d.addr & ADDRESS_MASK
        shift = d.addr >> OFFSET_SHIFT
        e = find_posted(x, address)
        if e == NULL:
            pair.counters.rx.drops[DROP_UNEXPECTED_PLACE] += 1
        elif e.frame == GUEST_BUFFER:
            arrive_in_place(x, e, shift, d.len)
        else:
            frame.data = pair.window.base + x.umem + address + shift
            frame.length = d.len
            if e.head != NO_HEAD:
                arrive_for_chain(x, e, &frame)
            elif not arrive_in_spare(x, e, &frame):
                break
        x.rx.mine += 1
        waiting -= 1
    ring_release(x.rx)
    return x.received


# --- transmit --------------------------------------------------------------------------------------

cdef inline void return_sent(xdp_port *x, uint32_t head) noexcept nogil:
    x.sent_elements[x.sent].id = head
    x.sent_elements[x.sent].length = 0
    x.sent += 1


cdef inline void put_descriptor(xdp_port *x, uint64_t address, uint32_t length, uint32_t options) noexcept nogil:
    cdef xdp_desc *d = &(<xdp_desc *>x.tx.entries)[x.tx.mine & x.tx.mask]
    d.addr = address
    d.len = length
    d.options = options
    x.tx.mine += 1
    x.descriptors_out += 1


cdef void send_in_place(xdp_port *x, uint16_t head, uint32_t count) noexcept nogil:
    """One descriptor a piece. The address is split into base and offset so that the offset is the head."""
    cdef uint64_t address
    cdef uint32_t i
    for i in range(count):
        address = <uint64_t>(x.pieces[i].data - x.base.pair.window.base) - x.umem
        put_descriptor(x, (address - head) | <uint64_t>head << OFFSET_SHIFT, x.pieces[i].length,
                       XDP_PKT_CONTD if i + 1 < count else 0)
    x.pieces_left[head] = count
    if x.zero_copy:
        x.base.pair.counters.tx.zero_copy_frames += 1
    else:
        x.base.pair.counters.tx.direct_frames += 1


cdef uint8_t why_copy(const xdp_port *x, uint32_t count) noexcept nogil:
    """Say why the `count` pieces cannot be sent from where they are, or COPY_NOT."""
    cdef const window *w = x.base.pair.window
    cdef uint32_t i
    if not x.guest_memory:
        return COPY_BOUNCE_MODE
    if count > x.most_pieces:
        return COPY_SCATTERED
    if x.zero_copy:
        for i in range(count):
            if not window_contiguous(w, x.pieces[i].data - w.base, x.pieces[i].length):
                return COPY_PAGE_CROSSING
    return COPY_NOT


cdef void send_copy(
    xdp_port *x, uint16_t head, uint32_t count, uint32_t length, uint8_t reason
) noexcept nogil:
    cdef pair_counters *counters = x.base.pair.counters
    cdef uint64_t address
    cdef uint8_t *to
    cdef uint32_t i
    x.free_count -= 1
    address = frame_address(x, x.free_frames[x.free_count])
    to = x.base.pair.window.base + x.umem + address
    for i in range(count):
        memcpy(to, x.pieces[i].data, x.pieces[i].length)
        to += x.pieces[i].length
    put_descriptor(x, address, length, 0)
    counters.tx.copied_frames[reason] += 1
    counters.tx.copied_bytes += length
    return_sent(x, head)


cdef void wake_sender(xdp_port *x) noexcept nogil:
    """Make the kernel send what is in the tx ring. An error means later: it is asked again next pass."""
    cdef int i
    for i in range(WAKES_A_BURST):
        # Acquire is more than is needed to look whether the kernel is through.
        if load_acquire_u32(x.tx.consumer) == x.tx.mine or not ring_needs_wakeup(x.tx):
            return
        x.base.pair.counters.system_calls += 1
        if sendto(x.base.fd, NULL, 0, MSG_DONTWAIT, NULL, 0) >= 0:
            return


cdef void xdp_tx_submit(port *self, burst *frames) noexcept nogil:
    cdef xdp_port *x = <xdp_port *>self
    cdef pair_context *pair = self.pair
    cdef pair_counters *counters = pair.counters
    cdef uint32_t space = ring_space(x.tx, BURST_CHAINS)
    cdef uint32_t count, length
    cdef uint8_t copy
    cdef chain *c
    cdef int reason
    while frames.first < frames.end and x.sent < BURST_CHAINS:
        c = &frames.chains[frames.first]
        reason = check_sent_frame(pair, frames, c, x.longest_frame)
        if reason >= 0:
            counters.tx.drops[reason] += 1
            return_sent(x, c.head)
        else:
            length = c.length - pair.header_size
            count = frame_pieces(pair, frames, c, x.pieces, BURST_SEGMENTS)
            copy = why_copy(x, count)
            if space < (count if copy == COPY_NOT else 1) or (copy != COPY_NOT and x.free_count == 0):
                break
            counters.tx.frames += 1
            counters.tx.bytes += length
            if copy == COPY_NOT:
                send_in_place(x, c.head, count)
                space -= count
            else:
                send_copy(x, c.head, count, length, copy)
                space -= 1
        frames.first += 1
    ring_submit(x.tx)
    wake_sender(x)


cdef void return_unsent(xdp_port *x) noexcept nogil:
    """After the socket is closed: return what never completed; the frames are lost, the buffers are not."""
    cdef uint32_t head
    for head in range(x.base.pair.tx.size):
        if x.pieces_left[head] and x.sent < BURST_CHAINS:
            x.pieces_left[head] = 0
            return_sent(x, head)
    x.descriptors_out = 0


cdef uint32_t xdp_tx_poll(port *self, const used_element **done) noexcept nogil:
    cdef xdp_port *x = <xdp_port *>self
    cdef uint64_t address
    cdef uint32_t count, head, waiting
    if x.closed:
        return_unsent(x)
        waiting = 0
    else:
        waiting = ring_waiting(x.completion)
    while waiting and x.sent < BURST_CHAINS:
        address = (<uint64_t *>x.completion.entries)[x.completion.mine & x.completion.mask]
        if address & ADDRESS_MASK >= x.bounce and not address >> OFFSET_SHIFT:
            x.free_frames[x.free_count] = (address - x.bounce) // FRAME_BYTES
            x.free_count += 1
        else:
            head = address >> OFFSET_SHIFT
            x.pieces_left[head] -= 1
            if x.pieces_left[head] == 0:
                return_sent(x, head)
        x.descriptors_out -= 1
        x.completion.mine += 1
        waiting -= 1
    if not x.closed:
        ring_release(x.completion)
        if x.descriptors_out:
            wake_sender(x)
    self.busy = x.descriptors_out != 0
    count = x.sent
    x.sent = 0
    done[0] = x.sent_elements
    return count


cdef void xdp_drain(port *self) noexcept nogil:
    """Wait until what was submitted has left, so that its buffers can be returned as used."""
    cdef xdp_port *x = <xdp_port *>self
    cdef timespec start, now
    clock_gettime(CLOCK_MONOTONIC, &start)
    while ring_waiting(x.completion) < x.descriptors_out:
        wake_sender(x)
        # ring_waiting looks at the kernel's index only when it believes that nothing waits.
        x.completion.theirs = load_acquire_u32(x.completion.producer)
        clock_gettime(CLOCK_MONOTONIC, &now)
        if (now.tv_sec - start.tv_sec) * 1000000000 + now.tv_nsec - start.tv_nsec > DRAIN_NS:
            return


cdef class XdpPort(Port):
    """Guest buffers on the rings of an AF_XDP socket.

    Args:
        socket: the socket, bound; closed by this port.
        umem_offset: where in the window the registered memory begins.
        bounce_offset, bounce_frames: this pair's share of the window's bounce frames.
        guest_memory: the whole window is registered, not only the bounce frames.
        chunk, headroom: as the socket's memory was registered.
        room_needed: bytes behind the virtio_net_hdr that a guest's buffer must have to be posted itself:
            all that the kernel or the NIC may write.
        longest_frame: bytes of the longest frame that the interface sends or receives.
        multi_buffer: a sent frame may have several descriptors.
        queue_size: the larger of the two virtqueues'.
    """

    cdef XdpSocket socket

    def __cinit__(self):
        cdef xdp_port *x = <xdp_port *>calloc(1, sizeof(xdp_port))
        if x == NULL:
            raise MemoryError
        self.port = &x.base
        x.base.rx_post = xdp_rx_post
        x.base.rx_poll = xdp_rx_poll
        x.base.tx_submit = xdp_tx_submit
        x.base.tx_poll = xdp_tx_poll
        x.base.drain = xdp_drain

    def __init__(self, XdpSocket socket, *, umem_offset, bounce_offset, bounce_frames, guest_memory, chunk, headroom,
                 room_needed, longest_frame, multi_buffer, queue_size):
        cdef xdp_port *x = <xdp_port *>self.port
        cdef uint32_t i
        self.socket = socket
        x.base.fd = socket.fd
        x.fill, x.completion = &socket.fill, &socket.completion
        x.rx, x.tx = &socket.rx, &socket.tx
        x.guest_memory, x.zero_copy, x.chunk = guest_memory, socket.zero_copy, chunk
        x.umem = umem_offset
        x.bounce = bounce_offset - x.umem
        x.before_frame = KERNEL_HEADROOM + headroom
        x.room_needed, x.longest_frame = room_needed, longest_frame
        x.most_pieces = MOST_PIECES if multi_buffer else 1
        x.posted_mask = socket.fill.size - 1
        x.posted = <posted_buffer *>calloc(socket.fill.size, sizeof(posted_buffer))
        x.pieces_left = <uint8_t *>calloc(1 << 16, 1)
        x.free_frames = <uint32_t *>calloc(bounce_frames, sizeof(uint32_t))
        x.scratch = <burst *>calloc(1, sizeof(burst))
        if x.posted == NULL or x.pieces_left == NULL or x.free_frames == NULL or x.scratch == NULL:
            raise MemoryError
        for i in range(bounce_frames):
            x.free_frames[i] = i
        x.free_count = bounce_frames
        x.base.wants_buffers = True

    @property
    def held(self):
        """What the kernel has: ``(guest chains posted, spare bounce frames posted, descriptors to send)``."""
        cdef xdp_port *x = <xdp_port *>self.port
        return x.chains_posted, x.spare_posted, x.descriptors_out

    def close(self):
        """Close the socket after the worker has ended; the pair's `settle` then returns what remains."""
        (<xdp_port *>self.port).closed = True
        self.socket.close()

    def __dealloc__(self):
        cdef xdp_port *x = <xdp_port *>self.port
        if x != NULL:
            free(x.posted)
            free(x.pieces_left)
            free(x.free_frames)
            free(x.scratch)
            free(x)
