# cython: language_level=3
"""Frames with offloads, turned into frames as they are on a wire (virtio 1.3, 5.1.6.2).

The result is, byte for byte, what Linux makes of the same frame where the device below cannot segment: the
headers are repeated before each part of the payload, with lengths, sequence numbers and checksums of its own.

A checksum begins with what the guest left in its field, the sum of the pseudo-header, corrected by the change
of length. So nothing has to be known about the pseudo-header, whose address may be in a routing header.

The headers are copied from the guest once, and what is checked and repeated is the copy. Its payload is the
guest's to change until it is sent; only its own checksum would be wrong.

The model is guestwire.virtio.segmentation: the same, to be read beside the specifications.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy

from guestwire.datapath.abi cimport (
    VIRTIO_NET_HDR_F_NEEDS_CSUM,
    VIRTIO_NET_HDR_GSO_ECN,
    VIRTIO_NET_HDR_GSO_TCPV4,
    VIRTIO_NET_HDR_GSO_TCPV6,
    VIRTIO_NET_HDR_GSO_UDP_L4,
    net_header,
)
from guestwire.datapath.checksum cimport checksum_fold, checksum_pieces, checksum_sum
from guestwire.datapath.counters cimport DROP_BAD_OFFLOAD
from guestwire.datapath.frames cimport ETHERNET_HEADER, GOOD_FRAME, piece
from guestwire.datapath.packet_headers cimport (
    IPV4_TOTAL_LENGTH,
    IPV6_HEADER,
    IPV6_PAYLOAD_LENGTH,
    PACKET,
    TCP,
    TCP_CHECKSUM,
    UDP,
    UDP_CHECKSUM,
    find_packet,
    get_u16,
    layout,
    ntohs,
)
from guestwire.datapath.ring cimport BURST_SEGMENTS

cdef extern from "<arpa/inet.h>" nogil:
    uint16_t htons(uint16_t value)
    uint32_t htonl(uint32_t value)
    uint32_t ntohl(uint32_t value)

cdef enum:
    # RFC 791, 3.1
    IPV4_IDENTIFICATION = 4
    IPV4_CHECKSUM = 10
    # RFC 9293, 3.1
    TCP_HEADER = 20
    TCP_SEQUENCE = 4
    TCP_DATA_OFFSET = 12
    TCP_FLAGS = 13
    TCP_FIN = 0x01
    TCP_PSH = 0x08
    TCP_CWR = 0x80
    # RFC 768
    UDP_HEADER = 8
    UDP_LENGTH = 4


cdef inline void put_u16(uint8_t *at, uint16_t value) noexcept nogil:
    value = htons(value)
    memcpy(at, &value, 2)


cdef inline void add_to_u32(uint8_t *at, uint32_t number) noexcept nogil:
    cdef uint32_t value
    memcpy(&value, at, 4)
    value = htonl(ntohl(value) + number)
    memcpy(at, &value, 4)


# --- headers -------------------------------------------------------------------------------------------

cdef bint right_protocol(const layout *found, uint8_t gso_type) noexcept nogil:
    if gso_type == VIRTIO_NET_HDR_GSO_UDP_L4:
        return found.protocol == UDP
    gso_type &= ~VIRTIO_NET_HDR_GSO_ECN
    return found.protocol == TCP and gso_type == (
        VIRTIO_NET_HDR_GSO_TCPV4 if found.ipv4 else VIRTIO_NET_HDR_GSO_TCPV6)


cdef uint32_t transport_header(
    const uint8_t *header, uint32_t known, uint32_t length, const layout *found
) noexcept nogil:
    """Return the size of the TCP or UDP header; 0 if it is not whole."""
    cdef uint32_t size = TCP_HEADER if found.protocol == TCP else UDP_HEADER
    if found.transport + size > known:
        return 0
    if found.protocol == TCP:
        size = max(size, <uint32_t>(header[found.transport + TCP_DATA_OFFSET] >> 4) * 4)
        if header[found.transport + TCP_DATA_OFFSET] >> 4 < TCP_HEADER // 4:
            return 0
    elif get_u16(header + found.transport + UDP_LENGTH) != length - found.transport:
        return 0
    return size if found.transport + size <= known else 0


# --- taking apart --------------------------------------------------------------------------------------

cdef void copy_headers(
    segmenter *s, const piece *pieces, uint32_t count, uint32_t known
) noexcept nogil:
    """Copy the first `known` bytes of the frame to the header."""
    cdef uint32_t copied = 0
    cdef uint32_t i = 0
    cdef uint32_t part
    while copied < known and i < count:
        part = min(pieces[i].length, known - copied)
        memcpy(s.header + copied, pieces[i].data, part)
        copied += part
        i += 1


cdef void keep_payload(segmenter *s, const piece *pieces, uint32_t count) noexcept nogil:
    """Keep the pieces of what is behind the header."""
    cdef uint32_t skip = s.header_length
    cdef uint32_t i
    s.first_piece = s.piece_count = 0
    for i in range(count):
        if skip >= pieces[i].length:
            skip -= pieces[i].length
            continue
        s.pieces[s.piece_count].data = pieces[i].data + skip
        s.pieces[s.piece_count].length = pieces[i].length - skip
        s.piece_count += 1
        skip = 0


cdef bint begin_large(segmenter *s, const net_header *h, uint32_t known, uint32_t length) noexcept nogil:
    """Find the headers of a frame that is to be segmented; False if they are not as they should be."""
    cdef layout found
    cdef uint32_t size
    if not h.flags & VIRTIO_NET_HDR_F_NEEDS_CSUM or h.gso_size == 0:
        return False
    if find_packet(s.header, known, length, &found) != PACKET or found.end != length:
        return False
    if not right_protocol(&found, h.gso_type):
        return False
    size = transport_header(s.header, known, length, &found)
    s.tcp = found.protocol == TCP
    if (size == 0 or h.checksum_start != found.transport
            or h.checksum_offset != (TCP_CHECKSUM if s.tcp else UDP_CHECKSUM)):
        return False
    s.network = found.network
    s.ipv4 = found.ipv4
    s.header_length = found.transport + size
    s.segment_size = h.gso_size
    s.segment_count = max(1, (length - s.header_length + h.gso_size - 1) // h.gso_size)
    return True


cdef bint begin_single(segmenter *s, const net_header *h, uint32_t known, uint32_t length) noexcept nogil:
    """Find the checksum field of a frame that is one segment; False if it is too far behind."""
    cdef uint32_t needed = ETHERNET_HEADER
    if h.flags & VIRTIO_NET_HDR_F_NEEDS_CSUM:
        needed = max(needed, <uint32_t>h.checksum_start + h.checksum_offset + 2)
    s.header_length = max(needed, min(length, <uint32_t>SHORT_FRAME))
    s.segment_size = length
    s.segment_count = 1
    return needed <= known


cdef int segmenter_begin(
    segmenter *s, const net_header *h, const piece *pieces, uint32_t count, uint32_t length
) noexcept nogil:
    cdef uint32_t known = min(length, <uint32_t>MOST_HEADER)
    cdef uint64_t partial
    cdef bint good
    if count > BURST_SEGMENTS:
        return DROP_BAD_OFFLOAD
    copy_headers(s, pieces, count, known)
    if h.gso_type:
        good = begin_large(s, h, known, length)
    else:
        good = begin_single(s, h, known, length)
    if not good:
        return DROP_BAD_OFFLOAD
    s.segment = 0
    s.payload_left = length - s.header_length
    s.transport = h.checksum_start
    s.checksum = s.transport + h.checksum_offset
    s.computes = h.flags & VIRTIO_NET_HDR_F_NEEDS_CSUM
    if s.segment_count > 1:
        memcpy(&s.partial, s.header + s.checksum, 2)
        partial = <uint64_t>s.partial + <uint16_t>~htons(length - s.transport)
        s.partial = checksum_fold(partial)
    keep_payload(s, pieces, count)
    return GOOD_FRAME


cdef uint32_t segmenter_payload(const segmenter *s, piece *payload, uint32_t *length) noexcept nogil:
    cdef uint32_t left = min(s.segment_size, s.payload_left)
    cdef uint32_t count = 0
    length[0] = left
    while left:
        payload[count] = s.pieces[s.first_piece + count]
        payload[count].length = min(payload[count].length, left)
        left -= payload[count].length
        count += 1
    return count


cdef inline void go_on(segmenter *s, uint32_t length) noexcept nogil:
    cdef piece *p
    s.segment += 1
    s.payload_left -= length
    while length:
        p = &s.pieces[s.first_piece]
        if length < p.length:
            p.data += length
            p.length -= length
            return
        length -= p.length
        s.first_piece += 1


cdef inline void write_network(const segmenter *s, uint8_t *ip, uint32_t length) noexcept nogil:
    """Finish the IP header of a segment that is `length` bytes from there."""
    cdef uint16_t checksum = 0
    if not s.ipv4:
        put_u16(ip + IPV6_PAYLOAD_LENGTH, length - IPV6_HEADER)
        return
    put_u16(ip + IPV4_TOTAL_LENGTH, length)
    put_u16(ip + IPV4_IDENTIFICATION, get_u16(ip + IPV4_IDENTIFICATION) + s.segment)
    memcpy(ip + IPV4_CHECKSUM, &checksum, 2)
    checksum = ~checksum_fold(checksum_sum(ip, s.transport - s.network))
    memcpy(ip + IPV4_CHECKSUM, &checksum, 2)


cdef inline void write_transport(const segmenter *s, uint8_t *header, uint32_t length) noexcept nogil:
    """Finish the TCP or UDP header of a segment that is `length` bytes from there, but for its checksum."""
    cdef uint16_t partial = checksum_fold(<uint64_t>s.partial + htons(length))
    memcpy(header + s.checksum - s.transport, &partial, 2)
    if not s.tcp:
        put_u16(header + UDP_LENGTH, length)
        return
    add_to_u32(header + TCP_SEQUENCE, s.segment * s.segment_size)
    if s.segment > 0:
        header[TCP_FLAGS] &= ~TCP_CWR
    if s.segment + 1 < s.segment_count:
        header[TCP_FLAGS] &= ~(TCP_FIN | TCP_PSH)


cdef uint32_t segmenter_write(
    segmenter *s, uint8_t *to, const piece *payload, uint32_t count, uint32_t length
) noexcept nogil:
    cdef uint32_t summed
    cdef uint64_t sum
    cdef uint16_t checksum
    memcpy(to, s.header, s.header_length)
    if s.segment_count > 1:
        write_network(s, to + s.network, s.header_length - s.network + length)
        write_transport(s, to + s.transport, s.header_length - s.transport + length)
    if s.computes:
        summed = s.header_length - s.transport
        sum = checksum_sum(to + s.transport, summed) + checksum_pieces(payload, count, summed & 1)
        checksum = ~checksum_fold(sum)
        # Zero says that a UDP datagram has none. Linux knows what it finishes only where it segments.
        if checksum == 0 and (s.segment_count == 1 or not s.tcp):
            checksum = 0xFFFF
        memcpy(to + s.checksum, &checksum, 2)
    go_on(s, length)
    return s.header_length


# --- for tests -----------------------------------------------------------------------------------------

cdef class _Pieces:
    """Pieces of a frame, each in memory of its own, so that a sanitizer sees where it ends."""

    cdef piece *pieces
    cdef uint32_t count
    cdef size_t displacement

    def __cinit__(self, bytes frame not None, lengths, size_t displacement=0):
        cdef const uint8_t *at = frame
        cdef uint8_t *memory
        lengths = [len(frame)] if lengths is None else list(lengths)
        if min(lengths, default=1) < 1 or sum(lengths) != len(frame):
            raise ValueError("the pieces are not the frame")
        self.displacement = displacement
        self.pieces = <piece *>malloc(max(1, len(lengths)) * sizeof(piece))
        if self.pieces == NULL:
            raise MemoryError
        for length in lengths:
            memory = <uint8_t *>malloc(displacement + <uint32_t>length)
            if memory == NULL:
                raise MemoryError
            memcpy(memory + displacement, at, length)
            self.pieces[self.count].data = memory + displacement
            self.pieces[self.count].length = length
            self.count += 1
            at += <uint32_t>length

    def __dealloc__(self):
        cdef uint32_t i
        for i in range(self.count):
            free(<void *>(self.pieces[i].data - self.displacement))
        free(self.pieces)


def checksum(bytes data not None, lengths=None, *, size_t displacement=0):
    """Return the Internet checksum of some bytes.

    Args:
        data: the bytes.
        lengths: of the pieces that they lie in; None for one piece.
        displacement: how many bytes behind the beginning of allocated memory each piece lies.
    """
    cdef _Pieces pieces = _Pieces(data, lengths if data else [], displacement)
    return ntohs(<uint16_t>~checksum_fold(checksum_pieces(pieces.pieces, pieces.count, False)))


def segment(bytes header not None, bytes frame not None, lengths=None):
    """Turn a frame with offloads into frames as they are on a wire.

    Args:
        header: its virtio_net_hdr, the first 10 bytes at least.
        frame: the frame, without FCS.
        lengths: of the pieces that the frame lies in; None for one piece.

    Raises:
        ValueError: the frame is not what the header says, or the pieces are not the frame.
    """
    cdef net_header h
    cdef segmenter *s
    cdef piece *payload
    cdef uint8_t *to
    cdef uint32_t length, count, i, written
    cdef _Pieces pieces
    if len(header) < 10 or len(frame) < ETHERNET_HEADER:
        raise ValueError("header or frame too short")
    pieces = _Pieces(frame, lengths)
    memcpy(&h, <const char *>header, 10)
    s = <segmenter *>malloc(sizeof(segmenter))
    payload = <piece *>malloc(BURST_SEGMENTS * sizeof(piece))
    to = <uint8_t *>malloc(MOST_HEADER)
    try:
        if s == NULL or payload == NULL or to == NULL:
            raise MemoryError
        if segmenter_begin(s, &h, pieces.pieces, pieces.count, len(frame)) != GOOD_FRAME:
            raise ValueError("the frame is not what its header says")
        segments = []
        while not segmenter_done(s):
            count = segmenter_payload(s, payload, &length)
            written = segmenter_write(s, to, payload, count, length)
            parts = [payload[i].data[:payload[i].length] for i in range(count)]
            segments.append(b"".join([to[:written], *parts]))
        return segments
    finally:
        free(s)
        free(payload)
        free(to)
