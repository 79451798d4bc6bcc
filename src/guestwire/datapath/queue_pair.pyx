# cython: language_level=3
"""One queue pair at work: the four verbs in a loop, without the GIL.

The thread that calls ``run`` is the pair's worker until ``stop``. It owns both rings, the port and the
counters meanwhile; other threads may only call ``stop`` and ``enable``, and replace the file behind the
call descriptor (dup2 keeps the number that the worker writes to).
"""

import os

from libc.errno cimport errno
from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec
from posix.unistd cimport write

cdef extern from "<sys/epoll.h>" nogil:
    ctypedef union epoll_data_t:
        int fd
    struct epoll_event:
        uint32_t events
        epoll_data_t data
    int epoll_create1(int flags)
    int epoll_ctl(int epoll, int operation, int fd, epoll_event *event)
    int epoll_wait(int epoll, epoll_event *events, int most, int timeout)
    const int EPOLL_CLOEXEC, EPOLL_CTL_ADD
    const uint32_t EPOLLIN, EPOLLET, EPOLLERR

from guestwire.datapath.abi cimport used_element
from guestwire.datapath.atomics cimport cpu_relax, load_relaxed_u32, store_relaxed_u32
from guestwire.datapath.counters cimport DROP_RING_DISABLED, Counters
from guestwire.datapath.port cimport Port, pair_context, port_interface
from guestwire.datapath.ring cimport (
    BURST_CHAINS,
    Ring,
    burst,
    ring,
    ring_call,
    ring_disable_notifications,
    ring_enable_notifications,
    ring_pop,
    ring_publish,
    ring_push,
)
from guestwire.datapath.window cimport Window

cdef enum:
    BUSY_PORT_TIMEOUT_MS = 1    # how long to sleep when the port must be polled again
    BUSY_PORT_TIMEOUT_MOST_MS = 64
    SHORT_SLEEP_NS = 1000000    # a sleep that ends sooner would better have been polled through
    WINDOW_BROKEN = 4           # among the bits of trouble

cdef struct worker:
    pair_context pair
    port_interface *port
    uint32_t stop
    uint32_t rx_enabled
    uint32_t tx_enabled
    uint32_t trouble_reported
    int epoll_fd
    int wake_fd             # wakes the worker: stop, enable
    int trouble_fd          # tells the control side: a ring broke, or the window did
    uint64_t poll_ns        # how long to poll before sleeping, now
    uint64_t poll_ns_most
    uint64_t idle_since     # 0: not idle
    int busy_timeout_ms     # how long to sleep at most when the port must be polled again
    burst buffers
    burst frames


cdef inline uint64_t now_ns() noexcept nogil:
    cdef timespec t
    clock_gettime(CLOCK_MONOTONIC, &t)
    return <uint64_t>t.tv_sec * 1000000000 + <uint64_t>t.tv_nsec


cdef inline void signal(int fd) noexcept nogil:
    cdef uint64_t one = 1
    if fd >= 0:
        write(fd, &one, sizeof(one))


cdef uint32_t discard(worker *w) noexcept nogil:
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


cdef inline void finish_frame(worker *w) noexcept nogil:
    """Let the port have the rest of the frame that it has begun with, of a ring that was disabled since."""
    cdef uint32_t end = w.frames.end
    w.frames.end = w.frames.first + 1
    w.port.tx_submit(w.port, &w.frames)
    w.frames.end = end


cdef inline void call(ring *r, uint64_t *calls) noexcept nogil:
    if ring_publish(r):
        ring_call(r)
        calls[0] += 1


cdef uint32_t collect(worker *w) noexcept nogil:
    """Give back to the guest what the port has finished with."""
    cdef const used_element *done
    cdef uint32_t moved = 0
    cdef uint32_t count = w.port.tx_poll(w.port, &done)
    if count:
        ring_push(w.pair.tx, done, count)
        moved += count
    if w.pair.receiving:
        count = w.port.rx_poll(w.port, &done)
        if count:
            ring_push(w.pair.rx, done, count)
            moved += count
    # Transmit first: a driver that gets a frame back wants its transmit buffer back as well, to send it on.
    call(w.pair.tx, &w.pair.counters.tx_calls)
    call(w.pair.rx, &w.pair.counters.rx_calls)
    return moved


