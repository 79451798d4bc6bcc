# cython: language_level=3
"""The sending half of the xdp port.

The pieces of a frame become descriptors that point into the guest's pages, with the chain's head in the
upper 16 bits of the address, which the completion gives back: it names its chain without a table. What
cannot be described so is copied to a bounce frame, and the chain is the guest's again at once; such a
completion is known by its address, which lies behind the guest's memory and has no offset.

Where headers are copied (``copy_headers``), a frame's first bytes are sent from a bounce frame and the rest
from the guest's pages: what is checked is then what is sent, whatever the guest writes meanwhile.
"""

from libc.errno cimport EAGAIN, ENETDOWN, ENXIO, errno
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy

cdef extern from "<sys/socket.h>" nogil:
    ssize_t sendto(int fd, const void *data, size_t size, int flags, const void *address, uint32_t length)
    const int MSG_DONTWAIT

from guestwire.datapath.abi cimport VIRTIO_NET_HDR_F_NEEDS_CSUM, net_header, used_element, xdp_desc
from guestwire.datapath.atomics cimport load_acquire_u32
from guestwire.datapath.clock cimport now_ns
from guestwire.datapath.counters cimport (
    COPY_BOUNCE_MODE,
    COPY_HEADER_POLICY,
    COPY_PAGE_CROSSING,
    COPY_SCATTERED,
    DROP_PORT,
    DROP_SOURCE_ADDRESS,
    DROP_UNEXPECTED_PLACE,
    DROP_UNSENT,
)
from guestwire.datapath.frames cimport ETHERNET_HEADER, GOOD_FRAME, check_sent_frame, frame_pieces
from guestwire.datapath.poll cimport POLLOUT, poll, pollfd
from guestwire.datapath.port cimport pair_context, port_interface
from guestwire.datapath.ring cimport BURST_CHAINS, BURST_SEGMENTS, burst, chain
from guestwire.datapath.window cimport FRAME_BYTES, window, window_contiguous
from guestwire.datapath.xdp cimport (
    COPY_NOT,
    DRAIN_NS,
    HEADER_COPY,
    NO_HEAD,
    OFFSET_SHIFT,
    SOURCE_ADDRESS,
    WAKES_A_BURST,
    address_bits,
    xdp_port,
)
from guestwire.datapath.xdp_descriptors cimport (
    NO_SPACE,
    count_in_place,
    frames_to_copy,
    free_to_send,
    gather,
    next_bounce_frame,
    put_copied,
    put_pieces,
    return_sent,
    split_pieces,
)
from guestwire.datapath.xdp_segments cimport abandon_segments, send_segments, submit_segments
from guestwire.datapath.xdp_socket cimport (
    ring_needs_wakeup,
    ring_release,
    ring_space,
    ring_submit,
    ring_waiting,
)


cdef enum:
    # Of a virtio_net_hdr's first two bytes: gso_type, flags.
    OFFLOAD_FLAGS = 0xFF00 | VIRTIO_NET_HDR_F_NEEDS_CSUM


cdef uint8_t why_copy(const xdp_port *x, uint32_t count, uint32_t length) noexcept nogil:
    """Say why the `count` pieces cannot be sent from where they are, or COPY_NOT."""
    cdef const window *w = x.base.pair.window
    cdef uint32_t i
    if not x.guest_memory:
        return COPY_BOUNCE_MODE
    if x.copy_headers and (length <= HEADER_COPY or count >= x.most_pieces):
        return COPY_HEADER_POLICY
    if count > x.most_pieces:
        return COPY_SCATTERED
    if x.zero_copy:
        for i in range(count):
            if not window_contiguous(w, x.pieces[i].data - w.base, x.pieces[i].length):
                return COPY_PAGE_CROSSING
    return COPY_NOT


