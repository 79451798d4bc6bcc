# cython: language_level=3
"""One pass over a queue pair: the four verbs, without the GIL.

The worker that has the pair (worker.pyx) owns both rings, the port and the counters meanwhile; other threads
may only call ``enable``, and replace the file behind the call descriptor (dup2 keeps the number that the
worker writes to).
"""

from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy
from posix.unistd cimport write

from guestwire.datapath.abi cimport used_element
from guestwire.datapath.atomics cimport fence_seq_cst, load_relaxed_u32, store_relaxed_u32
from guestwire.datapath.coalescing cimport coalesce_call, make_held
from guestwire.datapath.counters cimport DROP_RING_DISABLED, Counters, direction_counters
from guestwire.datapath.port cimport Port, port_interface
from guestwire.datapath.ring cimport (
    BURST_CHAINS,
    Ring,
    ring,
    ring_call,
    ring_disable_notifications,
    ring_enable_notifications,
    ring_pop,
    ring_push,
    ring_show,
    ring_wants_call,
)
from guestwire.datapath.window cimport Window

cdef enum:
    WINDOW_BROKEN = 4           # among the bits of trouble


cdef inline void signal(int fd) noexcept nogil:
    cdef uint64_t one = 1
    if fd >= 0:
        write(fd, &one, sizeof(one))


cdef uint32_t discard(pair_work *w) noexcept nogil:
    """Take the frames of a disabled transmit ring and drop them (vhost-user, "Ring states")."""
    cdef used_element done[BURST_CHAINS]
    cdef uint32_t count = 0
    while w.frames.first < w.frames.end:
        done[count].id = w.frames.chains[w.frames.first].head
        done[count].length = 0
        count += 1
        w.frames.first += 1
    w.pair.counters.tx.drops[DROP_RING_DISABLED] += count
    ring_push(w.pair.tx, done, count)
    return count


cdef inline void finish_frame(pair_work *w) noexcept nogil:
    """Let the port have the rest of the frame that it has begun with, of a ring that was disabled since."""
    cdef uint32_t end = w.frames.end
    w.frames.end = w.frames.first + 1
    w.port.tx_submit(w.port, &w.frames)
    w.frames.end = end


cdef inline void call(ring *r, uint64_t *calls) noexcept nogil:
    ring_call(r)
    calls[0] += 1


cdef void queue_pair_make_calls(pair_work *w) noexcept nogil:
    make_held(&w.pair.calls.tx, w.pair.tx, &w.pair.counters.tx_calls)
    make_held(&w.pair.calls.rx, w.pair.rx, &w.pair.counters.rx_calls)


cdef void coalesce_calls(
    pair_work *w, bint tx_wanted, uint32_t sent, bint rx_wanted, uint32_t received
) noexcept nogil:
    """Make the calls that cannot be held back; the clock is read once at most."""
    cdef uint64_t now = 0
    coalesce_call(
        &w.pair.calls, &w.pair.calls.tx, w.pair.tx, tx_wanted, sent, &w.pair.counters.tx_calls, &now)
    coalesce_call(
        &w.pair.calls, &w.pair.calls.rx, w.pair.rx, rx_wanted, received, &w.pair.counters.rx_calls, &now)


cdef inline void publish(pair_work *w, uint32_t sent, uint32_t received) noexcept nogil:
    """Let the driver see what was pushed to its rings, and call it if it wants that."""
    # Transmit first: a driver that gets a frame back wants its transmit buffer back as well, to send it on.
    cdef bint tx_wanted = ring_show(w.pair.tx)
    cdef bint rx_wanted = not w.port.keeps_receive_ring and ring_show(w.pair.rx)
    if tx_wanted or rx_wanted:
        # See ring_wants_call: one for both rings.
        fence_seq_cst()
        tx_wanted = tx_wanted and ring_wants_call(w.pair.tx)
        rx_wanted = rx_wanted and ring_wants_call(w.pair.rx)
    if w.pair.calls.most_ns:
        coalesce_calls(w, tx_wanted, sent, rx_wanted, received)
        return
    if tx_wanted:
        call(w.pair.tx, &w.pair.counters.tx_calls)
    if rx_wanted:
        call(w.pair.rx, &w.pair.counters.rx_calls)


cdef uint32_t collect(pair_work *w) noexcept nogil:
    """Give back to the guest what the port has finished with."""
    cdef const used_element *done
    cdef uint32_t sent = w.port.tx_poll(w.port, &done)
    cdef uint32_t received = 0
    if sent:
        ring_push(w.pair.tx, done, sent)
    if w.pair.receiving and not w.port.keeps_receive_ring:
        received = w.port.rx_poll(w.port, &done)
        if received:
            ring_push(w.pair.rx, done, received)
    publish(w, sent, received)
    return sent + received


