"""The driver's side of one split virtqueue, in C: rings and buffers, no policy (virtio 1.3, 2.7).

The buffers of a ring lie in one area, `spacing` bytes from one to the next. Each is a stream of bytes,
first the virtio_net_hdr and then the frame, that is cut into pieces; each piece is a descriptor. Buffer
`b` always uses the same descriptors: those from ``b * chain_descriptors`` on, or one that refers to an
indirect table of its own.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy, memset
from posix.unistd cimport read, write

from guestwire.datapath.abi cimport (
    AVAILABLE_F_NO_INTERRUPT,
    DESCRIPTOR_F_INDIRECT,
    DESCRIPTOR_F_NEXT,
    USED_F_NO_NOTIFY,
    split_available,
    split_descriptor,
    split_used,
)
from guestwire.datapath.atomics cimport (
    fence_seq_cst,
    load_acquire_u16,
    load_relaxed_u16,
    load_relaxed_u32,
    store_relaxed_u16,
    store_release_u16,
)

cdef enum:
    CANARY = 0xA5               # fills what nobody may write

# What a device can do wrong on a ring.
cdef enum device_fault:
    DEVICE_OK
    USED_INDEX                  # more used entries than the device has buffers
    USED_ID                     # the id of a used entry is no buffer that the device has
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


cdef inline bint ring_publish(driver_ring *r) noexcept nogil:
    """Let the device see what was offered; return whether it wants a kick for that (2.7.13.4)."""
    cdef uint16_t old = r.published
    cdef uint16_t event
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


cdef inline uint16_t ring_used(const driver_ring *r) noexcept nogil:
    """Return how many used entries wait to be read."""
    # Acquire: elements and frames are read after the index that announces them; pairs with the
    # device's release of the index (2.7.14).
    return <uint16_t>(load_acquire_u16(&r.used.index) - r.next_used)


cdef inline device_fault ring_take(
    driver_ring *r, uint16_t *buffer, uint32_t *length
) noexcept nogil:
    """Take the next used entry, which ring_used has announced: a buffer, and the bytes written to it.

    The buffer is on top of the free ones then.
    """
    cdef uint16_t position = r.next_used & r.mask
    cdef uint32_t id = load_relaxed_u32(&r.used.ring[position].id)
    length[0] = load_relaxed_u32(&r.used.ring[position].length)
    buffer[0] = id // r.chain_descriptors
    if (ring_in_flight(r) == 0 or id % r.chain_descriptors
            or id // r.chain_descriptors >= r.buffer_count or not r.in_flight[buffer[0]]):
        return USED_ID
    if length[0] > (r.capacity if r.direction else 0):
        return USED_LENGTH
    r.in_flight[buffer[0]] = 0
    r.free[r.free_count] = buffer[0]
    r.free_count += 1
    r.next_used += 1
    return DEVICE_OK


cdef inline void ring_decline_calls(driver_ring *r) noexcept nogil:
    """Tell the device that we poll (2.7.7)."""
    if not r.event_index:
        store_relaxed_u16(&r.available.flags, AVAILABLE_F_NO_INTERRUPT)
    elif <uint16_t>(r.next_used - r.silenced_at) >= 0x4000:
        # One behind: the device reaches this entry only after 65,535 others, and by then we have moved
        # it on. Rarely, because the device reads the cache line at every publication.
        store_relaxed_u16(&r.available.ring[r.size], r.next_used - 1)
        r.silenced_at = r.next_used


cdef inline uint16_t ring_request_call(driver_ring *r) noexcept nogil:
    """Ask for a call at the next used buffer; return how many are there already."""
    if r.event_index:
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
    cdef split_descriptor *d = &r.descriptors[head]
    cdef uint32_t count = 0
    cdef uint32_t left = length
    cdef uint32_t part
    if r.tables != NULL:
        d = &r.tables[<uint64_t>buffer * r.piece_count]
    while left:
        part = min(left, r.pieces[count].length)
        left -= part
        d[count].address = address + r.pieces[count].offset
        d[count].length = part
        d[count].flags = r.direction | (DESCRIPTOR_F_NEXT if left else 0)
        d[count].next = base + count + 1 if left else 0
        count += 1
    if r.tables != NULL:
        r.descriptors[head].address = (
            r.tables_address + <uint64_t>buffer * r.piece_count * sizeof(split_descriptor))
        r.descriptors[head].length = count * sizeof(split_descriptor)
        r.descriptors[head].flags = DESCRIPTOR_F_INDIRECT
        r.descriptors[head].next = 0
    r.described[buffer] = length


cdef inline void buffer_offer(driver_ring *r, uint16_t buffer, uint32_t length) noexcept nogil:
    """Make a buffer available with `length` bytes of its stream; seen after ring_publish."""
    if r.described[buffer] != length:
        buffer_describe(r, buffer, length)
    store_relaxed_u16(&r.available.ring[r.next_available & r.mask], buffer * r.chain_descriptors)
    r.in_flight[buffer] = 1
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
    cdef readonly object raw
    cdef uint8_t[::1] area
    cdef uint8_t[::1] tables
    cdef readonly uint64_t features

    cdef int _check_alive(self) except -1
    cdef int _check_painted(self, uint64_t start, uint64_t end) except -1
