"""The driver's side of one virtqueue, in C: rings and buffers, no policy (virtio 1.3, 2.7 and 2.8).

The buffers of a ring lie in one area, `spacing` bytes from one to the next. Each is a stream of bytes,
first the virtio_net_hdr and then the frame, that is cut into pieces; each piece is a descriptor. Buffer
`b` always uses the same descriptors: those from ``b * chain_descriptors`` on, or one that refers to an
indirect table of its own. Of a packed ring, a buffer's number is its id.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy, memset
from posix.unistd cimport read, write

from guestwire.datapath.abi cimport (
    AVAILABLE_F_NO_INTERRUPT,
    DESCRIPTOR_F_AVAIL,
    DESCRIPTOR_F_INDIRECT,
    DESCRIPTOR_F_NEXT,
    DESCRIPTOR_F_USED,
    DESCRIPTOR_F_WRITE,
    RING_EVENT_FLAGS_DESC,
    RING_EVENT_FLAGS_DISABLE,
    RING_EVENT_FLAGS_ENABLE,
    USED_F_NO_NOTIFY,
    packed_descriptor,
    split_available,
    split_descriptor,
    split_used,
)
from guestwire.datapath.atomics cimport (
    fence_seq_cst,
    load_acquire_u16,
    load_acquire_u64,
    load_relaxed_u16,
    load_relaxed_u32,
    store_relaxed_u16,
    store_relaxed_u32,
    store_relaxed_u64,
    store_release_u16,
    store_release_u64,
)

cdef enum:
    CANARY = 0xA5               # fills what nobody may write
    TURN = DESCRIPTOR_F_AVAIL | DESCRIPTOR_F_USED
    WRAP = 1 << 15              # of a position with its wrap counter

# What a device can do wrong on a ring.
cdef enum device_fault:
    DEVICE_OK
    USED_INDEX                  # more used entries than the device has buffers
    USED_ID                     # the id of a used entry is no buffer that the device has
    USED_ORDER                  # not the order in which buffers were made available (VIRTIO_F_IN_ORDER)
    USED_LENGTH                 # more bytes written than there is room, or any to a transmit buffer
    NET_HEADER                  # a virtio_net_hdr missing, cut, impossible, or not as negotiated
    NUM_BUFFERS                 # num_buffers is not what the rules or the used ring say
    BUFFER_NOT_FULL             # a frame goes on in the next buffer before one is full
    SENT_CHANGED                # a transmit buffer's bytes are not what was sent
    WRITTEN_BEYOND              # a receive buffer was written behind what the device says it wrote

cdef struct piece:
    uint32_t offset             # in the buffer's share of the area
    uint32_t length

cdef struct driver_ring:
    # Set when the ring is made, then only read.
    split_descriptor *descriptors
    split_available *available
    split_used *used
    bint packed                 # VIRTIO_F_RING_PACKED; then these instead:
    packed_descriptor *list
    uint32_t *driver_event
    const uint32_t *device_event
    bint in_order               # VIRTIO_F_IN_ORDER
    uint16_t size
    uint16_t mask
    uint16_t direction          # DESCRIPTOR_F_WRITE for a receive ring, 0 for a transmit ring
    bint event_index            # VIRTIO_F_EVENT_IDX
    int kick_fd
    int call_fd
    # Where the buffers lie.
    uint8_t *area
    uint64_t area_address       # guest address
    uint32_t spacing
    uint32_t capacity           # bytes of all pieces of a buffer
    uint16_t header_size        # of virtio_net_hdr
    uint16_t buffer_count
    uint32_t piece_count
    piece *pieces
    split_descriptor *tables    # the indirect tables, one a buffer; NULL: direct chains
    uint64_t tables_address
    uint16_t chain_descriptors  # that a buffer takes from the descriptor table
    bint contiguous             # header and frame are each one piece of memory, and then at:
    uint32_t header_offset
    uint32_t frame_offset
    bint verify_unwritten       # receive buffers are painted, and looked at behind what was written
    # The driver's own state.
    uint16_t next_available     # where the next available entry goes
    uint16_t published          # the available index the device can see
    uint16_t next_used          # the next used entry to read
    uint16_t silenced_at        # the used index at which calls were last declined
    uint16_t available_flags    # packed: AVAIL and USED of what is made available at next_available
    uint16_t used_flags         # packed: AVAIL and USED of what is used at next_used
    uint16_t first_position     # packed: of the first descriptor that the device does not see yet
    uint64_t first_word         # packed: its length, id and flags
    uint32_t unpublished        # packed: descriptors from there on
    uint16_t *descriptors_of    # packed: by buffer, in the ring
    uint16_t *table_entries     # packed: by buffer, in its indirect table
    uint16_t *offered           # buffers in the order in which they were made available, used as a ring
    uint32_t next_offered
    uint32_t next_returned
    uint16_t free_count
    uint16_t *free              # a stack of buffers
    uint8_t *in_flight          # by buffer
    uint32_t *described         # by buffer: bytes that its descriptors cover
    uint64_t *sequence          # by buffer: of the stream frame in it
    uint64_t kicks
    uint64_t calls


cdef inline uint16_t ring_in_flight(const driver_ring *r) noexcept nogil:
    """Return how many buffers are the device's."""
    return r.buffer_count - r.free_count


