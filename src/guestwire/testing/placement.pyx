# cython: language_level=3
"""How two CPUs lie to each other: what a cache line takes between them, and whether they share a core.

A hypervisor may run two virtual CPUs on one core or on two, and change that at any time; figures move by a
factor of two to three with it. Whoever measures a driver and its device looks before and after.
"""

import os
import threading

from libc.stdint cimport uint32_t, uint64_t
from posix.time cimport CLOCK_MONOTONIC, CLOCK_THREAD_CPUTIME_ID, clock_gettime, timespec

from guestwire.datapath.atomics cimport load_relaxed_u32, store_relaxed_u32

cdef enum:
    BATCHES = 20
    ROUND_TRIPS = 100           # in a batch
    PATIENCE_NS = 100000000     # the two must meet in this time
    WORK_ROUNDS = 2000000       # of multiplications, about 3 ms


cdef struct ball:
    uint32_t position           # odd: served, even: returned
    uint32_t given_up
    uint32_t apart[30]          # so that nothing else lies in the line

cdef ball the_ball


cdef inline uint64_t clock_ns(int clock) noexcept nogil:
    cdef timespec t
    clock_gettime(clock, &t)
    return <uint64_t>t.tv_sec * 1000000000 + t.tv_nsec


cdef bint meet(ball *b, uint32_t position, uint64_t deadline) noexcept nogil:
    """Wait until the ball is somewhere; return whether it came."""
    cdef uint32_t looks = 0
    while load_relaxed_u32(&b.position) != position:
        looks += 1
        if looks % 1024 == 0 and (load_relaxed_u32(&b.given_up) or clock_ns(CLOCK_MONOTONIC) > deadline):
            store_relaxed_u32(&b.given_up, 1)
            return False
    return True


cdef void return_balls(ball *b, uint64_t deadline) noexcept nogil:
    cdef uint32_t i
    for i in range(BATCHES * ROUND_TRIPS + 1):
        if not meet(b, 2 * i + 1, deadline):
            return
        store_relaxed_u32(&b.position, 2 * i + 2)


cdef uint64_t serve_balls(ball *b, uint64_t deadline) noexcept nogil:
    """Return the nanoseconds of the fastest batch; 0 if the two did not meet."""
    cdef uint64_t start, took
    cdef uint64_t shortest = 0
    cdef uint32_t i = 0
    cdef uint32_t _batch, _trip
    store_relaxed_u32(&b.position, 1)
    if not meet(b, 2, deadline):
        return 0
    for _batch in range(BATCHES):
        start = clock_ns(CLOCK_MONOTONIC)
        for _trip in range(ROUND_TRIPS):
            i += 1
            store_relaxed_u32(&b.position, 2 * i + 1)
            if not meet(b, 2 * i + 2, deadline):
                return shortest
        took = clock_ns(CLOCK_MONOTONIC) - start
        shortest = took if shortest == 0 else min(shortest, took)
    return shortest


cdef uint64_t work(uint64_t rounds) noexcept nogil:
    """Keep the multiplier busy, of which a core has one; return nanoseconds of CPU time."""
    cdef uint64_t start = clock_ns(CLOCK_THREAD_CPUTIME_ID)
    cdef uint64_t a = start | 1, b = start + 2 | 1, c = start + 4 | 1, d = start + 6 | 1
    cdef uint64_t _
    for _ in range(rounds):
        a *= <uint64_t>0x9E3779B97F4A7C15
        b *= <uint64_t>0xBF58476D1CE4E5B9
        c *= <uint64_t>0x94D049BB133111EB
        d *= <uint64_t>0xD6E8FEB86659FD93
    # The sum is used, so that the work must be done.
    return clock_ns(CLOCK_THREAD_CPUTIME_ID) - start + (a + b + c + d == 0)


class On:
    """Run on one CPU meanwhile: the thread that uses it as a context."""

    def __init__(self, cpu):
        self._cpu = cpu

    def __enter__(self):
        self._before = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {self._cpu})
        return self

    def __exit__(self, kind, error, traceback):
        os.sched_setaffinity(0, self._before)


def _beside(cpu, other, here, there):
    """Return what ``here`` returns on one CPU while ``there`` runs on the other."""
    def elsewhere():
        with On(other):
            there()
    thread = threading.Thread(target=elsewhere)
    thread.start()
    try:
        with On(cpu):
            return here()
    finally:
        thread.join()


def cache_line_round_trip_ns(cpu, other):
    """Return how many nanoseconds a cache line takes from one CPU to the other and back.

    It is the mean of the fastest of some batches, and takes a millisecond, or 100 if other work keeps the
    two from meeting; then None is returned. One thread at a time may ask.

    Raises:
        OSError: there is no such CPU for us.
    """
    cdef uint64_t deadline = clock_ns(CLOCK_MONOTONIC) + PATIENCE_NS
    the_ball.position = the_ball.given_up = 0

    def there():
        with nogil:
            return_balls(&the_ball, deadline)

    def here():
        cdef uint64_t shortest
        with nogil:
            shortest = serve_balls(&the_ball, deadline)
        return shortest

    shortest = _beside(cpu, other, here, there)
    return shortest / ROUND_TRIPS if shortest else None


def slowdown(cpu, other):
    """Return how many times slower a CPU multiplies while the other does so, too.

    Two that share a core have one multiplier: about 2. Two cores have their own: about 1.

    Raises:
        OSError: there is no such CPU for us.
    """
    def alone():
        cdef uint64_t took
        with nogil:
            took = work(WORK_ROUNDS)
        return took

    def longer():
        with nogil:
            work(4 * WORK_ROUNDS)

    with On(cpu):
        first = min(alone() for _ in range(3))
    return _beside(cpu, other, alone, longer) / first
