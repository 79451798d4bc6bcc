# cython: language_level=3
"""Frames over several buffers; see frames.pxd."""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memmove

from guestwire.datapath.split_ring cimport BURST_CHAINS


cdef uint32_t frame_pieces_walk(
    const pair_context *pair, const burst *b, const chain *c, piece *pieces, uint32_t most
) noexcept nogil:
    cdef uint32_t skip = pair.header_size
    cdef uint32_t count = 0
    cdef uint32_t i, length
    for i in range(c.first_segment, c.first_segment + c.segment_count):
        length = b.segments[i].length
        if skip >= length:
            skip -= length
            continue
        if count < most:
            pieces[count].data = pair.window.base + b.segments[i].offset + skip
            pieces[count].length = length - skip
        skip = 0
        count += 1
    return count


cdef void fill_chain(
    const pair_context *pair, const burst *b, const chain *c, uint32_t skip,
    const uint8_t *data, uint32_t length
) noexcept nogil:
    """Copy `length` bytes into a receive chain, from its byte `skip` on; the caller made sure they fit."""
    cdef uint32_t i, room, part
    for i in range(c.first_segment, c.first_segment + c.segment_count):
        room = b.segments[i].length
        if skip >= room:
            skip -= room
            continue
        part = min(room - skip, length)
        memmove(pair.window.base + b.segments[i].offset + skip, data, part)
        data += part
        length -= part
        skip = 0
        if length == 0:
            return


cdef void fill_header(
    const pair_context *pair, const burst *b, const chain *c, uint16_t num_buffers
) noexcept nogil:
    cdef uint8_t header[12]
    write_net_header(header, pair.header_size, num_buffers)
    fill_chain(pair, b, c, 0, header, pair.header_size)


cdef int buffers_for(const pair_context *pair, uint32_t total) noexcept nogil:
    """How many of the waiting receive chains a frame of `total` bytes with its header takes."""
    cdef const burst *b = pair.buffers
    cdef uint64_t room = 0
    cdef uint32_t i
    if b.first == b.end:
        return DELIVER_LATER
    if not pair.mergeable:
        return 1 if b.chains[b.first].length >= total else DELIVER_NEVER
    if b.chains[b.first].length < pair.header_size:
        return DELIVER_NEVER
    for i in range(b.first, b.end):
        room += b.chains[i].length
        if room >= total:
            return i - b.first + 1
    return DELIVER_NEVER if b.end - b.first == BURST_CHAINS else DELIVER_LATER


cdef int deliver_scattered(
    pair_context *pair, const piece *pieces, uint32_t count, uint32_t length, used_element *done
) noexcept nogil:
    cdef burst *b = pair.buffers
    cdef uint32_t total = pair.header_size + length
    cdef int chains = buffers_for(pair, total)
    cdef uint32_t i, filled, part, at
    cdef int k
    cdef chain *c
    if chains <= 0:
        return chains
    fill_header(pair, b, &b.chains[b.first], chains)
    i = 0       # the piece being copied,
    at = 0      # and how much of it is
    filled = pair.header_size
    for k in range(chains):
        c = &b.chains[b.first + k]
        while i < count and filled < c.length:
            part = min(c.length - filled, pieces[i].length - at)
            fill_chain(pair, b, c, filled, pieces[i].data + at, part)
            filled += part
            at += part
            if at == pieces[i].length:
                i += 1
                at = 0
        done[k].id = c.head
        done[k].length = filled
        filled = 0
    b.first += chains
    return chains
