# cython: language_level=3
"""Where frames from other guests' workers come in to a queue pair: its receive ring, behind a lock.

While the inlet is open, only who has its lock touches the receive ring, the chains taken from it, and the
counters of that direction: usually another guest's worker, for a burst of frames. Nobody holds two locks.
Who holds one never waits for a guest or a frontend: it copies what a burst holds, and signals eventfds of our
own.
"""

from libc.stdint cimport uint8_t, uint32_t

from guestwire.datapath.atomics cimport store_release_u32
from guestwire.datapath.counters cimport COPY_PORT, DROP_TOO_LONG, direction_counters
from guestwire.datapath.frames cimport DELIVER_LATER, DELIVER_NEVER, HEADER_FIELDS, deliver, fill_chain
from guestwire.datapath.mutex cimport pthread_mutex_lock, pthread_mutex_unlock
from guestwire.datapath.ring cimport (
    chain,
    ring_disable_notifications,
    ring_enable_notifications,
    ring_pop,
    ring_publish,
    ring_push,
)


cdef bint inlet_is_able(const inlet *i) noexcept nogil:
    return (i.pair != NULL and load_relaxed_u32(<const uint32_t *>&i.pair.receiving)
            and not i.pair.rx.error and not load_relaxed_u32(&i.pair.window.fault))


cdef bint refill(inlet *i) noexcept nogil:
    """Take more chains from the ring; return whether there were any."""
    if ring_pop(i.pair.rx, i.pair.buffers, BURST_CHAINS) == 0:
        return False
    i.fresh = True
    i.stalled = False
    return True


cdef bint inlet_enter(inlet *i) noexcept nogil:
    pthread_mutex_lock(&i.lock)
    if not inlet_is_able(i):
        return False
    i.frames_before = i.frames_at_enter = i.pair.counters.rx.frames
    i.bytes_before = i.pair.counters.rx.bytes
    if i.pair.buffers.end - i.pair.buffers.first < BURST_CHAINS // 2:
        refill(i)
    return True


cdef void inlet_push(inlet *i) noexcept nogil:
    # All that comes was copied.
    cdef direction_counters *rx = &i.pair.counters.rx
    ring_push(i.pair.rx, i.elements, i.element_count)
    i.element_count = 0
    rx.copied_frames[COPY_PORT] += rx.frames - i.frames_before
    rx.copied_bytes += rx.bytes - i.bytes_before
    i.frames_before = rx.frames
    i.bytes_before = rx.bytes


cdef inline void tell_worker(inlet *i) noexcept nogil:
    """Have the guest's own worker see what we broke in its ring or memory."""
    if not i.told and (i.pair.rx.error or load_relaxed_u32(&i.pair.window.fault)):
        i.told = True
        signal(i.wake_fd)


cdef void wake_waiters(inlet *i) noexcept nogil:
    cdef waiter *w = i.waiters
    while w != NULL:
        signal(w.fd)
        w = w.next
    i.waiters = NULL
    store_relaxed_u32(&i.waited_for, False)


cdef void look_after_waiters(inlet *i) noexcept nogil:
    """Wake them if there are new buffers, else have the driver say when there are."""
    if i.waiters == NULL:
        if i.asked:
            ring_disable_notifications(i.pair.rx)
            i.asked = False
        return
    if i.fresh or not inlet_is_able(i):
        wake_waiters(i)
        return
    i.asked = True
    # The full fence in it comes between waited_for and our last look, too: for buffers that we miss in it the
    # guest's worker is kicked, and finds waited_for (tests/model/test_wake_ups.py).
    if ring_enable_notifications(i.pair.rx) and refill(i):
        wake_waiters(i)


cdef void inlet_leave(inlet *i) noexcept nogil:
    if i.pair != NULL:
        if i.element_count:
            inlet_push(i)
        # The full fence in it comes before we look whether a call is owed already; pairs with inlet_call.
        if ring_publish(i.pair.rx) and not load_relaxed_u32(&i.call_owed):
            i.frames_at_wish = i.frames_at_enter
            # Release: what the wish is for comes before it; pairs with inlet_call.
            store_release_u32(&i.call_owed, True)
            signal(i.wake_fd)
        tell_worker(i)
        look_after_waiters(i)
        i.fresh = False
    pthread_mutex_unlock(&i.lock)


cdef void inlet_place_addresses(
    const pair_context *pair, const chain *c, const uint8_t *addresses
) noexcept nogil:
    cdef uint32_t skip = pair.header_size
    cdef uint32_t left = ADDRESSES
    cdef uint32_t part
    while left:
        part = min(c.length - skip, left)
        fill_chain(pair, pair.buffers, c, skip, addresses, part)
        addresses += part
        left -= part
        skip = 0
        c += 1


cdef int inlet_deliver_later(
    inlet *i, const piece *pieces, uint32_t count, uint32_t length, int buffers
) noexcept nogil:
    while buffers == DELIVER_LATER and refill(i):
        buffers = deliver(i.pair, pieces, count, length, &i.elements[i.element_count])
    if buffers == DELIVER_NEVER:
        inlet_drop(i, DROP_TOO_LONG, 1)
    return buffers


cdef void inlet_pass_on(inlet *i, const chain *c, const net_header *header) noexcept nogil:
    fill_chain(i.pair, i.pair.buffers, c, 0, <const uint8_t *>header, HEADER_FIELDS)
    i.pair.counters.rx.gso_frames += header.gso_type != 0
    i.pair.counters.rx.checksums += 1


cdef void inlet_drop(inlet *i, uint32_t reason, uint32_t frames) noexcept nogil:
    i.pair.counters.rx.drops[reason] += frames


cdef void inlet_await(inlet *i, waiter *w) noexcept nogil:
    w.next = i.waiters
    i.waiters = w
    store_relaxed_u32(&i.waited_for, True)


cdef void inlet_forget(inlet *i, waiter *w) noexcept nogil:
    cdef waiter **at = &i.waiters
    pthread_mutex_lock(&i.lock)
    while at[0] != NULL and at[0] != w:
        at = &at[0].next
    if at[0] == w:
        at[0] = w.next
        store_relaxed_u32(&i.waited_for, i.waiters != NULL)
    pthread_mutex_unlock(&i.lock)


cdef void inlet_look(inlet *i) noexcept nogil:
    if load_relaxed_u32(&i.waited_for):
        if inlet_enter(i):
            refill(i)
        inlet_leave(i)


cdef void inlet_open(inlet *i, pair_context *pair, int wake_fd) noexcept nogil:
    pthread_mutex_lock(&i.lock)
    i.pair = pair
    i.wake_fd = wake_fd
    i.fresh = i.asked = i.stalled = i.told = False
    i.element_count = 0
    store_relaxed_u32(&i.call_owed, False)
    pthread_mutex_unlock(&i.lock)


cdef void inlet_close(inlet *i, const pair_context *pair) noexcept nogil:
    pthread_mutex_lock(&i.lock)
    if i.pair == pair:
        i.pair = NULL
        wake_waiters(i)
    pthread_mutex_unlock(&i.lock)
