# cython: language_level=3
"""Received frames whose checksum is still unfinished.

Linux leaves the checksum of a TCP or UDP segment to the interface that sends it, if that can compute it.
Until then its field holds the folded sum of the pseudo-header, and the socket buffer says so
(CHECKSUM_PARTIAL). A veth pair passes such frames on as they are, and AF_XDP has no place for what the socket
buffer says.

The field itself gives it away: a frame whose checksum field equals the sum of its pseudo-header is
unfinished, or finished with that very checksum, as one in 65,536 is. What there is to do is the same, since
finishing means to store the complement of the segment's sum, the field included, and where the segment is
finished already that is what the field holds. So a look at the headers is all that other frames cost, and a
frame may be marked as unfinished without a look at its payload.

SCTP's CRC32c is left out in the same way, the field is zero then. A virtio_net_hdr cannot say that.

What is inside a tunnel is not looked at: the checksum of an encapsulated segment may be as unfinished.

The guest may change the frame meanwhile, in its own buffer: the headers are copied once, and only the copy
decides which bytes are read and written.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset

from guestwire.datapath.abi cimport VIRTIO_NET_HDR_F_NEEDS_CSUM, net_header
from guestwire.datapath.checksum cimport checksum_fold, checksum_sum, checksum_swap
from guestwire.datapath.frames cimport ETHERNET_HEADER, piece

cdef extern from "<arpa/inet.h>" nogil:
    uint16_t htons(uint16_t value)

cdef enum:
    FIRST_LOOK = 128            # bytes that hold the headers of nearly all frames
    LONGEST_LOOK = 512          # of headers; what lies behind more of them is not looked for
    ETHERTYPE_IPV4 = 0x0800
    ETHERTYPE_IPV6 = 0x86DD
    ETHERTYPE_VLAN = 0x8100     # IEEE 802.1Q
    ETHERTYPE_QINQ = 0x88A8     # IEEE 802.1ad
    IPV4_HEADER = 20
    IPV4_FRAGMENT = 0x3FFF      # more fragments, or a fragment offset
    IPV6_HEADER = 40
    IPV6_HOP_BY_HOP = 0
    IPV6_ROUTING = 43
    IPV6_DESTINATION = 60
    ROUTING_TYPE_2 = 2          # RFC 6275, 6.4: one address
    ROUTING_SEGMENTS = 4        # RFC 8754, 2: the first in the list is the last to be visited
    TCP = 6
    UDP = 17
    SCTP = 132

cdef enum look:
    NOTHING                     # no segment whose checksum could be unfinished
    SEGMENT
    FURTHER                     # more of the headers must be known

# A transport segment in a frame. All positions are bytes from the frame's first one.
cdef struct segment:
    uint8_t protocol
    uint32_t start
    uint32_t end
    uint32_t field              # the checksum
    uint64_t addresses          # their sum, as it goes into the pseudo-header


cdef inline uint16_t read_u16(const uint8_t *at) noexcept nogil:
    return <uint16_t>at[0] << 8 | at[1]


# --- finding the segment -------------------------------------------------------------------------------

cdef look find_in_ipv4(
    const uint8_t *h, uint32_t known, uint32_t length, uint32_t at, segment *s
) noexcept nogil:
    cdef uint32_t header, total
    if at + IPV4_HEADER > known:
        return FURTHER
    header = (h[at] & 0xF) * 4
    total = read_u16(h + at + 2)
    if (h[at] >> 4 != 4 or header < IPV4_HEADER or at + total > length
            or read_u16(h + at + 6) & IPV4_FRAGMENT):
        return NOTHING
    s.protocol = h[at + 9]
    s.start = at + header
    s.end = at + total
    s.addresses = checksum_sum(h + at + 12, 8)
    return SEGMENT


cdef look find_in_ipv6(
    const uint8_t *h, uint32_t known, uint32_t length, uint32_t at, segment *s
) noexcept nogil:
    """The same behind the extension headers of a datagram that is not fragmented (RFC 8200, 4 and 8.1)."""
    cdef uint32_t source, destination, payload
    if at + IPV6_HEADER > known:
        return FURTHER
    payload = read_u16(h + at + 4)
    if h[at] >> 4 != 6 or at + IPV6_HEADER + payload > length:
        return NOTHING
    source = at + 8
    destination = at + 24
    s.protocol = h[at + 6]
    s.start = at + IPV6_HEADER
    s.end = s.start + payload
    while s.protocol == IPV6_HOP_BY_HOP or s.protocol == IPV6_ROUTING or s.protocol == IPV6_DESTINATION:
        at = s.start
        if at + 8 > known:
            return FURTHER
        if s.protocol == IPV6_ROUTING and h[at + 3]:
            # On its way: the pseudo-header has the last destination.
            if h[at + 1] < 2 or (h[at + 2] != ROUTING_TYPE_2 and h[at + 2] != ROUTING_SEGMENTS):
                return NOTHING
            destination = at + 8
            if destination + 16 > known:
                return FURTHER
        s.protocol = h[at]
        s.start = at + 8 + 8 * h[at + 1]
    s.addresses = checksum_sum(h + source, 16) + checksum_sum(h + destination, 16)
    return SEGMENT


cdef look find_segment(const uint8_t *h, uint32_t known, uint32_t length, segment *s) noexcept nogil:
    """Find the segment in a frame of `length` bytes, the first `known` of which are at `h`."""
    cdef uint32_t at = ETHERNET_HEADER
    cdef uint32_t header
    cdef uint16_t ethertype
    cdef look found
    if at > known:
        return NOTHING
    ethertype = read_u16(h + at - 2)
    while ethertype == ETHERTYPE_VLAN or ethertype == ETHERTYPE_QINQ:
        at += 4
        if at > known:
            return FURTHER
        ethertype = read_u16(h + at - 2)
    if ethertype == ETHERTYPE_IPV4:
        found = find_in_ipv4(h, known, length, at, s)
    elif ethertype == ETHERTYPE_IPV6:
        found = find_in_ipv6(h, known, length, at, s)
    else:
        return NOTHING
    if found != SEGMENT:
        return found
    if s.protocol == TCP:
        header, s.field = 20, s.start + 16
    elif s.protocol == UDP:
        header, s.field = 8, s.start + 6
    elif s.protocol == SCTP:
        header, s.field = 12, s.start + 8
    else:
        return NOTHING
    # Also where the headers go beyond the datagram's end, or there is none (a jumbogram).
    if s.start + header > s.end:
        return NOTHING
    return FURTHER if s.start + header > known else SEGMENT


cdef bint is_unfinished(const uint8_t *h, const segment *s) noexcept nogil:
    cdef uint32_t checksum = 0
    if s.protocol == SCTP:
        memcpy(&checksum, h + s.field, 4)
        return checksum == 0
    memcpy(&checksum, h + s.field, 2)
    # The sum of a pseudo-header is never 0: a UDP datagram without a checksum is not taken for one.
    return <uint16_t>checksum == checksum_fold(s.addresses + htons(s.protocol) + htons(s.end - s.start))


# --- finishing it --------------------------------------------------------------------------------------

cdef uint32_t crc32c_table[256]

cdef void make_crc32c_table() noexcept:
    cdef uint32_t value
    cdef int i, _
    for i in range(256):
        value = i
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
        crc32c_table[i] = value

make_crc32c_table()


cdef uint32_t add_to_crc32c(uint32_t crc, const uint8_t *data, uint32_t length) noexcept nogil:
    cdef uint32_t i
    for i in range(length):
        crc = crc >> 8 ^ crc32c_table[(crc ^ data[i]) & 0xFF]
    return crc


cdef void complete(const piece *pieces, uint32_t count, const segment *s) noexcept nogil:
    """Compute the checksum of a segment over its pieces, and store it."""
    cdef uint8_t *field = <uint8_t *>pieces[0].data + s.field
    cdef uint32_t skip = s.start
    cdef uint32_t left = s.end - s.start
    cdef uint64_t total = 0
    cdef uint64_t part
    cdef uint32_t crc = 0xFFFFFFFF
    cdef uint16_t checksum
    cdef uint32_t i, length
    cdef const uint8_t *data
    for i in range(count):
        if skip >= pieces[i].length:
            skip -= pieces[i].length
            continue
        data = pieces[i].data + skip
        length = min(pieces[i].length - skip, left)
        if s.protocol == SCTP:
            crc = add_to_crc32c(crc, data, length)
        else:
            part = checksum_sum(data, length)
            total += checksum_swap(part) if (s.end - s.start - left) & 1 else part
        skip = 0
        left -= length
    if s.protocol == SCTP:
        # The least significant byte comes first (RFC 9260, appendix A).
        crc = ~crc
        for i in range(4):
            field[i] = crc >> 8 * i & 0xFF
        return
    checksum = ~checksum_fold(total)
    if checksum == 0 and s.protocol == UDP:
        checksum = 0xFFFF       # 0 says that there is none (RFC 768)
    memcpy(field, &checksum, 2)


cdef bint finish_checksum(
    const piece *pieces, uint32_t count, uint32_t length, net_header *header, bint may_mark
) noexcept nogil:
    cdef uint8_t headers[LONGEST_LOOK]
    cdef uint32_t most = min(pieces[0].length, length)
    cdef uint32_t known = min(most, <uint32_t>FIRST_LOOK)
    cdef segment s
    cdef look found
    memcpy(headers, pieces[0].data, known)
    found = find_segment(headers, known, length, &s)
    if found == FURTHER and known < most:
        known = min(most, <uint32_t>LONGEST_LOOK)
        memcpy(headers, pieces[0].data, known)
        found = find_segment(headers, known, length, &s)
    if found != SEGMENT or not is_unfinished(headers, &s):
        return False
    # A marked checksum covers all up to the frame's end: padding must not be a part of it.
    if may_mark and s.end == length and s.protocol != SCTP:
        header.flags = VIRTIO_NET_HDR_F_NEEDS_CSUM
        header.checksum_start = s.start
        header.checksum_offset = s.field - s.start
    else:
        complete(pieces, count, &s)
    return True


# --- for tests -----------------------------------------------------------------------------------------

def finish(bytes frame not None, *, bint may_mark=False, cuts=()):
    """Do to a frame what a port does to one that it received.

    Args:
        frame: its bytes, without FCS.
        may_mark: whether the guest accepted VIRTIO_NET_F_GUEST_CSUM.
        cuts: where the frame is cut into pieces, ascending; nowhere by default.

    Returns:
        The virtio_net_hdr, 12 bytes, and the frame; None if it was left alone.
    """
    cdef net_header header
    cdef piece *pieces = NULL
    cdef uint32_t count = 0
    cdef bint done
    ends = [*cuts, len(frame)]
    memset(&header, 0, sizeof(header))
    pieces = <piece *>malloc(len(ends) * sizeof(piece))
    if pieces == NULL:
        raise MemoryError
    try:
        for start, end in zip([0, *cuts], ends):
            part = frame[start:end]
            # Each in memory of its own, so that a sanitizer sees where it ends.
            pieces[count].length = len(part)
            pieces[count].data = <uint8_t *>malloc(max(len(part), 1))
            if pieces[count].data == NULL:
                raise MemoryError
            memcpy(<void *>pieces[count].data, <const uint8_t *>part, len(part))
            count += 1
        done = finish_checksum(pieces, count, len(frame), &header, may_mark)
        if not done:
            return None
        return (<const uint8_t *>&header)[:sizeof(header)], b"".join(
            [pieces[i].data[:pieces[i].length] for i in range(count)])
    finally:
        for i in range(count):
            free(<void *>pieces[i].data)
        free(pieces)