cdef bint send_copied(xdp_port *x, uint16_t head, uint32_t count, uint32_t copied) noexcept nogil:
    """Send a frame whose first `copied` bytes are copied to bounce frames, and the rest is not.

    Returns False, and nothing is sent, if they name another sender than the guest. That is looked at in
    the copy, which the guest can no longer change.
    """
    cdef uint8_t *to = next_bounce_frame(x)
    cdef uint32_t filled = 0
    cdef uint32_t first = 0
    if x.check_source:
        filled = min(copied, <uint32_t>HEADER_COPY)
        first = gather(x, 0, to, filled)
        if memcmp(to + SOURCE_ADDRESS, x.source, sizeof(x.source)):
            return False
        x.base.pair.counters.tx.copied_bytes += filled
    first = put_copied(x, first, count, filled, copied - filled)
    if first < count:
        put_pieces(x, head, first, count)
    else:
        return_sent(x, head)
    return True


cdef inline bint send(
    xdp_port *x, uint16_t head, uint32_t count, uint32_t length, uint8_t copy
) noexcept nogil:
    """Put a frame on the tx ring; returns False if the guest may not send it."""
    if copy != COPY_NOT:
        if not send_copied(x, head, count, length):
            return False
        x.base.pair.counters.tx.copied_frames[copy] += 1
        return True
    if not x.copy_headers:
        put_pieces(x, head, 0, count)
    elif not send_copied(x, head, count, HEADER_COPY):
        return False
    count_in_place(x, 1)
    return True


cdef void wake_driver(int fd) noexcept nogil:
    """Wake the driver where busy polling is preferred.

    sendto() does not then: it polls the NAPI instance that receives, and leaves it at that. But a driver may
    send by another one (virtio_net does, igb with few queues); poll() wakes whatever asks for it.
    """
    cdef pollfd one
    one.fd = fd
    one.events = POLLOUT
    poll(&one, 1, 0)


cdef void wake_sender(xdp_port *x) noexcept nogil:
    """Make the kernel send what is in the tx ring. What it refuses now is tried again by a later pass."""
    cdef int calls = 0
    cdef bint again = True
    if load_acquire_u32(x.tx.consumer) == x.tx.mine or not ring_needs_wakeup(x.tx):
        # It has sent all, or goes on by itself: it is up, whatever it said before.
        x.down = False
        return
    # Acquire is more than is needed to look whether the kernel is through.
    while (again and calls < WAKES_A_BURST and load_acquire_u32(x.tx.consumer) != x.tx.mine
           and ring_needs_wakeup(x.tx)):
        calls += 1
        if sendto(x.base.fd, NULL, 0, MSG_DONTWAIT, NULL, 0) >= 0:
            x.down = False
            break
        again = errno == EAGAIN
        x.down = errno == ENETDOWN
        if errno == ENXIO:
            x.base.gone = True      # the kernel has unbound the socket: the interface was deleted
    if x.busy_poll and load_acquire_u32(x.tx.consumer) != x.tx.mine and ring_needs_wakeup(x.tx):
        wake_driver(x.base.fd)
        calls += 1
    x.base.pair.counters.system_calls += calls


cdef void drop_all(xdp_port *x, burst *frames) noexcept nogil:
    """The interface is down or gone: the guest's frames have nowhere to go, its buffers are given back."""
    if x.segmenting:
        abandon_segments(x, DROP_PORT)
        frames.first += 1
    while frames.first < frames.end and x.sent < BURST_CHAINS:
        x.base.pair.counters.tx.drops[DROP_PORT] += 1
        return_sent(x, frames.chains[frames.first].head)
        frames.first += 1


cdef int submit_pieces(
    xdp_port *x, const burst *frames, const chain *c, uint32_t *space
) noexcept nogil:
    """Send a good frame of any layout; returns GOOD_FRAME, DROP_..., or NO_SPACE."""
    cdef pair_context *pair = x.base.pair
    cdef uint32_t length = c.length - pair.header_size
    cdef uint32_t count = frame_pieces(pair, frames, c, x.pieces, BURST_SEGMENTS)
    cdef uint32_t needed, frames_needed
    cdef uint8_t copy
    if length > x.chunk:
        count = split_pieces(x, count)
    copy = why_copy(x, count, length)
    frames_needed = frames_to_copy(x, length) if copy != COPY_NOT else 1 if x.copy_headers else 0
    needed = frames_needed + (count if copy == COPY_NOT else 0)
    if space[0] < needed or frames_needed > free_to_send(x):
        return NO_SPACE
    if not send(x, c.head, count, length, copy):
        return DROP_SOURCE_ADDRESS
    space[0] -= needed
    pair.counters.tx.frames += 1
    pair.counters.tx.bytes += length
    return GOOD_FRAME


