# cython: language_level=3
"""The device side of one packed virtqueue (virtio 1.3, 2.8).

There is one ring of descriptors, which the driver and we write in turn. The driver makes a list of
descriptors available at its position; we read it once, and when its buffer is done we write one used
descriptor at our own position, which moves on by as many descriptors as the list had. Whose turn it is, two
flags say, whose meaning changes each time a position goes round the ring.

Buffers may come back in any order. Then a used descriptor overwrites those of a list that is still in
flight, and where a port looks at a list again, copies are kept (`kept`).

Each descriptor is read once into locals, checked, and only the result is kept; the order of the checks is
that of guestwire.virtio.ring_errors.
"""

from libc.stdint cimport int32_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free

from guestwire.datapath.abi cimport (
    DESCRIPTOR_F_AVAIL,
    DESCRIPTOR_F_INDIRECT,
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
    load_acquire_u64,
    load_relaxed_u32,
    load_relaxed_u64,
    store_relaxed_u32,
    store_relaxed_u64,
    store_release_u64,
)
from guestwire.datapath.chains cimport (
    DESCRIPTOR_SIZE,
    chain_begin,
    chain_end,
    find_table,
    read_buffer,
)
from guestwire.datapath.ring cimport (
    BURST_CHAINS,
    BURST_SEGMENTS,
    CHAIN_TOO_LONG,
    DESCRIPTOR_IN_FLIGHT,
    HEAD_IN_FLIGHT,
    HEAD_OUT_OF_RANGE,
    INDIRECT_NESTED,
    INDIRECT_NOT_NEGOTIATED,
    INDIRECT_WITH_NEXT,
    RING_OK,
    burst,
    chain,
    make_room,
    ring,
    ring_broken,
)
from guestwire.datapath.window cimport Window, region

cdef enum:
    TURN = DESCRIPTOR_F_AVAIL | DESCRIPTOR_F_USED
    WRAP = 1 << 15          # of a position with its wrap counter


cdef inline uint64_t *second_word(const packed_descriptor *d) noexcept nogil:
    """Return where a descriptor's length, id and flags are."""
    return <uint64_t *>d + 1


cdef inline packed_descriptor descriptor_from(uint64_t low, uint64_t high) noexcept nogil:
    cdef packed_descriptor copy
    copy.address = low
    copy.length = <uint32_t>high
    copy.id = <uint16_t>(high >> 32)
    copy.flags = <uint16_t>(high >> 48)
    return copy


cdef inline packed_descriptor read_descriptor(const packed_descriptor *d) noexcept nogil:
    """Read a descriptor once: two loads, so that the driver cannot change a field between two uses."""
    return descriptor_from(load_relaxed_u64(<const uint64_t *>d), load_relaxed_u64(second_word(d)))


cdef inline bint is_available_with(const packed_ring *r, uint32_t position, uint16_t *found) noexcept nogil:
    """Whether a descriptor behind next_available, less than once round the ring, is available.

    `found` becomes its flags.
    """
    cdef uint16_t flags = r.available_flags
    if position >= r.common.size:
        position -= r.common.size
        flags ^= TURN
    # Acquire: what belongs to the descriptor is read after the flags; pairs with the driver's barrier before
    # it stores them (2.8.21.1).
    found[0] = load_acquire_u64(second_word(&r.descriptors[position])) >> 48
    return found[0] & TURN == flags


cdef inline bint is_available(const packed_ring *r, uint32_t position) noexcept nogil:
    cdef uint16_t _
    return is_available_with(r, position, &_)


# --- lists -----------------------------------------------------------------------------------------------

cdef inline void keep(packed_ring *r, uint32_t taken, const packed_descriptor *d) noexcept nogil:
    """Keep a copy of the next descriptor of a list, of which `taken` were kept before."""
    cdef uint32_t copy = r.kept_free[r.kept_free_count - 1 - taken]
    r.kept[copy] = d[0]
    if taken:
        r.kept_next[r.kept_free[r.kept_free_count - taken]] = copy


cdef inline void own_kept(packed_ring *r, uint16_t id, uint32_t count) noexcept nogil:
    """The list was read: its copies belong to its buffer id."""
    r.kept_first[id] = r.kept_free[r.kept_free_count - 1]
    r.kept_free_count -= count


