# cython: language_level=3
"""The device side of one split virtqueue (virtio 1.3, 2.7).

The driver owns the descriptor table and the available ring, we own the used ring.
"""

from libc.stdint cimport uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc
from libc.string cimport memcpy

from guestwire.datapath.abi cimport (
    AVAILABLE_F_NO_INTERRUPT,
    USED_F_NO_NOTIFY,
    split_available,
    split_descriptor,
    split_used,
    used_element,
)
from guestwire.datapath.atomics cimport (
    fence_seq_cst,
    load_acquire_u16,
    load_relaxed_u16,
    store_relaxed_u16,
    store_release_u16,
)
from guestwire.datapath.chains cimport read_chain, read_chains
from guestwire.datapath.ring cimport AVAILABLE_INDEX, BURST_CHAINS, burst, chain, make_room, ring_broken
from guestwire.datapath.window cimport Window


cdef uint32_t split_ring_pop(ring *self, burst *b, uint32_t most) noexcept nogil:
    cdef split_ring *ring = <split_ring *>self
    cdef uint16_t available
    cdef uint32_t waiting, taken
    if self.error:
        return 0
    # Acquire: the entries and descriptors below are read after the index that announces them; pairs
    # with the driver's barrier before it stores the index (2.7.13.3).
    available = load_acquire_u16(&ring.available.index)
    waiting = <uint16_t>(available - ring.last_available)
    if waiting == 0:
        return 0
    if waiting > self.size:
        ring_broken(self, AVAILABLE_INDEX, ring.last_available, available)
        return 0
    make_room(b)
    if waiting > most:
        waiting = most
    if waiting > BURST_CHAINS - b.end:
        waiting = BURST_CHAINS - b.end
    taken = read_chains(ring, b, waiting)
    self.in_flight_count += taken
    return taken


cdef void split_ring_push(ring *self, const used_element *elements, uint32_t count) noexcept nogil:
    cdef split_ring *ring = <split_ring *>self
    cdef used_element *used = ring.used.ring
    cdef uint16_t *in_flight = self.in_flight
    cdef uint32_t mask = ring.mask
    cdef uint32_t next_used = ring.next_used
    cdef used_element *place
    cdef uint64_t element, old
    cdef uint32_t i
    for i in range(count):
        place = &used[(next_used + i) & mask]
        memcpy(&element, &elements[i], sizeof(element))
        memcpy(&old, place, sizeof(old))
        # The element is often the one of the last time round the ring, and its line is in the driver's cache
        # still: left there, that is worth a fifth of our cycles at 64 bytes, and more from another core.
        if old != element:
            memcpy(place, &element, sizeof(element))
        in_flight[elements[i].id] = 0
    ring.next_used += count
    self.in_flight_count -= count


cdef bint split_ring_show(ring *self) noexcept nogil:
    cdef split_ring *ring = <split_ring *>self
    ring.shown_before = ring.shown_used
    if ring.next_used == ring.shown_used:
        return False
    # Release: the elements and the frames in the buffers are visible before the index; pairs with the
    # driver's read barrier after it loads the index.
    store_release_u16(&ring.used.index, ring.next_used)
    ring.shown_used = ring.next_used
    return True


cdef bint split_ring_wants_call(const ring *self) noexcept nogil:
    """See ring_wants_call (2.7.7, 2.7.10)."""
    cdef const split_ring *ring = <const split_ring *>self
    cdef uint16_t event
    if self.event_index:
        event = load_relaxed_u16(&ring.available.ring[self.size])
        return <uint16_t>(ring.shown_used - event - 1) < <uint16_t>(ring.shown_used - ring.shown_before)
    return not load_relaxed_u16(&ring.available.flags) & AVAILABLE_F_NO_INTERRUPT


cdef void split_ring_disable_notifications(ring *self) noexcept nogil:
    """With EVENT_IDX, silence says the same."""
    cdef split_ring *ring = <split_ring *>self
    if not self.event_index:
        store_relaxed_u16(&ring.used.flags, USED_F_NO_NOTIFY)


