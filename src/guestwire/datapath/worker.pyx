# cython: language_level=3
"""A worker's loop: rounds over its queue pairs, a burst each, and sleep when none has work, without the GIL.

Only the loop's own thread touches the pairs that it has. Another thread hands it a new list of them, which
it takes over between two rounds: the pairs that stay do not notice.
"""

import os

from libc.errno cimport errno
from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from posix.unistd cimport write

cdef extern from "<sys/prctl.h>" nogil:
    int prctl(int option, unsigned long value)
    const int PR_SET_TIMERSLACK

from guestwire.datapath.atomics cimport cpu_relax, load_acquire_u32, store_release_u32
from guestwire.datapath.clock cimport now_ns
from guestwire.datapath.coalescing cimport holds_calls
from guestwire.datapath.epoll cimport (
    EPOLL_CLOEXEC,
    EPOLL_CTL_ADD,
    EPOLL_CTL_DEL,
    EPOLLET,
    EPOLLIN,
    epoll_create1,
    epoll_ctl,
    epoll_event,
)
from guestwire.datapath.poll cimport POLLIN, poll, pollfd
from guestwire.datapath.queue_pair cimport QueuePair, pair_work, queue_pair_pass
from guestwire.datapath.worker_sleep cimport (
    BUSY_PORT_TIMEOUT_MS,
    KICK,
    KIND_BITS,
    MOST_PAIRS,
    PORT,
    WAKE,
    sleep_until_event,
    unwatch_port,
    worker,
)

cdef enum:
    MANY_PASSES = 256           # that moved something since the last sleep
    FEW_PASSES = 4              # with nothing to do, until a pair is looked at less often
    # A look at an idle pair costs up to as much as moving a frame. It is taken once in so many frames and
    # buffers that the others moved (a frame that is sent back is four), times the number of pairs: all idle
    # pairs together slow the busy ones down by some percent.
    MOVED_PER_LOOK = 64
    LOOK_NS = 1000000           # and no less often than that: frames may be long, and system calls slow


cdef inline void signal(int fd) noexcept nogil:
    cdef uint64_t one = 1
    write(fd, &one, sizeof(one))


cdef inline bint may_wait(const worker *w, const pair_work *p) noexcept nogil:
    """Whether a pair need not be looked at in this round: it was idle for some passes, or has ended."""
    return p.ended or (p.idle_passes >= FEW_PASSES and (w.moving or p.resting) and not w.look
                       and w.work - p.looked_at < MOVED_PER_LOOK * w.now.count
                       and not holds_calls(&p.pair.calls))


cdef bint is_time_to_look(worker *w, uint32_t moved) noexcept nogil:
    """Whether idle pairs have waited long while the others moved so much."""
    cdef uint64_t now
    w.since_clock += moved
    if w.since_clock < MOVED_PER_LOOK:
        return False
    w.since_clock = 0
    now = now_ns()
    if now - w.all_looked_at < LOOK_NS:
        return False
    w.all_looked_at = now
    return True


cdef inline void note_moving(worker *w, pair_work *p) noexcept nogil:
    """A pair moves frames: if it goes on doing so, its port is not watched until the next sleep."""
    p.idle_passes = 0
    p.resting = False
    p.moving_passes += 1
    if p.port_watched and p.moving_passes >= MANY_PASSES:
        unwatch_port(w, p)


cdef uint32_t make_round(worker *w) noexcept nogil:
    """Make a pass over each pair that may have work; return how much moved."""
    cdef pair_work *p
    cdef uint32_t i, moved
    cdef uint32_t all_moved = 0
    for i in range(w.now.count):
        p = w.now.pairs[i]
        if may_wait(w, p):
            continue
        moved = queue_pair_pass(p)
        p.looked_at = w.work
        p.idle_passes += 1
        if moved:
            note_moving(w, p)
            all_moved += moved
    w.moving = all_moved > 0
    w.work += all_moved if all_moved else 1
    w.look = w.now.count > 1 and is_time_to_look(w, all_moved)
    return all_moved


cdef inline void take_over_changes(worker *w) noexcept nogil:
    # What the control side did to the pairs that come is visible with it; pairs with `_hand_over`.
    cdef uint32_t wanted = load_acquire_u32(&w.wanted)
    cdef uint32_t i
    if wanted != w.taken:
        for i in range(w.now.count):
            unwatch_port(w, w.now.pairs[i])     # some may leave; the others are watched when we sleep
        w.now = w.next
        # Orders all that we did to the pairs that leave before this; pairs with `is_taken`.
        store_release_u32(&w.taken, wanted)
        signal(w.taken_fd)


cdef void loop(worker *w) noexcept nogil:
    cdef uint64_t now
    while True:
        take_over_changes(w)
        if w.now.count == 0:
            return
        if make_round(w):
            w.idle_since = 0
            w.busy_timeout_ms = BUSY_PORT_TIMEOUT_MS
            continue
        now = now_ns()
        if w.idle_since == 0:
            w.idle_since = now
        else:
            # From one round in vain to the next: no clock is read while there is work.
            w.now.pairs[0].pair.counters.idle_ns += now - w.polled_at
            if now - w.idle_since >= w.poll_ns:
                sleep_until_event(w)
                w.idle_since = 0
                continue
        w.polled_at = now
        cpu_relax()


