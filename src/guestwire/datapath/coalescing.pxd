"""Coalesced calls: one that the driver wants is held back for a while, so that it stands for more frames.

The driver's wish is read when a burst is published (EVENT_IDX: it names one used buffer, and later bursts
are not what it asked for): a call that was wanted stays owed until it is made. Both bounds are counted from
the burst that it was wanted for, so that they hold for a driver, too, that polls for a while after each call.
"""

from libc.stdint cimport uint32_t, uint64_t

from guestwire.datapath.clock cimport now_ns
from guestwire.datapath.ring cimport ring, ring_call

# A call that is held back.
cdef struct held_call:
    bint owed
    uint32_t returned           # buffers, or frames of a wire, since it was wanted
    uint64_t since              # ns: when that was

# Of one queue pair. Only its worker touches it.
cdef struct coalescing:
    uint64_t most_ns            # how long a call may be held back; 0: every call is made at once
    uint32_t most_returned      # ... and for how many buffers
    held_call rx
    held_call tx
    uint64_t frames_seen        # of those received over a wire, while a call for them is owed

cdef inline bint holds_calls(const coalescing *c) noexcept nogil:
    return c.rx.owed or c.tx.owed


cdef inline uint64_t calls_due(const coalescing *c) noexcept nogil:
    """Return when the first held call must be made, in ns; 0 if none is held."""
    cdef uint64_t since = 0
    if c.tx.owed:
        since = c.tx.since
    if c.rx.owed and (since == 0 or c.rx.since < since):
        since = c.rx.since
    return since + c.most_ns if since else 0


cdef inline void make_held(held_call *held, ring *r, uint64_t *calls) noexcept nogil:
    if held.owed:
        held.owed = False
        ring_call(r)
        calls[0] += 1


cdef inline void coalesce_call(
    coalescing *c, held_call *held, ring *r, bint wanted, uint32_t returned, uint64_t *calls, uint64_t *now
) noexcept nogil:
    """Hold back the call that is wanted for these buffers, or owed for others, or make it.

    `now` is read if it is needed, and 0.
    """
    if not held.owed:
        if not wanted:
            return
        if now[0] == 0:
            now[0] = now_ns()
        held.owed = True
        held.returned = 0
        held.since = now[0]
    held.returned += returned
    if held.returned < c.most_returned:
        if now[0] == 0:
            now[0] = now_ns()
        if now[0] - held.since < c.most_ns:
            return
    make_held(held, r, calls)
