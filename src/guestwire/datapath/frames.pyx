# cython: language_level=3
"""Frames over several buffers; see frames.pxd."""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memmove, memset

from guestwire.datapath.abi cimport (
    VIRTIO_NET_F_CSUM,
    VIRTIO_NET_F_HOST_ECN,
    VIRTIO_NET_F_HOST_TSO4,
    VIRTIO_NET_F_HOST_TSO6,
    VIRTIO_NET_F_HOST_USO,
    VIRTIO_NET_HDR_GSO_ECN,
    VIRTIO_NET_HDR_GSO_TCPV4,
    VIRTIO_NET_HDR_GSO_TCPV6,
    VIRTIO_NET_HDR_GSO_UDP_L4,
)
from guestwire.datapath.counters cimport DROP_BAD_OFFLOAD, DROP_NOT_NEGOTIATED
from guestwire.datapath.ring cimport BURST_CHAINS, chain_segments, segment


cdef void copy_header(
    const pair_context *pair, const burst *b, const chain *c, net_header *header
) noexcept nogil:
    """Read the virtio_net_hdr of a chain that is long enough for it, once."""
    cdef uint8_t *to = <uint8_t *>header
    cdef uint32_t left = HEADER_FIELDS
    cdef const segment *s = chain_segments(b, c)
    cdef uint32_t part
    while left:
        part = min(s.length, left)
        memcpy(to, pair.window.base + s.offset, part)
        to += part
        left -= part
        s += 1
    header.num_buffers = 0


cdef uint64_t features_needed(const net_header *header) noexcept nogil:
    """Return the features by which a guest may ask for what this header asks; 0 if there are none."""
    cdef uint64_t needed
    if header.gso_type == 0:
        return VIRTIO_NET_F_CSUM
    if header.gso_type == VIRTIO_NET_HDR_GSO_UDP_L4:
        return VIRTIO_NET_F_CSUM | VIRTIO_NET_F_HOST_USO
    needed = VIRTIO_NET_F_CSUM
    if header.gso_type & VIRTIO_NET_HDR_GSO_ECN:
        needed |= VIRTIO_NET_F_HOST_ECN
    if header.gso_type & ~VIRTIO_NET_HDR_GSO_ECN == VIRTIO_NET_HDR_GSO_TCPV4:
        return needed | VIRTIO_NET_F_HOST_TSO4
    if header.gso_type & ~VIRTIO_NET_HDR_GSO_ECN == VIRTIO_NET_HDR_GSO_TCPV6:
        return needed | VIRTIO_NET_F_HOST_TSO6
    return 0


cdef int check_offload(
    const pair_context *pair, const burst *b, const chain *c, uint32_t most, net_header *header
) noexcept nogil:
    """The same for a frame whose header asks for something (virtio 1.3, 5.1.6.2)."""
    cdef uint32_t length = c.length - pair.header_size
    cdef uint64_t needed
    copy_header(pair, b, c, header)
    header.flags &= VIRTIO_NET_HDR_F_NEEDS_CSUM
    if header.flags or header.gso_type:
        needed = features_needed(header)
        if needed == 0 or needed & ~pair.offloads:
            return DROP_NOT_NEGOTIATED
        # Not in the Ethernet header, whose source address may be checked before that is written.
        if header.flags and header.checksum_start < ETHERNET_HEADER:
            return DROP_BAD_OFFLOAD
        if <uint32_t>header.checksum_start + header.checksum_offset + 2 > length:
            return DROP_BAD_OFFLOAD
    if header.gso_type:
        # "If the driver sets gso_type ... it MUST also set VIRTIO_NET_HDR_F_NEEDS_CSUM".
        if not header.flags or header.gso_size == 0 or header.header_length > length:
            return DROP_BAD_OFFLOAD
        most = LONGEST_GSO_FRAME
    return GOOD_FRAME if length <= most else DROP_TOO_LONG


cdef uint32_t frame_pieces_walk(
    const pair_context *pair, const burst *b, const chain *c, piece *pieces, uint32_t most
) noexcept nogil:
    cdef const segment *segments = chain_segments(b, c)
    cdef uint32_t skip = pair.header_size
    cdef uint32_t count = 0
    cdef uint32_t i, length
    for i in range(c.segment_count):
        length = segments[i].length
        if skip >= length:
            skip -= length
            continue
        if count < most:
            pieces[count].data = pair.window.base + segments[i].offset + skip
            pieces[count].length = length - skip
        skip = 0
        count += 1
    return count


cdef void fill_chain(
    const pair_context *pair, const burst *b, const chain *c, uint32_t skip,
    const uint8_t *data, uint32_t length
) noexcept nogil:
    """Copy `length` bytes into a receive chain, from its byte `skip` on; the caller made sure they fit."""
    cdef const segment *segments = chain_segments(b, c)
    cdef uint32_t i, room, part
    for i in range(c.segment_count):
        room = segments[i].length
        if skip >= room:
            skip -= room
            continue
        part = min(room - skip, length)
        memmove(pair.window.base + segments[i].offset + skip, data, part)
        data += part
        length -= part
        skip = 0
        if length == 0:
            return


cdef void fill_header(
    const pair_context *pair, const burst *b, const chain *c, uint16_t num_buffers
) noexcept nogil:
    """Write a virtio_net_hdr without offloads, in whatever buffers it lies."""
    cdef net_header header
    memset(&header, 0, sizeof(header))
    header.num_buffers = num_buffers
    fill_chain(pair, b, c, 0, <const uint8_t *>&header, pair.header_size)


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
    # More than that nobody can have on offer at once.
    return DELIVER_NEVER if b.end - b.first >= min(BURST_CHAINS, pair.rx.size) else DELIVER_LATER


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