cdef uint32_t post(worker *w) noexcept nogil:
    """Offer the port receive buffers; return how many came from the guest."""
    cdef uint32_t popped = 0
    w.pair.receiving = load_relaxed_u32(&w.rx_enabled)
    if w.pair.receiving:
        if w.buffers.end - w.buffers.first <= BURST_CHAINS // 2 or w.port.wants_buffers:
            popped = ring_pop(w.pair.rx, &w.buffers, BURST_CHAINS)
        w.port.rx_post(w.port, &w.buffers)
    return popped


cdef uint32_t step(worker *w) noexcept nogil:
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
    return moved + collect(w) + p.progress


cdef bint report_trouble(worker *w) noexcept nogil:
    """Tell the control side once what broke; return whether the worker must end."""
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


cdef bint ask_for_kicks(worker *w) noexcept nogil:
    """Enable the notifications that can end an idle time; return whether work is there already."""
    cdef bint more = False
    if w.frames.first == w.frames.end and not w.pair.tx.error:
        more |= ring_enable_notifications(w.pair.tx)
    # Only buffers that there is room for are work: with a full burst the port waits for something else.
    if (w.port.wants_buffers and w.buffers.end - w.buffers.first < BURST_CHAINS
            and load_relaxed_u32(&w.rx_enabled) and not w.pair.rx.error):
        more |= ring_enable_notifications(w.pair.rx)
    return more


cdef void sleep_until_event(worker *w) noexcept nogil:
    cdef epoll_event events[4]
    cdef uint64_t before
    cdef int i, n
    if not ask_for_kicks(w):
        before = now_ns()
        n = epoll_wait(w.epoll_fd, events, 4, w.busy_timeout_ms if w.port.busy else -1)
        if n == 0:
            w.busy_timeout_ms = min(2 * w.busy_timeout_ms, BUSY_PORT_TIMEOUT_MOST_MS)
        for i in range(n):
            if events[i].data.fd == w.port.fd and events[i].events & EPOLLERR:
                w.port.gone = True
            w.pair.counters.kicks += (
                events[i].data.fd != w.wake_fd and events[i].data.fd != w.port.fd)
        w.pair.counters.sleeps += 1
        # Adaptive polling: if work came soon, polling a little longer would have been cheaper.
        if now_ns() - before < SHORT_SLEEP_NS:
            w.poll_ns = min(max(2 * w.poll_ns, 1000), w.poll_ns_most)
        else:
            w.poll_ns = w.poll_ns // 2
    ring_disable_notifications(w.pair.tx)
    ring_disable_notifications(w.pair.rx)


cdef void loop(worker *w) noexcept nogil:
    cdef uint64_t now
    cdef uint32_t moved
    while not load_relaxed_u32(&w.stop):
        moved = step(w)
        if report_trouble(w):
            return
        if moved:
            w.pair.counters.bursts += 1
            w.idle_since = 0
            w.busy_timeout_ms = BUSY_PORT_TIMEOUT_MS
            continue
        now = now_ns()
        if w.idle_since == 0:
            w.idle_since = now
        elif now - w.idle_since >= w.poll_ns:
            sleep_until_event(w)
            w.idle_since = 0
            continue
        cpu_relax()


cdef void settle(worker *w) noexcept nogil:
    """Give back all that the port has finished with; bounded, since frames may go on arriving."""
    cdef uint32_t passes = w.pair.rx.size + w.pair.tx.size
    w.pair.receiving = True
    while passes and collect(w):
        passes -= 1


cdef void finish(worker *w) noexcept nogil:
    """The end of the loop: what is on its way out leaves, what has arrived is delivered."""
    w.port.drain(w.port)
    settle(w)