cdef uint32_t post(pair_work *w) noexcept nogil:
    """Offer the port receive buffers; return how many came from the guest."""
    cdef uint32_t popped = 0
    if w.port.keeps_receive_ring:
        w.port.rx_post(w.port, &w.buffers)
        return 0
    w.pair.receiving = load_relaxed_u32(&w.rx_enabled)
    if w.pair.receiving:
        # Not before less than half is left: two bursts of half the size each empty it, and none is moved.
        if w.buffers.end - w.buffers.first < BURST_CHAINS // 2 or w.port.wants_buffers:
            popped = ring_pop(w.pair.rx, &w.buffers, BURST_CHAINS)
        w.port.rx_post(w.port, &w.buffers)
    return popped


cdef uint32_t step(pair_work *w) noexcept nogil:
    """One pass: the whole datapath. Returns 0 if nothing moved."""
    cdef port_interface *p = w.port
    cdef uint32_t moved = post(w)
    cdef uint32_t waiting
    p.progress = False
    if w.frames.first == w.frames.end:
        ring_pop(w.pair.tx, &w.frames, BURST_CHAINS)
    waiting = w.frames.end - w.frames.first
    if waiting:
        if load_relaxed_u32(&w.tx_enabled):
            p.tx_submit(p, &w.frames)
        elif p.under_way:
            finish_frame(w)
        else:
            discard(w)
        moved += waiting - (w.frames.end - w.frames.first)
    moved += collect(w)
    # A statement of its own: ports set it in there, too, and C may read the operands of a sum in any order.
    return moved + p.progress


cdef bint report_trouble(pair_work *w) noexcept nogil:
    """Tell the control side once what broke; return whether the pair's work must end."""
    cdef uint32_t trouble = 0
    if w.pair.rx.error:
        trouble |= 1
    if w.pair.tx.error:
        trouble |= 2
    if load_relaxed_u32(&w.pair.window.fault):
        trouble |= WINDOW_BROKEN
    if w.port.gone:
        trouble |= 8
    if trouble != w.trouble_reported:
        w.trouble_reported = trouble
        w.pair.counters.ring_errors += 1
        signal(w.trouble_fd)
    return trouble & WINDOW_BROKEN != 0


cdef bint queue_pair_ask_for_kicks(pair_work *w) noexcept nogil:
    """Enable the notifications that can end an idle time; return whether work is there already.

    What was asked for holds until something moves: an idle pair costs a sleeping worker nothing more.
    """
    cdef bint more = False
    if not w.tx_asked and w.frames.first == w.frames.end and not w.pair.tx.error:
        w.notified = True
        w.tx_asked = not ring_enable_notifications(w.pair.tx)
        more |= not w.tx_asked
    # Only buffers that there is room for are work: with a full burst the port waits for something else.
    if (not w.rx_asked and w.port.wants_buffers and w.buffers.end - w.buffers.first < BURST_CHAINS
            and load_relaxed_u32(&w.rx_enabled) and not w.pair.rx.error):
        w.notified = True
        w.rx_asked = not ring_enable_notifications(w.pair.rx)
        more |= not w.rx_asked
    return more


cdef uint32_t queue_pair_pass(pair_work *w) noexcept nogil:
    """Make one pass, tell what broke, and ask for no more kicks while there is work."""
    cdef uint32_t moved = step(w)
    w.ended = report_trouble(w)
    if moved:
        w.pair.counters.bursts += 1
        if w.notified:
            w.notified = w.rx_asked = w.tx_asked = False
            ring_disable_notifications(w.pair.tx)
            if not w.port.keeps_receive_ring:
                ring_disable_notifications(w.pair.rx)
    return moved


cdef void reclaim(pair_work *w) noexcept nogil:
    """Return to the guest, empty, what the port has of a receive ring that is disabled.

    A frame may have arrived in a buffer since then: the guest is not to get it (vhost-user, "Ring states"),
    so it is a drop. Buffers that the port does not have are offered again, as they are.
    """
    cdef direction_counters *rx = &w.pair.counters.rx
    cdef direction_counters counted
    cdef used_element *done
    cdef uint32_t i, count
    while w.pair.rx.in_flight_count > w.buffers.end - w.buffers.first:
        counted = rx[0]
        count = w.port.rx_poll(w.port, <const used_element **>&done)
        if count == 0:
            break
        for i in range(count):
            done[i].length = 0
        memcpy(counted.drops, rx.drops, sizeof(counted.drops))
        counted.drops[DROP_RING_DISABLED] += rx.frames - counted.frames
        rx[0] = counted
        ring_push(w.pair.rx, done, count)
    publish(w, 0, 0)