cdef class WorkLoop:
    """The queue pairs of one worker, at work while a thread is in `run`.

    `add` and `remove` may be called from one other thread at a time; `run` makes the change between two
    rounds, and it counts when `is_taken` says so.

    Args:
        poll_us: the longest time to poll before sleeping, in microseconds; the worker adapts below it.

    Attributes:
        pairs: what `run` is to work on, by number.
    """

    cdef worker *w
    cdef readonly dict pairs

    def __cinit__(self):
        self.w = <worker *>calloc(1, sizeof(worker))
        if self.w == NULL:
            raise MemoryError
        self.w.epoll_fd = self.w.wake_fd = self.w.taken_fd = -1

    def __init__(self, poll_us=50):
        cdef worker *w = self.w
        self.pairs = {}
        w.poll_ns = w.poll_ns_most = poll_us * 1000
        w.busy_timeout_ms = BUSY_PORT_TIMEOUT_MS
        w.wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        w.taken_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        w.epoll_fd = epoll_create1(EPOLL_CLOEXEC)
        if w.epoll_fd < 0:
            raise OSError(errno, "epoll_create1: " + os.strerror(errno))
        self._watch(w.wake_fd, WAKE, 0)

    def __dealloc__(self):
        for fd in (self.w.wake_fd, self.w.taken_fd, self.w.epoll_fd):
            if fd >= 0:
                os.close(fd)
        free(self.w)

    cdef int _watch(self, int fd, int kind, int index) except -1:
        cdef epoll_event event
        # Everything is watched for edges. Each write to an eventfd wakes us, and we need never read one: a
        # frontend that empties its kick descriptor itself cannot make a read of ours block. And frames
        # that wait in a port until the guest has buffers do not keep us awake; every pass polls the port.
        event.events = EPOLLIN | EPOLLET
        event.data.u64 = <uint64_t>index << KIND_BITS | kind
        if fd >= 0 and epoll_ctl(self.w.epoll_fd, EPOLL_CTL_ADD, fd, &event):
            raise OSError(errno, f"cannot wait for descriptor {fd}: {os.strerror(errno)}")
        return 0

    cdef void _unwatch(self, QueuePair pair) noexcept:
        for fd in (pair.rx.ring.kick_fd, pair.tx.ring.kick_fd):
            if fd >= 0:
                epoll_ctl(self.w.epoll_fd, EPOLL_CTL_DEL, fd, NULL)

    cdef void _hand_over(self) noexcept:
        cdef worker *w = self.w
        cdef uint32_t count = 0
        cdef QueuePair pair
        for pair in self.pairs.values():
            w.next.pairs[count] = pair.w
            count += 1
        w.next.count = count
        # Orders the list, and what was done to its pairs, before this; pairs with `take_over_changes`.
        store_release_u32(&w.wanted, w.wanted + 1)
        signal(w.wake_fd)

    def add(self, QueuePair pair):
        """Have `run` work on a pair as well, from its next round on. The change before was taken over.

        Raises:
            ValueError: a pair of that number is there already.
            OSError: one of its descriptors cannot be waited for.
        """
        cdef uint32_t i
        if pair.w.index in self.pairs or len(self.pairs) == MOST_PAIRS:
            raise ValueError(f"queue pair {pair.w.index} is one too many")
        try:
            self._watch(pair.rx.ring.kick_fd, KICK, pair.w.index)
            self._watch(pair.tx.ring.kick_fd, KICK, pair.w.index)
            self._watch(pair.w.port.fd, PORT, pair.w.index)
            for i in range(pair.w.port.more_fd_count):
                self._watch(pair.w.port.more_fds[i], PORT, pair.w.index)
        except OSError:
            self._unwatch(pair)
            raise
        # From now on the worker's: see worker_sleep.pyx.
        pair.w.port_watched = pair.w.port.fd >= 0
        pair.w.moving_passes = 0
        pair.w.resting = False
        pair.w.idle_passes = 0
        self.pairs[pair.w.index] = pair
        self._hand_over()

    def remove(self, QueuePair pair):
        """Have `run` leave a pair alone; with the last one it returns. The change before was taken over."""
        del self.pairs[pair.w.index]
        self._unwatch(pair)
        self._hand_over()

    def is_taken(self, double seconds):
        """Wait for so long until the last change was taken over; return whether it was."""
        cdef pollfd signalled
        cdef int milliseconds = <int>(1000 * seconds)
        cdef int ready
        signalled.fd, signalled.events, signalled.revents = self.w.taken_fd, POLLIN, 0
        while load_acquire_u32(&self.w.taken) != self.w.wanted:
            with nogil:
                ready = poll(&signalled, 1, milliseconds)
            if ready == 0:
                return False
            if ready > 0:
                # Of this change, or of one before that was seen sooner than its signal.
                os.eventfd_read(self.w.taken_fd)
        return True

    def wake(self):
        """Have `run` look at its pairs. May be called from any thread."""
        signal(self.w.wake_fd)

    def run(self):
        """Work until there is no pair left. Called once, in a thread of its own, after the first `add`."""
        with nogil:
            # Timers of this thread are to be on time: calls are held back for microseconds.
            prctl(PR_SET_TIMERSLACK, 1)
            loop(self.w)

    def round(self):
        """Make one round; return how many frames and buffers moved. For tools, instead of `run`."""
        cdef uint32_t moved
        with nogil:
            take_over_changes(self.w)
            moved = make_round(self.w)
        return moved