cdef inline uint64_t *second_word(const driver_ring *r, uint32_t position) noexcept nogil:
    """Return where the length, id and flags of a packed ring's descriptor are."""
    return <uint64_t *>&r.list[position] + 1


cdef inline bint packed_publish(driver_ring *r) noexcept nogil:
    """ring_publish of a packed ring (2.8.21)."""
    cdef int end = r.next_available
    cdef int count = r.unpublished
    cdef int event
    cdef uint32_t wish
    if count == 0:
        return False
    # Release: all else is visible before the flags of the first descriptor; pairs with the device's acquire
    # of them.
    store_release_u64(second_word(r, r.first_position), r.first_word)
    r.unpublished = 0
    # Full fence: as in ring_publish; pairs with the device's between asking for kicks and looking once more.
    fence_seq_cst()
    wish = load_relaxed_u32(r.device_event)
    if not r.event_index or wish >> 16 & 3 != RING_EVENT_FLAGS_DESC:
        return wish >> 16 & 3 != RING_EVENT_FLAGS_DISABLE
    event = wish & ~WRAP & 0xFFFF
    if (wish & WRAP != 0) != (r.available_flags == DESCRIPTOR_F_AVAIL):
        event -= r.size
    return end - count <= event < end


cdef inline bint ring_publish(driver_ring *r) noexcept nogil:
    """Let the device see what was offered; return whether it wants a kick for that (2.7.13.4)."""
    cdef uint16_t old = r.published
    cdef uint16_t event
    if r.packed:
        return packed_publish(r)
    if r.next_available == old:
        return False
    # Release: descriptors, entries and frames are visible before the index that announces them; pairs
    # with the device's acquire of the index (2.7.13.3.1).
    store_release_u16(&r.available.index, r.next_available)
    r.published = r.next_available
    # Full fence: the index is visible before we read whether the device wants a kick; pairs with the
    # device's full fence between asking for kicks and looking at the index once more (2.7.13.4.1).
    fence_seq_cst()
    if r.event_index:
        event = load_relaxed_u16(<const uint16_t *>&r.used.ring[r.size])
        return <uint16_t>(r.published - event - 1) < <uint16_t>(r.published - old)
    return not load_relaxed_u16(&r.used.flags) & USED_F_NO_NOTIFY


cdef inline void ring_kick(driver_ring *r) noexcept nogil:
    """Notify the device, wanted or not."""
    cdef uint64_t one = 1
    if r.kick_fd >= 0:
        # A full eventfd counter (EAGAIN) means that a kick is pending: nothing is lost.
        write(r.kick_fd, &one, sizeof(one))
        r.kicks += 1


