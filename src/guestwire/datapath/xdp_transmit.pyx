# cython: language_level=3
"""The sending half of the xdp port.

The pieces of a frame become descriptors that point into the guest's pages, with the chain's head in the
upper 16 bits of the address, which the completion gives back: it names its chain without a table. What
cannot be described so is copied to a bounce frame, and the chain is the guest's again at once; such a
completion is known by its address, which lies behind the guest's memory and has no offset.
"""

from libc.errno cimport EAGAIN, ENXIO, errno
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec

cdef extern from "<sys/socket.h>" nogil:
    ssize_t sendto(int fd, const void *data, size_t size, int flags, const void *address, uint32_t length)
    const int MSG_DONTWAIT

from guestwire.datapath.abi cimport XDP_PKT_CONTD, used_element, xdp_desc
from guestwire.datapath.atomics cimport load_acquire_u32
from guestwire.datapath.counters cimport (
    COPY_BOUNCE_MODE,
    COPY_PAGE_CROSSING,
    COPY_SCATTERED,
    DROP_PORT,
    DROP_UNEXPECTED_PLACE,
    pair_counters,
)
from guestwire.datapath.frames cimport GOOD_FRAME, check_sent_frame, frame_pieces
from guestwire.datapath.port cimport pair_context, port_interface
from guestwire.datapath.split_ring cimport BURST_CHAINS, BURST_SEGMENTS, burst, chain
from guestwire.datapath.window cimport FRAME_BYTES, window, window_contiguous
from guestwire.datapath.xdp cimport (
    COPY_NOT,
    DRAIN_NS,
    OFFSET_SHIFT,
    WAKES_A_BURST,
    address_bits,
    frame_address,
    xdp_port,
)
from guestwire.datapath.xdp_socket cimport (
    ring_needs_wakeup,
    ring_release,
    ring_space,
    ring_submit,
    ring_waiting,
)


cdef inline void return_sent(xdp_port *x, uint32_t head) noexcept nogil:
    x.sent_elements[x.sent].id = head
    x.sent_elements[x.sent].length = 0
    x.sent += 1


cdef inline void put_descriptor(
    xdp_port *x, uint64_t address, uint32_t length, uint32_t options
) noexcept nogil:
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
    """Make the kernel send what is in the tx ring. What it refuses now is tried again by a later pass."""
    cdef int calls = 0
    cdef bint again = True
    # Acquire is more than is needed to look whether the kernel is through.
    while (again and calls < WAKES_A_BURST and load_acquire_u32(x.tx.consumer) != x.tx.mine
           and ring_needs_wakeup(x.tx)):
        calls += 1
        if sendto(x.base.fd, NULL, 0, MSG_DONTWAIT, NULL, 0) >= 0:
            break
        again = errno == EAGAIN
        if errno == ENXIO:
            x.base.gone = True      # the kernel has unbound the socket: the interface was deleted
    x.base.pair.counters.system_calls += calls


cdef void drop_all(xdp_port *x, burst *frames) noexcept nogil:
    """The interface is gone: the guest's frames have nowhere to go, its buffers are given back."""
    while frames.first < frames.end and x.sent < BURST_CHAINS:
        x.base.pair.counters.tx.drops[DROP_PORT] += 1
        return_sent(x, frames.chains[frames.first].head)
        frames.first += 1


cdef void xdp_tx_submit(port_interface *self, burst *frames) noexcept nogil:
    cdef xdp_port *x = <xdp_port *>self
    cdef pair_context *pair = self.pair
    cdef pair_counters *counters = pair.counters
    cdef uint32_t space = ring_space(x.tx, BURST_CHAINS)
    cdef uint32_t count, length
    cdef uint8_t copy
    cdef chain *c
    cdef int reason
    if self.gone:
        drop_all(x, frames)
    while frames.first < frames.end and x.sent < BURST_CHAINS:
        c = &frames.chains[frames.first]
        reason = check_sent_frame(pair, frames, c, x.longest_frame)
        if reason != GOOD_FRAME:
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


cdef void complete(xdp_port *x, uint64_t address) noexcept nogil:
    """One descriptor has left. As on the receiving side, only what the kernel owns is believed."""
    cdef uint32_t head = address >> OFFSET_SHIFT
    cdef uint64_t frame = (address_bits(address) - x.bounce) // FRAME_BYTES
    if x.descriptors_out == 0:
        x.base.pair.counters.tx.drops[DROP_UNEXPECTED_PLACE] += 1
        return
    if head == 0 and address_bits(address) >= x.bounce:
        if frame < x.frame_count and x.free_count < x.frame_count:
            x.free_frames[x.free_count] = frame
            x.free_count += 1
    elif x.pieces_left[head]:
        x.pieces_left[head] -= 1
        if x.pieces_left[head] == 0:
            return_sent(x, head)
    else:
        x.base.pair.counters.tx.drops[DROP_UNEXPECTED_PLACE] += 1
        return
    x.descriptors_out -= 1


cdef uint32_t xdp_tx_poll(port_interface *self, const used_element **done) noexcept nogil:
    cdef xdp_port *x = <xdp_port *>self
    cdef uint32_t count, waiting
    if x.closed:
        return_unsent(x)
    else:
        waiting = ring_waiting(x.completion)
        while waiting and x.sent < BURST_CHAINS:
            complete(x, (<uint64_t *>x.completion.entries)[x.completion.mine & x.completion.mask])
            x.completion.mine += 1
            waiting -= 1
        ring_release(x.completion)
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
    cdef timespec start, now
    clock_gettime(CLOCK_MONOTONIC, &start)
    while ring_waiting(x.completion) < min(x.descriptors_out, x.completion.size) and not self.gone:
        wake_sender(x)
        # ring_waiting looks at the kernel's index only when it believes that nothing waits.
        x.completion.theirs = load_acquire_u32(x.completion.producer)
        clock_gettime(CLOCK_MONOTONIC, &now)
        if (now.tv_sec - start.tv_sec) * 1000000000 + now.tv_nsec - start.tv_nsec > DRAIN_NS:
            return