cdef bint split_ring_enable_notifications(ring *self) noexcept nogil:
    cdef split_ring *ring = <split_ring *>self
    if self.event_index:
        store_relaxed_u16(<uint16_t *>&ring.used.ring[self.size], ring.last_available)
    else:
        store_relaxed_u16(&ring.used.flags, 0)
    # Full fence: the wish is visible before we look once more; pairs with the driver's full barrier
    # between storing the available index and reading avail_event or flags (2.7.13.4.1).
    fence_seq_cst()
    return load_relaxed_u16(&ring.available.index) != ring.last_available


cdef uint32_t split_ring_waiting(const ring *self) noexcept nogil:
    cdef const split_ring *ring = <const split_ring *>self
    return min(<uint16_t>(load_relaxed_u16(&ring.available.index) - ring.last_available), self.size)


cdef uint32_t split_ring_read_again(ring *self, uint16_t head, burst *b, chain *c) noexcept nogil:
    # The descriptors are still the ring's; the driver may have changed them.
    return read_chain(<split_ring *>self, head, b, c)


cdef class SplitRing(Ring):
    """The device side of one split virtqueue in a guest's window.

    Args:
        window: holds the guest's memory; must outlive the ring's last use.
        size: the queue size, a power of two up to 32,768.
        descriptors, available, used: window offsets of the three areas, aligned to 16, 2 and 4 bytes.
        base: the available index to start from, as the frontend says (VHOST_USER_SET_VRING_BASE). The
            used index is where it starts: wherever the two differ, a device before us was killed, or the
            frontend does not know better, and what was taken and not returned would be lost.
        receive: True for a ring whose buffers we write.
        event_index: VIRTIO_F_EVENT_IDX was negotiated.
        indirect: VIRTIO_F_INDIRECT_DESC was negotiated.
        kick_fd, call_fd: eventfds, borrowed; -1 for none.
    """

    def __cinit__(self):
        cdef split_ring *r = <split_ring *>calloc(1, sizeof(split_ring))
        if r == NULL:
            raise MemoryError
        self.split = r
        self.ring = &r.common
        r.common.pop = split_ring_pop
        r.common.push = split_ring_push
        r.common.show = split_ring_show
        r.common.wants_call = split_ring_wants_call
        r.common.enable_notifications = split_ring_enable_notifications
        r.common.disable_notifications = split_ring_disable_notifications
        r.common.waiting = split_ring_waiting
        r.common.read_again = split_ring_read_again

    def __init__(self, Window window, size, descriptors, available, used, *, base=0, receive,
                 event_index=False, indirect=True, kick_fd=-1, call_fd=-1):
        cdef split_ring *r = self.split
        if not 1 <= size <= 32768 or size & (size - 1):
            raise ValueError(f"queue size {size} is not a power of two between 1 and 32,768")
        r.descriptors = <const split_descriptor *>self.place(
            window, "descriptor table", descriptors, 16 * size, 16)
        r.available = <const split_available *>self.place(
            window, "available ring", available, 6 + 2 * size, 2)
        r.used = <split_used *>self.place(window, "used ring", used, 6 + 8 * size, 4)
        self.start(window, size, receive, event_index, indirect, kick_fd, call_fd)
        r.mask = size - 1
        # One load: a driver that writes there breaks its own ring and nothing else. Further behind the
        # available index than the ring is long, it is AVAILABLE_INDEX.
        r.last_available = r.next_used = r.shown_used = load_relaxed_u16(&r.used.index)
        self.stale_base = None if base == self.base else base
        split_ring_disable_notifications(&r.common)

    @property
    def base(self):
        """The available index of the first chain that was not returned: what GET_VRING_BASE reports."""
        return <uint16_t>(self.split.last_available - self.ring.in_flight_count)

    @property
    def used_index(self):
        """The index of the next used element to write."""
        return self.split.next_used