cdef inline uint16_t packed_used(const driver_ring *r) noexcept nogil:
    """ring_used of a packed ring; an id that cannot be counts, and ends it."""
    cdef uint32_t position = r.next_used
    cdef uint16_t flags = r.used_flags
    cdef uint16_t count = 0
    cdef uint64_t word
    cdef uint16_t id
    while count < ring_in_flight(r):
        # Acquire: id and frames are read after the flags; pairs with the device's release of the first of
        # several used descriptors, and orders the later ones behind it.
        word = load_acquire_u64(second_word(r, position))
        if <uint16_t>(word >> 48) & TURN != flags:
            break
        count += 1
        id = <uint16_t>(word >> 32)
        if id >= r.buffer_count or not r.in_flight[id]:
            break
        position += r.descriptors_of[id]
        if position >= r.size:
            position -= r.size
            flags ^= TURN
    return count


cdef inline uint16_t ring_used(const driver_ring *r) noexcept nogil:
    """Return how many used entries wait to be read."""
    if r.packed:
        return packed_used(r)
    # Acquire: elements and frames are read after the index that announces them; pairs with the
    # device's release of the index (2.7.14).
    return <uint16_t>(load_acquire_u16(&r.used.index) - r.next_used)


cdef inline uint32_t ring_read_used(const driver_ring *r, uint32_t *length) noexcept nogil:
    """Read the next used entry; return which buffer it names, or a number that no buffer has."""
    cdef uint16_t position
    cdef uint32_t id
    cdef uint64_t word
    if r.packed:
        word = load_acquire_u64(second_word(r, r.next_used))
        length[0] = <uint32_t>word if word >> 48 & DESCRIPTOR_F_WRITE else 0
        return <uint16_t>(word >> 32)
    position = r.next_used & r.mask
    id = load_relaxed_u32(&r.used.ring[position].id)
    length[0] = load_relaxed_u32(&r.used.ring[position].length)
    return 0xFFFFFFFF if id % r.chain_descriptors else id // r.chain_descriptors


cdef inline device_fault ring_take(
    driver_ring *r, uint16_t *buffer, uint32_t *length
) noexcept nogil:
    """Take the next used entry, which ring_used has announced: a buffer, and the bytes written to it.

    The buffer is on top of the free ones then.
    """
    cdef uint32_t id = ring_read_used(r, length)
    buffer[0] = id
    if ring_in_flight(r) == 0 or id >= r.buffer_count or not r.in_flight[id]:
        return USED_ID
    if r.in_order and r.offered[r.next_returned % r.buffer_count] != id:
        return USED_ORDER
    if length[0] > (r.capacity if r.direction else 0):
        return USED_LENGTH
    r.in_flight[buffer[0]] = 0
    r.free[r.free_count] = buffer[0]
    r.free_count += 1
    r.next_returned += 1
    if r.packed:
        r.next_used += r.descriptors_of[id]
        if r.next_used >= r.size:
            r.next_used -= r.size
            r.used_flags ^= TURN
    else:
        r.next_used += 1
    return DEVICE_OK


cdef inline void ring_decline_calls(driver_ring *r) noexcept nogil:
    """Tell the device that we poll (2.7.7)."""
    if r.packed:
        if load_relaxed_u32(r.driver_event) >> 16 != RING_EVENT_FLAGS_DISABLE:
            store_relaxed_u32(r.driver_event, RING_EVENT_FLAGS_DISABLE << 16)
    elif not r.event_index:
        store_relaxed_u16(&r.available.flags, AVAILABLE_F_NO_INTERRUPT)
    elif <uint16_t>(r.next_used - r.silenced_at) >= 0x4000:
        # One behind: the device reaches this entry only after 65,535 others, and by then we have moved
        # it on. Rarely, because the device reads the cache line at every publication.
        store_relaxed_u16(&r.available.ring[r.size], r.next_used - 1)
        r.silenced_at = r.next_used


cdef inline uint16_t ring_request_call(driver_ring *r) noexcept nogil:
    """Ask for a call at the next used buffer; return how many are there already."""
    cdef uint32_t wish = RING_EVENT_FLAGS_ENABLE << 16
    if r.packed:
        if r.event_index:
            wish = RING_EVENT_FLAGS_DESC << 16 | r.next_used | (WRAP if r.used_flags else 0)
        store_relaxed_u32(r.driver_event, wish)
    elif r.event_index:
        store_relaxed_u16(&r.available.ring[r.size], r.next_used)
        r.silenced_at = r.next_used - 0x4000
    else:
        store_relaxed_u16(&r.available.flags, 0)
    # Full fence: the wish is visible before we look once more; pairs with the device's full fence
    # between storing the used index and reading used_event or flags (2.7.14).
    fence_seq_cst()
    return ring_used(r)


