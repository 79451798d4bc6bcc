"""Where frames from other guests' workers come in to a queue pair: its receive ring, behind a lock.

    if inlet_enter(i):                  # nobody else touches the receive ring now
        while there are frames:
            inlet_deliver(i, ...)
    inlet_leave(i)                      # they are the guest's, and others may come
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy
from posix.unistd cimport write

from guestwire.datapath.abi cimport net_header, used_element
from guestwire.datapath.atomics cimport (
    fence_seq_cst,
    load_acquire_u32,
    load_relaxed_u32,
    store_relaxed_u32,
)
from guestwire.datapath.coalescing cimport coalesce_call
from guestwire.datapath.frames cimport ADDRESSES, deliver, piece
from guestwire.datapath.mutex cimport pthread_mutex_t
from guestwire.datapath.port cimport pair_context
from guestwire.datapath.ring cimport BURST_CHAINS, chain, chain_segments, ring_call

cdef enum:
    INLET_ELEMENTS = 2 * BURST_CHAINS

# A sender that waits for buffers.
cdef struct waiter:
    waiter *next
    int fd                      # what wakes it

cdef struct inlet:
    pthread_mutex_t lock
    # For whoever has the lock.
    pair_context *pair          # whose ring it is; NULL: closed
    waiter *waiters
    bint fresh                  # buffers were taken from the ring since somebody entered
    bint asked                  # the driver is to kick at its next buffer
    bint stalled                # a frame waited for buffers in vain, and there were none since
    bint told                   # of what is broken
    uint64_t frames_before      # that had come when somebody entered, or chains were last pushed
    uint64_t frames_at_enter    # the same when somebody entered
    uint64_t bytes_before
    uint32_t element_count
    used_element elements[INLET_ELEMENTS]       # filled, and not in the used ring yet
    # For the worker of the guest, which has no lock to wait for.
    uint32_t waited_for
    uint32_t call_owed
    uint64_t frames_at_wish     # that had come before the burst that the call is owed for
    int wake_fd                 # wakes it; only used by whoever has the lock

cdef inline void signal(int fd) noexcept nogil:
    """Signal an eventfd of our own: it never blocks."""
    cdef uint64_t one = 1
    write(fd, &one, sizeof(one))

# Returns whether frames can be delivered. It is to be left either way.
cdef bint inlet_enter(inlet *i) noexcept nogil

# Let the guest see what was delivered.
cdef void inlet_leave(inlet *i) noexcept nogil

# Whether frames can be delivered: it is open, the ring enabled, and neither it nor the memory broken.
cdef bint inlet_is_able(const inlet *i) noexcept nogil

# Return the chains that were filled to the ring.
cdef void inlet_push(inlet *i) noexcept nogil

# Try once more with all buffers that the guest offers, if that is worth it, and count a frame that none hold.
cdef int inlet_deliver_later(
    inlet *i, const piece *pieces, uint32_t count, uint32_t length, int buffers
) noexcept nogil

# Write them behind the virtio_net_hdr of a frame that begins in this chain.
cdef void inlet_place_addresses(
    const pair_context *pair, const chain *c, const uint8_t *addresses
) noexcept nogil

cdef void inlet_pass_on(inlet *i, const chain *c, const net_header *header) noexcept nogil

cdef inline int inlet_deliver(
    inlet *i, const piece *pieces, uint32_t count, uint32_t length, const void *addresses,
    const net_header *header
) noexcept nogil:
    """Copy a frame of `length` bytes into the guest's next buffers; its 12 bytes of `addresses` are these.

    Of a `header` that is not NULL, what it asks for is passed on to the guest, which has accepted that.

    Returns DELIVER_LATER if there are not enough buffers; else the frame is dealt with and counted, and this
    is the number of its buffers, or DELIVER_NEVER.
    """
    cdef pair_context *pair = i.pair
    cdef chain *c
    cdef int buffers = deliver(pair, pieces, count, length, &i.elements[i.element_count])
    if buffers <= 0:
        buffers = inlet_deliver_later(i, pieces, count, length, buffers)
        if buffers <= 0:
            return buffers
    # The chains are still in the burst, before those that wait.
    c = &pair.buffers.chains[pair.buffers.first - buffers]
    # The sender may have changed them since they were looked at: these are the ones that were.
    if chain_segments(pair.buffers, c).length >= pair.header_size + <uint32_t>ADDRESSES:
        memcpy(pair.window.base + c.offset + pair.header_size, addresses, ADDRESSES)
    else:
        inlet_place_addresses(pair, c, <const uint8_t *>addresses)
    if header != NULL and header.flags:
        inlet_pass_on(i, c, header)
    pair.counters.rx.frames += 1
    pair.counters.rx.bytes += length
    i.element_count += buffers
    if i.element_count > BURST_CHAINS:
        inlet_push(i)
    return buffers

# Count frames that were for the guest.
cdef void inlet_drop(inlet *i, uint32_t reason, uint32_t frames) noexcept nogil

# Have a sender woken when buffers come, or the inlet closes. The inlet is entered.
cdef void inlet_await(inlet *i, waiter *w) noexcept nogil

# Let it wait no more. The inlet is not entered.
cdef void inlet_forget(inlet *i, waiter *w) noexcept nogil

# For the worker of the guest: look for buffers that others wait for.
cdef void inlet_look(inlet *i) noexcept nogil

# For the control side. Through what is closed nobody touches the guest's memory or its ring any more; nothing
# happens if it is another pair's by now.
cdef void inlet_open(inlet *i, pair_context *pair, int wake_fd) noexcept nogil
cdef void inlet_close(inlet *i, const pair_context *pair) noexcept nogil

cdef inline void inlet_call(inlet *i, pair_context *pair) noexcept nogil:
    """For the worker of the guest: call its driver if a sender found that it wants to be called.

    A sender does not do that itself: the guest's frontend can make whoever writes to its descriptor wait.
    """
    # Acquire: what the wish was for is read after it; pairs with inlet_leave.
    cdef bint wanted = load_acquire_u32(&i.call_owed)
    cdef uint64_t now = 0
    cdef uint64_t frames
    if wanted:
        if not pair.calls.rx.owed:
            pair.calls.frames_seen = i.frames_at_wish
        store_relaxed_u32(&i.call_owed, 0)
        # The call comes after this: for whoever then still sees that one is owed. Pairs with inlet_leave.
        fence_seq_cst()
    if pair.calls.most_ns == 0:
        if wanted:
            ring_call(pair.rx)
            pair.counters.rx_calls += 1
    elif wanted or pair.calls.rx.owed:
        # Another worker counts them meanwhile: what is not seen now is seen in the next pass.
        frames = pair.counters.rx.frames
        coalesce_call(&pair.calls, &pair.calls.rx, pair.rx, wanted,
                      <uint32_t>(frames - pair.calls.frames_seen), &pair.counters.rx_calls, &now)
        pair.calls.frames_seen = frames
