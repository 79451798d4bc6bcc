# cython: language_level=3
"""A worker's sleep: until a kick, an arrival at a port, a call that is due, or another thread's wish.

Kick descriptors are watched as long as the worker has the pair. A port's is watched until there is much
work, and again from the next sleep on: for a socket that is watched, the kernel looks for who waits each
time that a frame has left, which was a tenth of what a frame from a guest to a veth costs.
"""

from libc.stdint cimport uint32_t, uint64_t

from guestwire.datapath.clock cimport now_ns
from guestwire.datapath.coalescing cimport calls_due
from guestwire.datapath.epoll cimport (
    EPOLL_CTL_ADD,
    EPOLL_CTL_DEL,
    EPOLLERR,
    EPOLLET,
    EPOLLIN,
    epoll_ctl,
    epoll_event,
    epoll_wait,
    epoll_wait_ns,
)
from guestwire.datapath.queue_pair cimport (
    pair_work,
    queue_pair_ask_for_kicks,
    queue_pair_make_calls,
)

cdef enum:
    EVENTS = 64                 # taken from epoll in one go
    BUSY_PORT_TIMEOUT_MOST_MS = 64


cdef bint watch_port(worker *w, pair_work *p) noexcept nogil:
    """Let what arrives at a port end our sleep; return whether it does."""
    cdef epoll_event event
    cdef uint32_t i
    if p.port.fd >= 0 and not p.port_watched:
        event.events = EPOLLIN | EPOLLET
        event.data.u64 = <uint64_t>p.index << KIND_BITS | PORT
        p.port_watched = epoll_ctl(w.epoll_fd, EPOLL_CTL_ADD, p.port.fd, &event) == 0
        for i in range(p.port.more_fd_count):
            p.port_watched &= epoll_ctl(w.epoll_fd, EPOLL_CTL_ADD, p.port.more_fds[i], &event) == 0
    p.moving_passes = 0
    return p.port.fd < 0 or p.port_watched


cdef void unwatch_port(worker *w, pair_work *p) noexcept nogil:
    cdef uint32_t i
    if p.port_watched:
        epoll_ctl(w.epoll_fd, EPOLL_CTL_DEL, p.port.fd, NULL)
        for i in range(p.port.more_fd_count):
            epoll_ctl(w.epoll_fd, EPOLL_CTL_DEL, p.port.more_fds[i], NULL)
        p.port_watched = False


cdef bint ask_for_kicks(worker *w, bint *busy) noexcept nogil:
    """Let every pair rest; return whether work is there already."""
    cdef pair_work *p
    cdef uint32_t i
    cdef bint more = False
    cdef bint poll_again
    busy[0] = False
    for i in range(w.now.count):
        p = w.now.pairs[i]
        if p.ended:
            continue
        # Nobody kicks a ring without a kick descriptor.
        poll_again = (not watch_port(w, p) or p.port.busy or p.port.look_later
                      or p.pair.rx.kick_fd < 0 or p.pair.tx.kick_fd < 0)
        busy[0] |= poll_again
        p.resting = not poll_again
        if queue_pair_ask_for_kicks(p):
            more = True
            p.resting = False
            p.idle_passes = 0
    return more


cdef void note_event(worker *w, const epoll_event *event) noexcept nogil:
    """Look soon at the pair that an event is for; at all of them, when another thread woke us."""
    cdef uint64_t kind = event.data.u64 & ((1 << KIND_BITS) - 1)
    cdef pair_work *p
    cdef uint32_t i
    for i in range(w.now.count):
        p = w.now.pairs[i]
        if kind != WAKE and p.index != event.data.u64 >> KIND_BITS:
            continue
        p.resting = False
        p.idle_passes = 0
        if kind == KICK:
            # The wish that it answers is used up, whatever the next pass finds.
            p.rx_asked = p.tx_asked = False
            p.pair.counters.kicks += 1
        if kind == PORT and event.events & EPOLLERR:
            p.port.gone = True


cdef uint64_t first_call_due(worker *w) noexcept nogil:
    """Return when the first of all calls that are held back must be made, in ns; 0 if there is none."""
    cdef uint64_t first = 0
    cdef uint64_t due
    cdef uint32_t i
    for i in range(w.now.count):
        due = calls_due(&w.now.pairs[i].pair.calls)
        if due and (first == 0 or due < first):
            first = due
    return first


cdef int wait_for_events(worker *w, epoll_event *events, bint busy, uint64_t now) noexcept nogil:
    """Sleep, but for the calls that are held back: all are made when the first must be."""
    cdef uint64_t due = first_call_due(w)
    cdef uint64_t left = due - now if due > now else 0
    cdef uint32_t i
    cdef int n = 0
    if due and not (busy and left > <uint64_t>w.busy_timeout_ms * 1000000):
        if left:
            n = epoll_wait_ns(w.epoll_fd, events, EVENTS, left)
        if n > 0:
            return n
        for i in range(w.now.count):
            queue_pair_make_calls(w.now.pairs[i])
    return epoll_wait(w.epoll_fd, events, EVENTS, w.busy_timeout_ms if busy else -1)


cdef void sleep_until_event(worker *w) noexcept nogil:
    cdef epoll_event events[EVENTS]
    cdef bint busy
    cdef int i, n
    if ask_for_kicks(w, &busy):
        return
    n = wait_for_events(w, events, busy, now_ns())
    if n == 0:
        w.busy_timeout_ms = min(2 * w.busy_timeout_ms, BUSY_PORT_TIMEOUT_MOST_MS)
        for i in range(w.now.count):
            # The pass that comes now is late enough.
            w.now.pairs[i].port.look_later = False
    for i in range(n):
        note_event(w, &events[i])
    w.now.pairs[0].pair.counters.sleeps += 1
    # Adaptive polling: worth its while where work comes within the longest time that we poll, else in vain.
    if now_ns() - w.idle_since < w.poll_ns_most:
        w.poll_ns = min(max(2 * w.poll_ns, 1000), w.poll_ns_most)
    else:
        w.poll_ns = w.poll_ns // 2