cdef inline void ring_take_call(driver_ring *r) noexcept nogil:
    """Reset the call eventfd, if it was signalled."""
    cdef uint64_t count
    if r.call_fd >= 0 and read(r.call_fd, &count, sizeof(count)) == sizeof(count):
        r.calls += 1


cdef inline uint8_t *buffer_at(const driver_ring *r, uint16_t buffer) noexcept nogil:
    """Return where a buffer's share of the area begins."""
    return r.area + <uint64_t>buffer * r.spacing


cdef inline void buffer_describe(driver_ring *r, uint16_t buffer, uint32_t length) noexcept nogil:
    """Make a buffer's descriptors cover the first `length` bytes of its stream."""
    cdef uint64_t address = r.area_address + <uint64_t>buffer * r.spacing
    cdef uint32_t head = <uint32_t>buffer * r.chain_descriptors
    cdef uint32_t base = 0 if r.tables != NULL else head
    cdef split_descriptor *d = NULL
    cdef uint32_t count = 0
    cdef uint32_t left = length
    cdef uint32_t part
    if r.tables != NULL:
        d = &r.tables[<uint64_t>buffer * r.piece_count]
    elif not r.packed:
        d = &r.descriptors[head]
    r.described[buffer] = length
    if r.packed and r.tables == NULL:
        return                  # packed_offer writes them, where the ring has come to
    while left:
        part = min(left, r.pieces[count].length)
        left -= part
        d[count].address = address + r.pieces[count].offset
        d[count].length = part
        if r.packed:
            (<packed_descriptor *>&d[count]).flags = r.direction
            count += 1
            continue
        d[count].flags = r.direction | (DESCRIPTOR_F_NEXT if left else 0)
        d[count].next = base + count + 1 if left else 0
        count += 1
    if r.packed:
        r.table_entries[buffer] = count
    elif r.tables != NULL:
        r.descriptors[head].address = (
            r.tables_address + <uint64_t>buffer * r.piece_count * sizeof(split_descriptor))
        r.descriptors[head].length = count * sizeof(split_descriptor)
        r.descriptors[head].flags = DESCRIPTOR_F_INDIRECT
        r.descriptors[head].next = 0


cdef inline void packed_put(
    driver_ring *r, uint64_t address, uint32_t length, uint16_t id, uint16_t flags
) noexcept nogil:
    """Write the next descriptor; the first that is not published keeps its flags until it is."""
    cdef uint16_t position = r.next_available
    cdef uint64_t word = <uint64_t>(flags | r.available_flags) << 48 | <uint64_t>id << 32 | length
    store_relaxed_u64(<uint64_t *>&r.list[position], address)
    if r.unpublished == 0:
        r.first_position, r.first_word = position, word
    else:
        store_relaxed_u64(second_word(r, position), word)
    r.unpublished += 1
    r.next_available = position + 1
    if r.next_available == r.size:
        r.next_available = 0
        r.available_flags ^= TURN


cdef inline void packed_offer(driver_ring *r, uint16_t buffer) noexcept nogil:
    """Write the list of a buffer that was described."""
    cdef uint64_t address = r.area_address + <uint64_t>buffer * r.spacing
    cdef uint32_t left = r.described[buffer]
    cdef uint32_t count = 0
    cdef uint32_t part
    if r.tables != NULL:
        packed_put(
            r, r.tables_address + <uint64_t>buffer * r.piece_count * sizeof(packed_descriptor),
            r.table_entries[buffer] * sizeof(packed_descriptor), buffer, DESCRIPTOR_F_INDIRECT)
        count = 1
        left = 0
    while left:
        part = min(left, r.pieces[count].length)
        left -= part
        packed_put(
            r, address + r.pieces[count].offset, part, buffer,
            r.direction | (DESCRIPTOR_F_NEXT if left else 0))
        count += 1
    r.descriptors_of[buffer] = count


