# cython: language_level=3
"""The device side of one packed virtqueue (virtio 1.3, 2.8).

There is one ring of descriptors, which the driver and we write in turn. The driver makes a list of
descriptors available at its position; we read it once, and when its buffer is done we write one used
descriptor at our own position, which moves on by as many descriptors as the list had. Whose turn it is, two
flags say, whose meaning changes each time a position goes round the ring.

Buffers may come back in any order. Then a used descriptor overwrites those of a list that is still in
flight, and where a port looks at a list again, copies are kept (`kept`).
"""

from libc.stdint cimport int32_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy

from guestwire.datapath.abi cimport (
    DESCRIPTOR_F_AVAIL,
    DESCRIPTOR_F_NEXT,
    DESCRIPTOR_F_USED,
    DESCRIPTOR_F_WRITE,
    RING_EVENT_FLAGS_DESC,
    RING_EVENT_FLAGS_DISABLE,
    RING_EVENT_FLAGS_ENABLE,
    packed_descriptor,
    used_element,
)
from guestwire.datapath.atomics cimport (
    fence_seq_cst,
    load_relaxed_u32,
    load_relaxed_u64,
    store_relaxed_u32,
    store_relaxed_u64,
    store_release_u64,
)
from guestwire.datapath.branches cimport unlikely
from guestwire.datapath.packed_lists cimport (
    TURN,
    is_available,
    is_available_with,
    read_list_again,
    read_lists,
    release_kept,
    second_word,
)
from guestwire.datapath.ring cimport BURST_CHAINS, burst, make_room, ring
from guestwire.datapath.window cimport Window

cdef enum:
    WRAP = 1 << 15          # of a position with its wrap counter


cdef uint32_t packed_ring_pop(ring *self, burst *b, uint32_t most) noexcept nogil:
    cdef packed_ring *r = <packed_ring *>self
    cdef uint32_t count
    if self.error or not is_available(r, r.next_available):
        return 0
    make_room(b)
    count = read_lists(r, b, min(most, BURST_CHAINS - b.end))
    self.in_flight_count += count
    return count


# --- used descriptors ------------------------------------------------------------------------------------

cdef inline uint64_t used_word(uint64_t flags, const used_element *element) noexcept nogil:
    """Return the second word of a used descriptor."""
    if element.length:
        flags |= DESCRIPTOR_F_WRITE
    return flags << 48 | <uint64_t>element.id << 32 | element.length


cdef inline void advance_used(packed_ring *r, uint32_t descriptors) noexcept nogil:
    """Move next_used behind lists that were pushed."""
    cdef uint32_t position = r.next_used + descriptors
    if position >= r.common.size:
        position -= r.common.size
        r.used_flags ^= TURN
    r.next_used = position
    r.unpublished += descriptors
    r.descriptors_in_flight -= descriptors


cdef void push_any(packed_ring *r, const used_element *element) noexcept nogil:
    cdef uint64_t word = used_word(r.used_flags, element)
    cdef uint32_t descriptors = r.common.in_flight[element.id]
    if r.unpublished == 0:
        r.first_position, r.first_word = r.next_used, word
    else:
        # Relaxed: the driver looks at it only after the first one.
        store_relaxed_u64(second_word(&r.descriptors[r.next_used]), word)
    r.common.in_flight[element.id] = 0
    if r.kept != NULL:
        release_kept(r, element.id, descriptors)
    advance_used(r, descriptors)


cdef uint32_t push_run(packed_ring *r, const used_element *elements, uint32_t most) noexcept nogil:
    """Push lists of one descriptor behind another one, up to the first longer one or the ring's end."""
    # In locals: a store to in_flight might change anything else, for all that the compiler knows.
    cdef packed_descriptor *d = &r.descriptors[r.next_used]
    cdef uint16_t *in_flight = r.common.in_flight
    cdef uint64_t empty = <uint64_t>r.used_flags << 48
    cdef uint64_t written = empty | <uint64_t>DESCRIPTOR_F_WRITE << 48
    cdef uint64_t element, flags
    cdef uint32_t i, k, id
    most = min(most, <uint32_t>(r.common.size - r.next_used))
    for i in range(most):
        memcpy(&element, &elements[i], sizeof(element))
        id = <uint32_t>element
        if unlikely(in_flight[id] != 1):
            break
        in_flight[id] = 0
        flags = written if element >> 32 else empty
        # Id and length change places. Relaxed: as above.
        store_relaxed_u64(second_word(&d[i]), flags | element << 32 | element >> 32)
    else:
        i = most
    if r.kept != NULL:
        for k in range(i):
            release_kept(r, elements[k].id, 1)
    advance_used(r, i)
    return i


