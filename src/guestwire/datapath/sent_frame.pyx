# cython: language_level=3
"""Frames with offloads on ports that copy; see sent_frame.pxd."""

from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memcpy

from guestwire.datapath.abi cimport (
    VIRTIO_NET_F_GUEST_CSUM,
    VIRTIO_NET_F_GUEST_ECN,
    VIRTIO_NET_F_GUEST_TSO4,
    VIRTIO_NET_F_GUEST_TSO6,
    VIRTIO_NET_F_GUEST_USO4,
    VIRTIO_NET_F_GUEST_USO6,
    VIRTIO_NET_HDR_GSO_ECN,
    VIRTIO_NET_HDR_GSO_UDP_L4,
    net_header,
)
from guestwire.datapath.counters cimport DROP_BAD_OFFLOAD
from guestwire.datapath.frames cimport GOOD_FRAME, frame_pieces, piece
from guestwire.datapath.packet_headers cimport (
    FORGED,
    OF_TRANSPORT,
    checksum_place,
    place_of_checksum,
)
from guestwire.datapath.port cimport pair_context
from guestwire.datapath.segmentation cimport (
    MOST_HEADER,
    segmenter,
    segmenter_begin,
    segmenter_done,
    segmenter_payload,
    segmenter_write,
)
from guestwire.datapath.ring cimport BURST_SEGMENTS, burst, chain


cdef uint64_t features_to_receive(const net_header *header, bint ipv4) noexcept nogil:
    """Return the features that a guest accepts before it gets a frame with this header (5.1.6.4.1)."""
    cdef uint64_t needed = VIRTIO_NET_F_GUEST_CSUM
    if header.gso_type == 0:
        return needed
    if header.gso_type == VIRTIO_NET_HDR_GSO_UDP_L4:
        return needed | (VIRTIO_NET_F_GUEST_USO4 if ipv4 else VIRTIO_NET_F_GUEST_USO6)
    if header.gso_type & VIRTIO_NET_HDR_GSO_ECN:
        needed |= VIRTIO_NET_F_GUEST_ECN
    return needed | (VIRTIO_NET_F_GUEST_TSO4 if ipv4 else VIRTIO_NET_F_GUEST_TSO6)


cdef void put_headers(sent_frame *f) noexcept nogil:
    """Have the frame begin with the copy of its headers; its payload is where it is."""
    cdef segmenter *s = &f.segmenter
    f.pieces[0].data = s.header
    f.pieces[0].length = s.header_length
    f.piece_count = 1 + s.piece_count
    memcpy(&f.pieces[1], s.pieces, s.piece_count * sizeof(piece))


cdef int sent_frame_begin(
    sent_frame *f, pair_context *pair, const burst *frames, const chain *c, const net_header *header,
    uint64_t accepted
) noexcept nogil:
    cdef segmenter *s = &f.segmenter
    cdef checksum_place place = OF_TRANSPORT
    cdef int reason
    f.header = header[0]
    f.large = f.finishing = False
    f.length = f.wire_length = c.length - pair.header_size
    f.piece_count = frame_pieces(pair, frames, c, f.pieces, BURST_SEGMENTS)
    if header.flags == 0 and header.gso_type == 0:
        return GOOD_FRAME
    reason = segmenter_begin(s, header, f.pieces, f.piece_count, f.length)
    if reason != GOOD_FRAME:
        return reason
    f.large = header.gso_type != 0
    if not f.large:
        place = place_of_checksum(
            s.header, min(f.length, <uint32_t>MOST_HEADER), f.length, header.checksum_start,
            header.checksum_offset)
    if place == FORGED:
        return DROP_BAD_OFFLOAD
    if place == OF_TRANSPORT and features_to_receive(header, s.ipv4) & ~accepted == 0:
        # What was looked at is what is passed on.
        put_headers(f)
        return GOOD_FRAME
    f.finishing = True
    f.header.flags = f.header.gso_type = 0
    sent_frame_next(f, pair)
    return GOOD_FRAME


cdef bint sent_frame_next(sent_frame *f, pair_context *pair) noexcept nogil:
    cdef uint32_t count, length, headers
    if not f.finishing or segmenter_done(&f.segmenter):
        return False
    count = segmenter_payload(&f.segmenter, &f.pieces[1], &length)
    headers = segmenter_write(&f.segmenter, f.headers, &f.pieces[1], count, length)
    f.pieces[0].data = f.headers
    f.pieces[0].length = headers
    f.piece_count = 1 + count
    f.wire_length = headers + length
    pair.counters.tx.segments += f.large
    pair.counters.tx.checksums += 1
    return True