cdef inline void buffer_offer(driver_ring *r, uint16_t buffer, uint32_t length) noexcept nogil:
    """Make a buffer available with `length` bytes of its stream; seen after ring_publish."""
    if r.described[buffer] != length:
        buffer_describe(r, buffer, length)
    r.offered[r.next_offered % r.buffer_count] = buffer
    r.next_offered += 1
    r.in_flight[buffer] = 1
    if r.packed:
        packed_offer(r, buffer)
        return
    store_relaxed_u16(&r.available.ring[r.next_available & r.mask], buffer * r.chain_descriptors)
    r.next_available += 1


cdef inline void buffer_write(
    driver_ring *r, uint16_t buffer, uint32_t position, const uint8_t *data, uint32_t length
) noexcept nogil:
    """Copy `length` bytes to a position of a buffer's stream, over all its pieces."""
    cdef uint32_t i = 0
    cdef uint32_t part
    while length:
        if position < r.pieces[i].length:
            part = min(length, r.pieces[i].length - position)
            memcpy(buffer_at(r, buffer) + r.pieces[i].offset + position, data, part)
            data += part
            length -= part
            position += part
        position -= r.pieces[i].length
        i += 1


cdef inline bint is_painted(const uint8_t *at, uint64_t length) noexcept nogil:
    return length == 0 or (at[0] == CANARY and memcmp(at, at + 1, length - 1) == 0)


cdef inline bint is_unwritten(const driver_ring *r, uint16_t buffer, uint32_t position) noexcept nogil:
    """Whether a buffer is painted from a position of its stream on."""
    cdef uint32_t i
    cdef uint32_t skipped
    for i in range(r.piece_count):
        skipped = min(position, r.pieces[i].length)
        position -= skipped
        if not is_painted(buffer_at(r, buffer) + r.pieces[i].offset + skipped,
                          r.pieces[i].length - skipped):
            return False
    return True


cdef inline void buffer_paint(driver_ring *r, uint16_t buffer) noexcept nogil:
    cdef uint32_t i
    for i in range(r.piece_count):
        memset(buffer_at(r, buffer) + r.pieces[i].offset, CANARY, r.pieces[i].length)


cdef inline void ring_post(driver_ring *r, uint16_t count) noexcept nogil:
    """Make the upper `count` free receive buffers available, in the order in which they became free.

    What was a header is spoilt, so that it shows if the device does not write it.
    """
    cdef uint8_t spoilt[16]
    cdef uint16_t i
    memset(spoilt, 0xFF, r.header_size)
    r.free_count -= count
    for i in range(count):
        if r.verify_unwritten:
            buffer_paint(r, r.free[r.free_count + i])
        if r.contiguous and r.header_size == 12:
            memcpy(buffer_at(r, r.free[r.free_count + i]) + r.header_offset, spoilt, 12)
        else:
            buffer_write(r, r.free[r.free_count + i], 0, spoilt, r.header_size)
        buffer_offer(r, r.free[r.free_count + i], r.capacity)
    if ring_publish(r):
        ring_kick(r)


cdef inline void buffer_read(
    const driver_ring *r, uint16_t buffer, uint32_t position, uint8_t *data, uint32_t length
) noexcept nogil:
    """Copy `length` bytes from a position of a buffer's stream, over all its pieces."""
    cdef uint32_t i = 0
    cdef uint32_t part
    while length:
        if position < r.pieces[i].length:
            part = min(length, r.pieces[i].length - position)
            memcpy(data, buffer_at(r, buffer) + r.pieces[i].offset + position, part)
            data += part
            length -= part
            position += part
        position -= r.pieces[i].length
        i += 1


cdef class DriverRing:
    cdef driver_ring ring
    cdef readonly object raw            # None of a packed ring
    cdef object parts
    cdef uint8_t[::1] area
    cdef uint8_t[::1] tables
    cdef readonly uint64_t features

    cdef int _check_alive(self) except -1
    cdef int _check_painted(self, uint64_t start, uint64_t end) except -1
