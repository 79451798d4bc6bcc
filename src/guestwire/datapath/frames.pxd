"""Frames in guest buffers: the pieces of one that is sent, the placing of one that is received.

A frame in guest memory is a virtio_net_hdr and then the Ethernet frame, over any number of buffers in any
layout (virtio 1.3, 2.7.4 and 5.1.6). The common layout, all in one buffer, is handled here, inline; the
rest is in frames.pyx.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from guestwire.datapath.abi cimport NET_HEADER, VIRTIO_NET_HDR_F_NEEDS_CSUM, net_header, used_element
from guestwire.datapath.branches cimport unlikely
from guestwire.datapath.counters cimport DROP_TOO_LONG, DROP_TOO_SHORT
from guestwire.datapath.port cimport pair_context
from guestwire.datapath.ring cimport (
    CHAIN_HEAD_SHIFT,
    ONE_BUFFER,
    burst,
    chain,
    chain_word,
    put_element,
)

cdef extern from "copying.h" nogil:
    void copy_frame(uint8_t *to, const uint8_t *data, uint32_t length)

cdef enum:
    ETHERNET_HEADER = 14
    HEADER_FIELDS = 10          # bytes of a virtio_net_hdr before num_buffers
    ADDRESSES = 12              # bytes of the two addresses at the beginning of a frame
    LONGEST_FRAME = 65550       # without offloads, on a port that copies: 64 KiB and an Ethernet header
    LONGEST_GSO_FRAME = 65557   # 65,535 bytes of IP behind an Ethernet header and two VLAN tags
    GOOD_FRAME = -1
    DELIVER_LATER = 0           # not enough buffers yet
    DELIVER_NEVER = -1          # no buffers this guest can offer hold the frame

cdef struct piece:
    const uint8_t *data
    uint32_t length

# The first bytes of a frame, in the pieces in which they are read: so nothing waits for a store.
cdef struct frame_addresses:
    uint64_t first              # the destination, and two bytes of the source
    uint32_t last               # the rest of that

cdef inline void write_net_header(uint8_t *at, uint16_t size, uint16_t num_buffers) noexcept nogil:
    """Write a virtio_net_hdr without offloads: all zero but num_buffers (virtio 1.3, 5.1.6).

    One of 12 bytes that is there already, since drivers use their buffers again, is not written: the guest
    has it in its cache, and keeps it. From another core that is worth a quarter at 64 bytes.
    """
    cdef uint64_t first
    cdef uint32_t last
    cdef uint32_t last_wanted = <uint32_t>num_buffers << 16
    memcpy(&first, at, 8)
    if first != 0:
        memset(at, 0, 8)
    if size != NET_HEADER:
        memset(at + 8, 0, 2)
        return
    memcpy(&last, at + 8, 4)
    if last != last_wanted:
        memcpy(at + 8, &last_wanted, 4)

cdef inline bint asks_for_nothing(const uint8_t *header) noexcept nogil:
    """Whether the virtio_net_hdr of a sent frame asks for no offload: its flags and gso_type, read once."""
    cdef uint16_t fields
    memcpy(&fields, header, 2)
    return fields & (0xFF00 | VIRTIO_NET_HDR_F_NEEDS_CSUM) == 0


cdef int check_offload(
    const pair_context *pair, const burst *b, const chain *c, uint32_t most, net_header *header
) noexcept nogil

cdef inline int check_sent_frame(
    const pair_context *pair, const burst *b, const chain *c, uint32_t most, net_header *header
) noexcept nogil:
    """Return GOOD_FRAME if the transmit chain holds a frame that may be sent, else DROP_... .

    Its length is 14 to `most` bytes, or more if the guest asks for segmentation. `header` becomes a copy of
    its virtio_net_hdr, which the guest cannot change: what it asks for was negotiated and lies in the frame.
    Only `flags` and `gso_type` are set if both are 0.
    """
    # They are the first two bytes, and a segment has at least one.
    cdef const uint8_t *flags = pair.window.base + c.offset
    cdef const uint8_t *gso_type = flags + 1
    if c.length < <uint32_t>pair.header_size + ETHERNET_HEADER:
        return DROP_TOO_SHORT
    if c.segment_count > 1 and b.segments[c.first_segment].length == 1:
        gso_type = pair.window.base + b.segments[c.first_segment + 1].offset
    if flags[0] & VIRTIO_NET_HDR_F_NEEDS_CSUM or gso_type[0]:
        return check_offload(pair, b, c, most, header)
    header.flags = header.gso_type = 0
    return GOOD_FRAME if c.length <= pair.header_size + most else DROP_TOO_LONG

cdef uint32_t frame_pieces_walk(
    const pair_context *pair, const burst *b, const chain *c, piece *pieces, uint32_t most
) noexcept nogil

cdef inline uint32_t frame_pieces(
    const pair_context *pair, const burst *b, const chain *c, piece *pieces, uint32_t most
) noexcept nogil:
    """List the pieces of the frame in a transmit chain, behind its virtio_net_hdr.

    Returns their number; more than `most` means that only the first `most` were written.
    """
    if c.segment_count > 1:
        return frame_pieces_walk(pair, b, c, pieces, most)
    pieces[0].data = pair.window.base + c.offset + pair.header_size
    pieces[0].length = c.length - pair.header_size
    return 1


cdef int buffers_for(const pair_context *pair, uint32_t total) noexcept nogil
cdef int deliver_scattered(
    pair_context *pair, const piece *pieces, uint32_t count, uint32_t length, used_element *done
) noexcept nogil

cdef inline int deliver(
    pair_context *pair, const piece *pieces, uint32_t count, uint32_t length, used_element *done
) noexcept nogil:
    """Copy a frame of `length` bytes in `count` pieces into the guest's next receive buffers.

    Returns the number of buffers it took (and of elements in `done`, which needs room for 64),
    DELIVER_LATER or DELIVER_NEVER; then nothing was taken.
    """
    cdef burst *b = pair.buffers
    cdef chain *c = &b.chains[b.first]
    cdef uint8_t *to
    if b.first == b.end:
        return DELIVER_LATER
    if count != 1 or c.segment_count != 1 or c.length < pair.header_size + length:
        return deliver_scattered(pair, pieces, count, length, done)
    to = pair.window.base + c.offset
    write_net_header(to, pair.header_size, 1)
    copy_frame(to + pair.header_size, pieces[0].data, length)
    put_element(done, c.head, pair.header_size + length)
    b.first += 1
    return 1

cdef inline bint has_addresses(const uint8_t *data, const frame_addresses *a) noexcept nogil:
    """Whether a frame has these addresses; each of its bytes is read once."""
    cdef uint64_t first
    cdef uint32_t last
    memcpy(&first, data, 8)
    memcpy(&last, data + 8, 4)
    return first == a.first and last == a.last


cdef inline void put_addresses(uint8_t *to, const frame_addresses *a) noexcept nogil:
    memcpy(to, &a.first, 8)
    memcpy(to + 8, &a.last, 4)


cdef inline uint32_t deliver_run(
    const pair_context *sender, const burst *frames, pair_context *receiver, uint32_t most,
    used_element *sent, used_element *received, uint64_t *octets, const frame_addresses *same
) noexcept nogil:
    """Copy frames from one guest's transmit buffers straight into another's receive buffers: a run of them.

    Those are up to `most` common ones: they lie in one buffer, ask for no offload, and fit into the next
    buffer, each behind a header of NET_HEADER bytes. With `same`, they have these addresses, which are
    written as they were read. Returns how many there were before the first other frame, and their `octets`;
    their buffers are taken, and for each there is an element in `sent` and in `received`.
    """
    # In locals: the frames' bytes might change anything else, for all that the compiler knows.
    cdef const uint8_t *sender_base = sender.window.base
    cdef uint8_t *receiver_base = receiver.window.base
    cdef const chain *from_ = &frames.chains[frames.first]
    cdef const chain *to = &receiver.buffers.chains[receiver.buffers.first]
    cdef frame_addresses known
    cdef uint64_t total = 0
    cdef uint64_t frame, room
    cdef uint32_t i, length
    cdef const uint8_t *data
    cdef uint8_t *place
    octets[0] = 0
    if sender.header_size != NET_HEADER or receiver.header_size != NET_HEADER:
        return 0
    if same != NULL:
        known = same[0]
    most = min(most, frames.end - frames.first, receiver.buffers.end - receiver.buffers.first)
    for i in range(most):
        # Without the count of 1: length and head of a chain of one buffer.
        frame = chain_word(&from_[i]) ^ ONE_BUFFER
        room = chain_word(&to[i]) ^ ONE_BUFFER
        if unlikely((frame | room) >= ONE_BUFFER):
            break
        length = <uint32_t>frame - NET_HEADER
        if unlikely(length - ETHERNET_HEADER > LONGEST_FRAME - ETHERNET_HEADER):
            break
        data = sender_base + from_[i].offset
        if unlikely(<uint32_t>room < <uint32_t>frame or not asks_for_nothing(data)):
            break
        data += NET_HEADER
        if same != NULL and unlikely(not has_addresses(data, &known)):
            break
        place = receiver_base + to[i].offset
        write_net_header(place, NET_HEADER, 1)
        copy_frame(place + NET_HEADER, data, length)
        if same != NULL:
            put_addresses(place + NET_HEADER, &known)
        put_element(&sent[i], frame >> CHAIN_HEAD_SHIFT, 0)
        put_element(&received[i], room >> CHAIN_HEAD_SHIFT, <uint32_t>frame)
        total += length
    else:
        i = most
    receiver.buffers.first += i
    octets[0] = total
    return i

cdef void fill_header(
    const pair_context *pair, const burst *b, const chain *c, uint16_t num_buffers
) noexcept nogil

cdef void fill_chain(
    const pair_context *pair, const burst *b, const chain *c, uint32_t skip,
    const uint8_t *data, uint32_t length
) noexcept nogil