cdef class QueuePair:
    """A receive ring and a transmit ring joined to a port.

    Args:
        window: the guest's memory.
        port: where frames go and come from; used by this pair alone until `finish`.
        rx: the receive ring. tx: the transmit ring.
        header_size: bytes of virtio_net_hdr: 12, or 10 for a legacy guest without mergeable buffers.
        mergeable: VIRTIO_NET_F_MRG_RXBUF was negotiated.
        offloads: the negotiated features, as bits, of which those count that concern a virtio_net_hdr.
        counters: the guest's counters. index: this pair's number in them.
        poll_us: the longest time to poll before sleeping, in microseconds; the worker adapts below it.
        trouble_fd: an eventfd, borrowed, signalled when a ring or the window breaks; -1 for none.
    """

    cdef worker *w
    cdef readonly Window window
    cdef readonly Port port
    cdef readonly Ring rx
    cdef readonly Ring tx
    cdef Counters counters

    def __cinit__(self):
        self.w = <worker *>calloc(1, sizeof(worker))
        if self.w == NULL:
            raise MemoryError
        self.w.epoll_fd = self.w.wake_fd = -1

    def __init__(self, Window window, Port port, Ring rx, Ring tx, *, header_size=12,
                 mergeable=False, offloads=0, Counters counters, index=0, poll_us=50, trouble_fd=-1):
        cdef worker *w = self.w
        self.window, self.port, self.rx, self.tx, self.counters = window, port, rx, tx, counters
        w.pair.window = &window.w
        w.pair.rx = rx.ring
        w.pair.tx = tx.ring
        w.pair.buffers = &w.buffers
        w.pair.header_size = header_size
        w.pair.mergeable = mergeable
        w.pair.offloads = offloads
        w.pair.counters = counters.pair(index)
        w.port = port.port
        w.port.pair = &w.pair
        w.poll_ns = w.poll_ns_most = poll_us * 1000
        w.busy_timeout_ms = BUSY_PORT_TIMEOUT_MS
        w.trouble_fd = trouble_fd
        w.wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        w.epoll_fd = epoll_create1(EPOLL_CLOEXEC)
        if w.epoll_fd < 0:
            raise OSError(errno, "epoll_create1: " + os.strerror(errno))
        # Everything is watched for edges. Each write to an eventfd wakes us, and we need never read one: a
        # frontend that empties its kick descriptor itself cannot make a read of ours block. And frames
        # that wait in a port until the guest has buffers do not keep us awake; every pass polls the port.
        for fd in (w.wake_fd, rx.ring.kick_fd, tx.ring.kick_fd, w.port.fd):
            if fd >= 0:
                self._watch(fd)

    cdef int _watch(self, int fd) except -1:
        cdef epoll_event event
        event.events = EPOLLIN | EPOLLET
        event.data.fd = fd
        if epoll_ctl(self.w.epoll_fd, EPOLL_CTL_ADD, fd, &event):
            raise OSError(errno, f"cannot wait for descriptor {fd}: {os.strerror(errno)}")
        return 0

    def __dealloc__(self):
        if self.w.wake_fd >= 0:
            os.close(self.w.wake_fd)
        if self.w.epoll_fd >= 0:
            os.close(self.w.epoll_fd)
        free(self.w)

    def run(self):
        """Work until `stop`, or until the window breaks; then drain. Called once, in a thread of its own."""
        with nogil:
            loop(self.w)
            finish(self.w)

    def post(self):
        """Offer the port the buffers that the guest has ready, so that the first frames find some.

        Called once, before `run`.
        """
        with nogil:
            while post(self.w):
                pass

    def step(self):
        """Do one pass of the loop; return how many frames and buffers moved. For tests."""
        cdef uint32_t moved
        with nogil:
            moved = step(self.w)
            report_trouble(self.w)
        return moved

    def finish(self):
        """Drain after the last `step`. For tests; `run` does it by itself."""
        with nogil:
            finish(self.w)

    def settle(self):
        """Return to the guest what the port gave up when it was closed, after `run` has ended.

        Afterwards each ring's ``base`` is the exact index for the next attachment. The driver is not
        called: the frontend could make us wait, and this is not the worker's thread. Returned is which
        rings' drivers want a call: ``(rx, tx)``.
        """
        self.w.pair.rx.call_fd = self.w.pair.tx.call_fd = -1
        with nogil:
            settle(self.w)
        return bool(self.w.pair.rx.call_owed), bool(self.w.pair.tx.call_owed)

    def stop(self):
        """Make `run` drain and return soon. May be called from any thread."""
        store_relaxed_u32(&self.w.stop, 1)
        signal(self.w.wake_fd)

    def enable(self, *, rx, tx):
        """Enable or disable the rings: a disabled receive ring gets nothing, a disabled transmit ring's
        frames are dropped. May be called from any thread."""
        store_relaxed_u32(&self.w.rx_enabled, rx)
        store_relaxed_u32(&self.w.tx_enabled, tx)
        signal(self.w.wake_fd)