cdef void packed_ring_push(ring *self, const used_element *elements, uint32_t count) noexcept nogil:
    cdef packed_ring *r = <packed_ring *>self
    cdef uint32_t i = 0
    while i < count:
        push_any(r, &elements[i])
        i += 1
        i += push_run(r, &elements[i], count - i)
    self.in_flight_count -= count


cdef bint packed_ring_show(ring *self) noexcept nogil:
    cdef packed_ring *r = <packed_ring *>self
    r.shown = r.unpublished
    if r.shown == 0:
        return False
    # Release: the frames in the buffers and all later used descriptors are visible before the first one,
    # with its id, length and flags in one word; pairs with the driver's read barrier after it has seen the
    # flags. This one store publishes the burst: the driver goes on to a descriptor only from the one before.
    store_release_u64(second_word(&r.descriptors[r.first_position]), r.first_word)
    r.unpublished = 0
    return True


cdef bint packed_ring_wants_call(const ring *self) noexcept nogil:
    """See ring_wants_call (2.8.10)."""
    cdef const packed_ring *r = <const packed_ring *>self
    cdef uint32_t wish = load_relaxed_u32(r.driver_event)
    cdef int32_t end = r.next_used
    cdef int32_t count = r.shown
    cdef int32_t event
    if not self.event_index or wish >> 16 & 3 != RING_EVENT_FLAGS_DESC:
        return wish >> 16 & 3 != RING_EVENT_FLAGS_DISABLE
    event = wish & ~WRAP & 0xFFFF
    if event >= self.size:
        return False
    # Positions of the last time round the ring are negative.
    if (wish & WRAP != 0) != (r.used_flags != 0):
        event -= self.size
    return end - count <= event < end


# --- notifications ---------------------------------------------------------------------------------------

cdef void packed_ring_disable_notifications(ring *self) noexcept nogil:
    cdef packed_ring *r = <packed_ring *>self
    store_relaxed_u32(r.device_event, RING_EVENT_FLAGS_DISABLE << 16)


cdef bint packed_ring_enable_notifications(ring *self) noexcept nogil:
    cdef packed_ring *r = <packed_ring *>self
    cdef uint32_t wish = RING_EVENT_FLAGS_ENABLE << 16
    if self.event_index:
        wish = RING_EVENT_FLAGS_DESC << 16 | r.next_available
        if r.available_flags == DESCRIPTOR_F_AVAIL:
            wish |= WRAP
    # One word, so that the driver never sees these flags with another offset.
    store_relaxed_u32(r.device_event, wish)
    # Full fence: the wish is visible before we look once more; pairs with the driver's full barrier between
    # storing a descriptor's flags and reading this word (2.8.21.2).
    fence_seq_cst()
    return is_available(r, r.next_available)


cdef uint32_t packed_ring_waiting(const ring *self) noexcept nogil:
    # Counted on from the last time, so that each descriptor is looked at once.
    cdef packed_ring *r = <packed_ring *>self
    cdef uint16_t flags
    while (r.seen + r.descriptors_in_flight < self.size
           and is_available_with(r, r.next_available + r.seen, &flags)):
        r.seen += 1
        r.seen_lists += flags & DESCRIPTOR_F_NEXT == 0
    return r.seen_lists