cdef inline void release_kept(packed_ring *r, uint16_t id, uint32_t count) noexcept nogil:
    cdef uint32_t copy = r.kept_first[id]
    while count:
        r.kept_free[r.kept_free_count] = copy
        r.kept_free_count += 1
        copy = r.kept_next[copy]
        count -= 1


cdef uint32_t read_table(
    ring *self, uint32_t head, const packed_descriptor *d, burst *b, chain *c
) noexcept nogil:
    """Read the indirect table that a descriptor refers to: all of it, in order (2.8.7)."""
    cdef uint64_t offset = find_table(self, head, d.address, d.length)
    cdef const packed_descriptor *table = <const packed_descriptor *>(self.window.base + offset)
    cdef uint32_t i, error
    cdef packed_descriptor entry
    if offset == 0:
        return self.error
    for i in range(d.length // DESCRIPTOR_SIZE):
        entry = read_descriptor(&table[i])
        if entry.flags & DESCRIPTOR_F_INDIRECT:
            return ring_broken(self, INDIRECT_NESTED, head, i)
        error = read_buffer(self, head, entry.address, entry.length, entry.flags, b, c)
        if error:
            return error
    return RING_OK


cdef uint32_t read_element(
    ring *self, uint32_t head, uint32_t taken, const packed_descriptor *d, burst *b, chain *c
) noexcept nogil:
    """Read what one descriptor of a list refers to; `taken` come before it."""
    if not d.flags & DESCRIPTOR_F_INDIRECT:
        return read_buffer(self, head, d.address, d.length, d.flags, b, c)
    if not self.indirect:
        return ring_broken(self, INDIRECT_NOT_NEGOTIATED, head, d.flags)
    if taken or d.flags & DESCRIPTOR_F_NEXT:
        return ring_broken(self, INDIRECT_WITH_NEXT, head, d.flags)
    return read_table(self, head, d, b, c)


cdef uint32_t read_list(packed_ring *r, packed_descriptor d, burst *b, chain *c) noexcept nogil:
    """Read the list that begins at next_available with `d` into `c`, its segments behind those in `b`.

    Returns over how many descriptors it extends; 0 if the burst is full or a rule was broken.
    """
    cdef ring *self = &r.common
    cdef uint32_t head = r.next_available
    cdef uint32_t position = head
    cdef uint32_t taken = 0
    chain_begin(c, 0, b)
    while True:
        if taken >= self.size:
            ring_broken(self, CHAIN_TOO_LONG, head, taken)
            return 0
        if r.descriptors_in_flight + taken >= self.size:
            ring_broken(self, DESCRIPTOR_IN_FLIGHT, head, position)
            return 0
        if read_element(self, head, taken, &d, b, c):
            return 0
        if r.kept != NULL:
            keep(r, taken, &d)
        taken += 1
        if not d.flags & DESCRIPTOR_F_NEXT:
            break
        position = position + 1 if position + 1 < self.size else 0
        d = read_descriptor(&r.descriptors[position])
    if d.id >= self.size:
        ring_broken(self, HEAD_OUT_OF_RANGE, head, d.id)
        return 0
    if self.in_flight[d.id]:
        ring_broken(self, HEAD_IN_FLIGHT, head, d.id)
        return 0
    c.head = d.id
    chain_end(c, b)
    return taken


cdef uint32_t packed_ring_read_again(ring *self, uint16_t head, burst *b, chain *c) noexcept nogil:
    # Checked anew: the memory may have changed since, and what is in an indirect table is still the driver's.
    cdef packed_ring *r = <packed_ring *>self
    cdef uint32_t taken, error
    cdef uint32_t copy = r.kept_first[head]
    chain_begin(c, head, b)
    for taken in range(self.in_flight[head]):
        error = read_element(self, head, taken, &r.kept[copy], b, c)
        if error:
            return error
        copy = r.kept_next[copy]
    chain_end(c, b)
    return RING_OK


cdef uint32_t packed_ring_pop(ring *self, burst *b, uint32_t most) noexcept nogil:
    cdef packed_ring *r = <packed_ring *>self
    cdef const region *near = &self.window.regions[self.region_hint]
    cdef uint32_t position = r.next_available
    cdef uint32_t count = 0
    cdef uint32_t taken
    cdef uint64_t high, distance
    cdef packed_descriptor d
    cdef chain *c
    if self.error or not is_available(r, position):
        return 0
    make_room(b)
    most = min(most, BURST_CHAINS - b.end)
    while count < most:
        # Acquire: the rest of the list is read after the flags of its first descriptor, which make it
        # available; pairs with the driver's barrier before it stores those flags (2.8.21.1).
        high = load_acquire_u64(second_word(&r.descriptors[position]))
        if <uint16_t>(high >> 48) & TURN != r.available_flags:
            break
        d = descriptor_from(load_relaxed_u64(<const uint64_t *>&r.descriptors[position]), high)
        c = &b.chains[b.end]
        distance = d.address - near.guest_address
        if (d.flags & ~TURN == self.direction and d.length and b.segment_end < BURST_SEGMENTS
                and distance < near.size and d.length <= near.size - distance
                and d.id < self.size and not self.in_flight[d.id] and r.descriptors_in_flight < self.size):
            # The common list is one buffer in the region of the last one: no walk, no search.
            c.offset = near.offset + distance
            c.first_length = c.length = d.length
            c.head = d.id
            c.segment_count = 1
            c.first_segment = b.segment_end
            b.segments[b.segment_end].offset = c.offset
            b.segments[b.segment_end].length = d.length
            taken = 1
            if r.kept != NULL:
                keep(r, 0, &d)
        else:
            taken = read_list(r, d, b, c)
            if taken == 0:
                break
            near = &self.window.regions[self.region_hint]
        if r.kept != NULL:
            own_kept(r, c.head, taken)
        self.in_flight[c.head] = taken
        r.descriptors_in_flight += taken
        b.segment_end += c.segment_count
        b.end += 1
        count += 1
        r.seen -= min(r.seen, taken)
        r.seen_lists -= min(r.seen_lists, <uint32_t>1)
        position += taken
        if position >= self.size:
            position -= self.size
            r.available_flags ^= TURN
        r.next_available = position
    self.in_flight_count += count
    return count


# --- used descriptors ------------------------------------------------------------------------------------

cdef void packed_ring_push(ring *self, const used_element *elements, uint32_t count) noexcept nogil:
    cdef packed_ring *r = <packed_ring *>self
    cdef uint32_t position = r.next_used
    cdef uint32_t unpublished = r.unpublished
    cdef uint32_t i, id, descriptors
    cdef uint64_t word
    for i in range(count):
        id = elements[i].id
        word = r.used_flags | (DESCRIPTOR_F_WRITE if elements[i].length else 0)
        word = word << 48 | <uint64_t>id << 32 | elements[i].length
        if unpublished == 0:
            r.first_position, r.first_word = position, word
        else:
            # Relaxed: the driver looks at it only after the first one.
            store_relaxed_u64(second_word(&r.descriptors[position]), word)
        descriptors = self.in_flight[id]
        self.in_flight[id] = 0
        if r.kept != NULL:
            release_kept(r, id, descriptors)
        unpublished += descriptors
        r.descriptors_in_flight -= descriptors
        position += descriptors
        if position >= self.size:
            position -= self.size
            r.used_flags ^= TURN
    r.next_used = position
    r.unpublished = unpublished
    self.in_flight_count -= count


cdef bint packed_ring_publish(ring *self) noexcept nogil:
    """See ring_publish (2.8.10)."""
    cdef packed_ring *r = <packed_ring *>self
    cdef int32_t end = r.next_used
    cdef int32_t count = r.unpublished
    cdef int32_t event
    cdef uint32_t wish
    if count == 0:
        return False
    # Release: the frames in the buffers and all later used descriptors are visible before the first one,
    # with its id, length and flags in one word; pairs with the driver's read barrier after it has seen the
    # flags. This one store publishes the burst: the driver goes on to a descriptor only from the one before.
    store_release_u64(second_word(&r.descriptors[r.first_position]), r.first_word)
    r.unpublished = 0
    # Full fence: the used descriptor is visible before we read whether the driver wants a call; pairs with
    # the driver's full barrier between asking for calls and looking at the descriptor once more (2.8.22).
    fence_seq_cst()
    wish = load_relaxed_u32(r.driver_event)
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
        r.common.publish = packed_ring_publish
        r.common.enable_notifications = packed_ring_enable_notifications
        r.common.disable_notifications = packed_ring_disable_notifications
        r.common.waiting = packed_ring_waiting
        r.common.read_again = packed_ring_read_again

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
