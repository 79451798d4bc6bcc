"""What a worker's loop keeps, and its sleep; see worker.pyx."""

from libc.stdint cimport uint32_t, uint64_t

from guestwire.datapath.queue_pair cimport pair_work

cdef enum:
    MOST_PAIRS = 64
    BUSY_PORT_TIMEOUT_MS = 1    # how long to sleep when a port must be polled again
    # What is watched, beside the pair's number in the upper bits.
    WAKE = 0
    KICK = 1
    PORT = 2
    KIND_BITS = 2

cdef struct pair_list:
    uint32_t count
    pair_work *pairs[MOST_PAIRS]

cdef struct worker:
    pair_list now               # the loop's
    bint moving                 # the last round moved something
    bint look                   # the next round is to leave no pair out
    uint32_t since_clock        # moved since the clock was last read for that
    uint64_t all_looked_at      # when a round last left none out
    uint64_t work               # frames and buffers moved, and rounds that moved none
    uint64_t poll_ns            # how long to poll before sleeping, now
    uint64_t poll_ns_most
    uint64_t idle_since         # 0: not idle
    uint64_t polled_at          # while idle: when a round last moved nothing
    int busy_timeout_ms         # how long to sleep at most when a port must be polled again
    int epoll_fd
    int wake_fd                 # wakes the loop
    int taken_fd                # tells that `next` was taken over
    # The control side's, until `taken` is `wanted` again.
    pair_list next
    uint32_t wanted
    uint32_t taken

# Sleep until an event, unless there is work already.
cdef void sleep_until_event(worker *w) noexcept nogil

# Have the descriptor of a port wake us no more, until the next sleep.
cdef void unwatch_port(worker *w, pair_work *p) noexcept nogil