cdef class PackedRing(Ring):
    """The device side of one packed virtqueue in a guest's window.

    Args:
        window: holds the guest's memory; must outlive the ring's last use.
        size: the queue size, up to 32,768.
        descriptors, driver_event, device_event: window offsets of the descriptor ring and of the two event
            suppression structures, aligned to 16, 4 and 4 bytes.
        base: where to start (VHOST_USER_SET_VRING_BASE): the position from which descriptors are made
            available next in bits 0 to 14, its wrap counter in bit 15; the same of the next used
            descriptor above them. Where they differ, the latter holds: what is between them was
            another's, who did not return it. Two bases stand for the beginning of a new ring: 0x8000, as
            DPDK's virtio-user gives no used half, and 0, as User-Mode Linux says, if it was never used.
        receive: True for a ring whose buffers we write.
        event_index: VIRTIO_F_EVENT_IDX was negotiated.
        indirect: VIRTIO_F_INDIRECT_DESC was negotiated.
        read_again: whether lists in flight can be read again (`ring_read_again`), in whatever order they
            are pushed.
        kick_fd, call_fd: eventfds, borrowed; -1 for none.
    """

    def __cinit__(self):
        cdef packed_ring *r = <packed_ring *>calloc(1, sizeof(packed_ring))
        if r == NULL:
            raise MemoryError
        self.packed = r
        self.ring = &r.common
        r.common.pop = packed_ring_pop
        r.common.push = packed_ring_push
        r.common.show = packed_ring_show
        r.common.wants_call = packed_ring_wants_call
        r.common.enable_notifications = packed_ring_enable_notifications
        r.common.disable_notifications = packed_ring_disable_notifications
        r.common.waiting = packed_ring_waiting
        r.common.read_again = read_list_again

    def __init__(self, Window window, size, descriptors, driver_event, device_event, *, base=0x80008000,
                 receive, event_index=False, indirect=True, read_again=False, kick_fd=-1, call_fd=-1):
        cdef packed_ring *r = self.packed
        if not 1 <= size <= 32768:
            raise ValueError(f"queue size {size} is not between 1 and 32,768")
        start = WRAP if base == WRAP else base >> 16
        position, wrap = start & ~WRAP, start & WRAP
        if position >= size:
            raise ValueError(f"it would begin at descriptor {position} of {size}")
        r.descriptors = <packed_descriptor *>self.place(
            window, "descriptor ring", descriptors, 16 * size, 16)
        r.driver_event = <const uint32_t *>self.place(
            window, "driver event suppression structure", driver_event, 4, 4)
        r.device_event = <uint32_t *>self.place(
            window, "device event suppression structure", device_event, 4, 4)
        self.start(window, size, receive, event_index, indirect, kick_fd, call_fd)
        if base == 0 and not self._was_used():
            wrap = WRAP
        r.next_available = r.next_used = position
        r.available_flags = DESCRIPTOR_F_AVAIL if wrap else DESCRIPTOR_F_USED
        r.used_flags = TURN if wrap else 0
        if read_again:
            self._keep_copies()
        packed_ring_disable_notifications(&r.common)

    def _was_used(self):
        """Whether any descriptor was ever used. Once round the ring, that flag is set somewhere."""
        cdef uint32_t i
        for i in range(self.packed.common.size):
            if load_relaxed_u64(second_word(&self.packed.descriptors[i])) >> 48 & DESCRIPTOR_F_USED:
                return True
        return False

    def _keep_copies(self):
        cdef packed_ring *r = self.packed
        cdef uint32_t i
        cdef uint32_t size = r.common.size
        r.kept = <packed_descriptor *>calloc(size, sizeof(packed_descriptor))
        r.kept_free = <uint16_t *>calloc(size, sizeof(uint16_t))
        r.kept_next = <uint16_t *>calloc(size, sizeof(uint16_t))
        r.kept_first = <uint16_t *>calloc(size, sizeof(uint16_t))
        if not (r.kept and r.kept_free and r.kept_next and r.kept_first):
            raise MemoryError
        for i in range(size):
            r.kept_free[i] = size - 1 - i
        r.kept_free_count = size

    def __dealloc__(self):
        if self.packed != NULL:
            free(self.packed.kept)
            free(self.packed.kept_free)
            free(self.packed.kept_next)
            free(self.packed.kept_first)

    @property
    def base(self):
        """From where the next device goes on: what GET_VRING_BASE reports; see the constructor's `base`.

        Lists that were not returned are those made available last, and will be read once more.
        """
        half = self.packed.next_used | (WRAP if self.packed.used_flags else 0)
        return half << 16 | half