cdef inline uint32_t send_plain(xdp_port *x, burst *frames, uint32_t most) noexcept nogil:
    """Send up to `most` frames from the burst's front, as long as each is one descriptor, as most are.

    Returns how many; the next one, if any, is for `submit_other`. All is in locals, since for all that the
    compiler knows a store to `pieces_left` changes anything else.
    """
    cdef pair_context *pair = x.base.pair
    cdef const uint8_t *base = pair.window.base
    cdef const uint8_t *joined = pair.window.joined if x.zero_copy else NULL
    cdef uint32_t *pieces_left = x.pieces_left
    cdef uint64_t umem = x.umem
    cdef uint32_t header_size = pair.header_size
    cdef uint32_t longest = min(x.longest_frame, x.chunk)
    cdef xdp_desc *descriptors = <xdp_desc *>x.tx.entries
    cdef uint32_t mask = x.tx.mask
    cdef uint32_t position = x.tx.mine
    cdef const chain *c = &frames.chains[frames.first]
    cdef uint32_t count = 0
    cdef uint64_t octets = 0
    cdef uint64_t offset
    cdef uint32_t length
    cdef uint16_t flags
    most = min(most, frames.end - frames.first)
    if not x.guest_memory or x.copy_headers:
        return 0
    while count < most:
        length = c.length - header_size
        # One comparison: what is shorter than its header is a large number.
        if c.segment_count != 1 or length - ETHERNET_HEADER > longest - ETHERNET_HEADER:
            break
        offset = c.offset
        memcpy(&flags, base + offset, sizeof(flags))
        offset += header_size
        # No frame is as long as a page: it crosses one border at most.
        if flags & OFFLOAD_FLAGS or (
                joined != NULL and (offset ^ (offset + length - 1)) >> 12 and not joined[offset >> 12]):
            break
        descriptors[position & mask].addr = (offset - umem - c.head) | <uint64_t>c.head << OFFSET_SHIFT
        descriptors[position & mask].len = length
        descriptors[position & mask].options = 0
        pieces_left[c.head] = 1
        position += 1
        octets += length
        count += 1
        c += 1
    frames.first += count
    x.tx.mine = position
    x.descriptors_out += count
    count_in_place(x, count)
    pair.counters.tx.frames += count
    pair.counters.tx.bytes += octets
    return count


cdef int submit_other(xdp_port *x, const burst *frames, uint32_t *space) noexcept nogil:
    """Send or drop the frame at the burst's front, whatever it is; returns NO_SPACE if it has to wait."""
    cdef const chain *c = &frames.chains[frames.first]
    cdef net_header header
    cdef int reason
    if x.segmenting:
        return send_segments(x, space)
    reason = check_sent_frame(x.base.pair, frames, c, x.longest_frame, &header)
    if reason == GOOD_FRAME:
        if header.flags or header.gso_type:
            reason = submit_segments(x, frames, c, &header, space)
        else:
            reason = submit_pieces(x, frames, c, space)
    if reason >= 0:
        x.base.pair.counters.tx.drops[reason] += 1
        return_sent(x, c.head)
    return reason


cdef void xdp_tx_submit(port_interface *self, burst *frames) noexcept nogil:
    cdef xdp_port *x = <xdp_port *>self
    cdef uint32_t space = ring_space(x.tx, BURST_CHAINS)
    if x.down:
        # What it took before it went down still waits in the tx ring: ask whether it goes on.
        wake_sender(x)
    if self.gone or x.down:
        drop_all(x, frames)
    while frames.first < frames.end and x.sent < BURST_CHAINS:
        if not x.segmenting:
            space -= send_plain(x, frames, space)
        if frames.first < frames.end:
            if submit_other(x, frames, &space) == NO_SPACE:
                break
            frames.first += 1
    self.under_way = x.segmenting
    ring_submit(x.tx)
    wake_sender(x)