cdef void settle(pair_work *w) noexcept nogil:
    """Give back all that the port has finished with; bounded, since frames may go on arriving."""
    cdef uint32_t passes = w.pair.rx.size + w.pair.tx.size
    w.pair.receiving = load_relaxed_u32(&w.rx_enabled)
    while passes and collect(w):
        passes -= 1
    if not w.pair.receiving and not w.port.keeps_receive_ring:
        reclaim(w)


cdef class QueuePair:
    """A receive ring and a transmit ring joined to a port.

    Args:
        window: the guest's memory.
        port: where frames go and come from; used by this pair alone until `finish`.
        rx: the receive ring. tx: the transmit ring.
        header_size: bytes of virtio_net_hdr: 12, or 10 for a legacy guest without mergeable buffers.
        mergeable: VIRTIO_NET_F_MRG_RXBUF was negotiated.
        offloads: the negotiated features, as bits, of which those count that concern a virtio_net_hdr.
        counters: the guest's counters. index: this pair's number in them, below 64.
        trouble_fd: an eventfd, borrowed, signalled when a ring or the window breaks; -1 for none.
        coalesce_us: how long a call that a driver wants may be held back, in microseconds; 0: not at all.
        coalesce_packets: how many buffers are returned meanwhile, at most.
    """

    def __cinit__(self):
        self.w = <pair_work *>calloc(1, sizeof(pair_work))
        if self.w == NULL:
            raise MemoryError

    def __init__(self, Window window, Port port, Ring rx, Ring tx, *, header_size=12,
                 mergeable=False, offloads=0, Counters counters, index=0, trouble_fd=-1,
                 coalesce_us=0, coalesce_packets=BURST_CHAINS):
        cdef pair_work *w = self.w
        self.window, self.port, self.rx, self.tx, self.counters = window, port, rx, tx, counters
        w.pair.window = &window.w
        w.pair.rx = rx.ring
        w.pair.tx = tx.ring
        w.pair.buffers = &w.buffers
        w.pair.header_size = header_size
        w.pair.mergeable = mergeable
        w.pair.offloads = offloads
        w.pair.counters = counters.pair(index)
        w.pair.calls.most_ns = coalesce_us * 1000
        w.pair.calls.most_returned = coalesce_packets
        w.port = port.port
        w.port.pair = &w.pair
        w.index = index
        w.trouble_fd = trouble_fd

    def __dealloc__(self):
        free(self.w)

    def post(self):
        """Offer the port the buffers that the guest has ready, so that the first frames find some.

        Called once, before a worker has the pair.
        """
        with nogil:
            while post(self.w):
                pass

    def step(self):
        """Make one pass; return how many frames and buffers moved. For tests and tools."""
        cdef uint32_t moved
        with nogil:
            moved = queue_pair_pass(self.w)
        return moved

    def finish(self):
        """Let what is on its way out leave, and deliver what has arrived.

        Called once, when no worker has the pair any more. The driver is not called from now on: the
        frontend could make us wait, and this is not a worker's thread.
        """
        self.w.pair.rx.call_fd = self.w.pair.tx.call_fd = -1
        self.w.pair.calls.most_ns = 0       # what is held back is owed now
        with nogil:
            queue_pair_make_calls(self.w)
            self.w.port.drain(self.w.port)
            settle(self.w)

    def settle(self):
        """Return to the guest what the port gave up when it was closed, after `finish`.

        Afterwards each ring's ``base`` is the exact index for the next attachment. Returned is which
        rings' drivers want a call: ``(rx, tx)``.
        """
        with nogil:
            settle(self.w)
        return bool(self.w.pair.rx.call_owed), bool(self.w.pair.tx.call_owed)

    def enable(self, *, rx, tx):
        """Enable or disable the rings: a disabled receive ring gets nothing, a disabled transmit ring's
        frames are dropped. May be called from any thread; a worker that has the pair is to be woken."""
        store_relaxed_u32(&self.w.rx_enabled, rx)
        store_relaxed_u32(&self.w.tx_enabled, tx)
        if self.w.port.keeps_receive_ring:
            store_relaxed_u32(<uint32_t *>&self.w.pair.receiving, rx)