cdef void return_unsent(xdp_port *x) noexcept nogil:
    """After the socket is closed: return what never completed. Frames may be lost, buffers are not."""
    cdef uint32_t head
    for head in range(x.base.pair.tx.size):
        if x.pieces_left[head] and x.sent < BURST_CHAINS:
            x.pieces_left[head] = 0
            x.base.pair.counters.tx.drops[DROP_UNSENT] += head != x.abandoned_head
            return_sent(x, head)
    x.descriptors_out = 0


cdef void complete(xdp_port *x, uint64_t address) noexcept nogil:
    """One descriptor has left. As on the receiving side, only what the kernel owns is believed."""
    cdef uint32_t head = address >> OFFSET_SHIFT
    cdef uint64_t frame = (address_bits(address) - x.bounce) // FRAME_BYTES
    cdef bint bounce = head == 0 and address_bits(address) >= x.bounce
    if bounce and frame < x.frame_count and x.frames_out[frame]:
        x.frames_out[frame] = 0
        x.free_frames[x.free_count] = frame
        x.free_count += 1
    elif not bounce and x.pieces_left[head]:
        x.pieces_left[head] -= 1
        if x.pieces_left[head] == 0:
            return_sent(x, head)
            if head == x.abandoned_head:
                x.abandoned_head = NO_HEAD
    else:
        x.base.pair.counters.tx.drops[DROP_UNEXPECTED_PLACE] += 1
        return
    x.descriptors_out -= 1


cdef inline void collect_sent(xdp_port *x) noexcept nogil:
    """Read completions, up to a burst of chains."""
    cdef const uint64_t *entries = <const uint64_t *>x.completion.entries
    cdef uint32_t *pieces_left = x.pieces_left
    cdef uint64_t bounce = x.bounce
    cdef uint32_t mask = x.completion.mask
    cdef uint32_t position = x.completion.mine
    cdef uint32_t waiting = ring_waiting(x.completion)
    cdef uint32_t sent = x.sent
    cdef uint32_t head
    cdef uint64_t address
    while waiting and sent < BURST_CHAINS:
        address = entries[position & mask]
        head = address >> OFFSET_SHIFT
        if pieces_left[head] == 1 and address_bits(address) < bounce:
            # The common case: the only descriptor of its chain.
            pieces_left[head] = 0
            x.sent_elements[sent].id = head
            x.sent_elements[sent].length = 0
            sent += 1
            x.descriptors_out -= 1
        else:
            x.sent = sent
            complete(x, address)
            sent = x.sent
        position += 1
        waiting -= 1
    x.sent = sent
    if x.segmenting and position != x.completion.mine:
        x.base.progress = True      # there is room for more
    x.completion.mine = position
    ring_release(x.completion)


cdef uint32_t xdp_tx_poll(port_interface *self, const used_element **done) noexcept nogil:
    cdef xdp_port *x = <xdp_port *>self
    cdef uint32_t count
    if x.closed:
        return_unsent(x)
    else:
        collect_sent(x)
        if x.descriptors_out:
            wake_sender(x)
    self.busy = x.descriptors_out != 0 and not self.gone
    count = x.sent
    x.sent = 0
    done[0] = x.sent_elements
    return count


cdef void xdp_drain(port_interface *self) noexcept nogil:
    """Wait until what was submitted has left, so that its buffers can be returned as used."""
    cdef xdp_port *x = <xdp_port *>self
    cdef uint64_t start = now_ns()
    cdef uint32_t space
    while x.segmenting or ring_waiting(x.completion) < min(x.descriptors_out, x.completion.size):
        wake_sender(x)
        if self.gone or x.down:
            break
        # ring_waiting looks at the kernel's index only when it believes that nothing waits.
        x.completion.theirs = load_acquire_u32(x.completion.producer)
        if x.segmenting:
            if x.sent < BURST_CHAINS:
                collect_sent(x)
            space = ring_space(x.tx, BURST_CHAINS)
            send_segments(x, &space)
            ring_submit(x.tx)
        if now_ns() - start > DRAIN_NS:
            break
    if x.segmenting:
        abandon_segments(x, DROP_UNSENT)
