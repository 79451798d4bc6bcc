# cython: language_level=3
"""Received TCP segments put together again, for a guest that accepts what segmentation would take apart.

Frames are merged only if they are what a segmentation of the merged frame gives (virtio 1.3, 5.1.6.4; Linux'
rules for GRO are the same, but for IPv4 identifications that do not count up): one after the other and not
interrupted by any other frame, with headers that differ in nothing but the sequence number, the lengths, the
identification, the checksums, and PSH or FIN in the last, CWR in the first. All are as long as the first, the
last may be shorter. So nothing of what a sender said is lost, and no two frames ever change places.

Each frame's checksum is verified first, since it is gone afterwards. The merged frame has the sum of its
pseudo-header in its place, and its virtio_net_hdr says so.

The guest may change the frames meanwhile: headers are copied once, and only the copies are looked at.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcmp, memcpy, memset

from guestwire.datapath.abi cimport (
    VIRTIO_NET_F_GUEST_CSUM,
    VIRTIO_NET_F_GUEST_ECN,
    VIRTIO_NET_F_GUEST_TSO4,
    VIRTIO_NET_F_GUEST_TSO6,
    VIRTIO_NET_HDR_F_NEEDS_CSUM,
    VIRTIO_NET_HDR_GSO_ECN,
    VIRTIO_NET_HDR_GSO_TCPV4,
    VIRTIO_NET_HDR_GSO_TCPV6,
    net_header,
)
from guestwire.datapath.checksum cimport checksum_fold, checksum_sum
from guestwire.datapath.frames cimport ETHERNET_HEADER

cdef extern from "<arpa/inet.h>" nogil:
    uint16_t htons(uint16_t value)

cdef enum:
    ETHERTYPE_IPV4 = 0x0800
    ETHERTYPE_IPV6 = 0x86DD
    ETHERTYPE_VLAN = 0x8100     # IEEE 802.1Q
    ETHERTYPE_QINQ = 0x88A8     # IEEE 802.1ad
    TAGS = 8                    # bytes of two
    IPV4_HEADER = 20            # without options, as all that are merged
    IPV4_VERSION_LENGTH = 0x45
    IPV4_FRAGMENT = 0x3FFF      # more fragments, or a fragment offset
    IPV6_HEADER = 40
    LONGEST_DATAGRAM = 65535
    TCP = 6
    TCP_HEADER = 20
    TCP_CHECKSUM = 16
    FIN = 0x01
    SYN = 0x02
    RST = 0x04
    PSH = 0x08
    ACK = 0x10
    URG = 0x20
    CWR = 0x80


cdef inline uint16_t read_u16(const uint8_t *at) noexcept nogil:
    return <uint16_t>at[0] << 8 | at[1]


cdef inline uint32_t read_u32(const uint8_t *at) noexcept nogil:
    return <uint32_t>read_u16(at) << 16 | read_u16(at + 2)


cdef inline void write_u16(uint8_t *at, uint16_t value) noexcept nogil:
    at[0] = value >> 8
    at[1] = value & 0xFF


cdef inline bint is_ipv4(const tcp_frame *f) noexcept nogil:
    return f.headers[f.network] == IPV4_VERSION_LENGTH


cdef uint64_t pseudo_header(const tcp_frame *f, uint32_t length) noexcept nogil:
    """Return the sum of the pseudo-header of `length` bytes of TCP."""
    cdef uint64_t total = <uint64_t>htons(TCP) + htons(length)
    if is_ipv4(f):
        return total + checksum_sum(f.headers + f.network + 12, 8)
    return total + checksum_sum(f.headers + f.network + 8, 32)


# --- which frames may be merged ------------------------------------------------------------------------

cdef uint32_t find_network(const uint8_t *h) noexcept nogil:
    """Return where the header of a TCP/IP datagram begins that is neither extended nor a fragment, or 0."""
    cdef uint32_t at = ETHERNET_HEADER
    cdef uint16_t ethertype = read_u16(h + at - 2)
    while (ethertype == ETHERTYPE_VLAN or ethertype == ETHERTYPE_QINQ) and at < ETHERNET_HEADER + TAGS:
        at += 4
        ethertype = read_u16(h + at - 2)
    if ethertype == ETHERTYPE_IPV4:
        if (h[at] == IPV4_VERSION_LENGTH and h[at + 9] == TCP
                and not read_u16(h + at + 6) & IPV4_FRAGMENT):
            return at
    elif ethertype == ETHERTYPE_IPV6:
        if h[at] >> 4 == 6 and h[at + 6] == TCP:
            return at
    return 0


cdef bint read_frame(tcp_frame *f, const uint8_t *frame, uint32_t length) noexcept nogil:
    """Read a frame's headers; return whether it may be one of several that are merged."""
    cdef uint8_t *h = f.headers
    cdef uint32_t known = min(length, <uint32_t>MOST_MERGED_HEADERS)
    cdef uint32_t datagram
    # All positions below lie in the copy, whatever the frame holds, and zeros are no header.
    memcpy(h, frame, known)
    memset(h + known, 0, MOST_MERGED_HEADERS - known)
    f.length = length
    f.network = find_network(h)
    if f.network == 0:
        return False
    if is_ipv4(f):
        f.transport = f.network + IPV4_HEADER
        datagram = read_u16(h + f.network + 2)
        if checksum_fold(checksum_sum(h + f.network, IPV4_HEADER)) != 0xFFFF:
            return False
    else:
        f.transport = f.network + IPV6_HEADER
        datagram = IPV6_HEADER + read_u16(h + f.network + 4)
    f.payload = f.transport + (h[f.transport + 12] >> 4) * 4
    # Without padding, without surplus; and with data.
    return (f.network + datagram == length and f.payload >= f.transport + TCP_HEADER
            and f.payload < length and not h[f.transport + 13] & (SYN | RST | URG)
            and h[f.transport + 13] & ACK)


cdef bint is_good(const merger *m, const tcp_frame *f, const uint8_t *frame) noexcept nogil:
    """Whether a frame's checksum is right, or need not be."""
    cdef uint64_t pseudo = pseudo_header(f, f.length - f.transport)
    cdef uint16_t checksum
    memcpy(&checksum, f.headers + f.transport + TCP_CHECKSUM, 2)
    if m.unfinished and checksum == checksum_fold(pseudo):
        return True
    # What is kept of the header is the copy. It has a multiple of 4 bytes: the payload begins a word.
    pseudo += checksum_sum(f.headers + f.transport, f.payload - f.transport)
    return checksum_fold(pseudo + checksum_sum(frame + f.payload, f.length - f.payload)) == 0xFFFF


cdef inline bint differ(
    const tcp_frame *a, const tcp_frame *b, uint32_t start, uint32_t end
) noexcept nogil:
    return memcmp(a.headers + start, b.headers + start, end - start) != 0


cdef bint network_follows(const merger *m, const tcp_frame *f) noexcept nogil:
    """Whether all below TCP is that of the next frame: only lengths and checksums may differ."""
    cdef const tcp_frame *first = &m.first
    cdef uint32_t ip = first.network
    cdef uint16_t identification
    if not is_ipv4(first):
        return not differ(first, f, 0, ip + 4) and not differ(first, f, ip + 6, first.transport)
    identification = read_u16(first.headers + ip + 4) + m.count
    return (not differ(first, f, 0, ip + 2)
            and read_u16(f.headers + ip + 4) == identification
            and not differ(first, f, ip + 6, ip + 10)
            and not differ(first, f, ip + 12, first.transport))


cdef bint follows(const merger *m, const tcp_frame *f) noexcept nogil:
    """Whether a frame's headers are those of the next one in a segmentation."""
    cdef const tcp_frame *first = &m.first
    cdef uint32_t tcp = first.transport
    cdef uint8_t flags = f.headers[tcp + 13]
    cdef uint32_t sequence = read_u32(first.headers + tcp + 4) + m.payload
    cdef uint32_t length = f.length - f.payload
    # The same positions mean the same kinds of headers.
    if f.network != first.network or f.transport != tcp or f.payload != first.payload:
        return False
    if length > first.length - first.payload:
        return False
    if f.payload - f.network + m.payload + length > LONGEST_DATAGRAM:
        return False
    if flags & CWR or (flags ^ first.headers[tcp + 13]) & ~(CWR | FIN | PSH):
        return False
    return (network_follows(m, f)
            and not differ(first, f, tcp, tcp + 4)
            and read_u32(f.headers + tcp + 4) == sequence
            and not differ(first, f, tcp + 8, tcp + 13)
            and not differ(first, f, tcp + 14, tcp + TCP_CHECKSUM)
            and not differ(first, f, tcp + TCP_CHECKSUM + 2, f.payload))


# --- merging -------------------------------------------------------------------------------------------

cdef uint64_t features_needed(const tcp_frame *f) noexcept nogil:
    cdef uint64_t needed = VIRTIO_NET_F_GUEST_CSUM
    needed |= VIRTIO_NET_F_GUEST_TSO4 if is_ipv4(f) else VIRTIO_NET_F_GUEST_TSO6
    if f.headers[f.transport + 13] & CWR:
        needed |= VIRTIO_NET_F_GUEST_ECN
    return needed


cdef void merge_begin(merger *m, uint8_t *frame, uint32_t length) noexcept nogil:
    m.count = 0
    if not read_frame(&m.first, frame, length) or features_needed(&m.first) & ~m.offloads:
        return
    # Nothing follows FIN or PSH: no segmentation has them but in the last one.
    if m.first.headers[m.first.transport + 13] & (FIN | PSH):
        return
    m.count = 1
    m.full = m.verified = False
    m.at = frame
    m.payload = length - m.first.payload
    m.flags = 0


cdef bint append_frame(merger *m, const uint8_t *frame, uint32_t length, uint32_t *payload) noexcept nogil:
    cdef tcp_frame f
    cdef uint32_t more
    if not read_frame(&f, frame, length) or not follows(m, &f):
        return False
    if not m.verified:
        m.verified = is_good(m, &m.first, m.at)
    if not m.verified or not is_good(m, &f, frame):
        return False
    more = length - f.payload
    m.count += 1
    m.payload += more
    m.flags = f.headers[f.transport + 13] & (FIN | PSH)
    m.full = m.flags != 0 or more < m.first.length - m.first.payload
    payload[0] = f.payload
    return True


cdef bint close_merged(merger *m, net_header *header) noexcept nogil:
    cdef tcp_frame *f = &m.first
    cdef uint8_t *h = f.headers
    cdef uint32_t segment = f.payload - f.transport + m.payload
    cdef uint16_t checksum
    header.flags = VIRTIO_NET_HDR_F_NEEDS_CSUM
    header.gso_type = VIRTIO_NET_HDR_GSO_TCPV4 if is_ipv4(f) else VIRTIO_NET_HDR_GSO_TCPV6
    if h[f.transport + 13] & CWR:
        header.gso_type |= VIRTIO_NET_HDR_GSO_ECN
    header.gso_size = f.length - f.payload
    header.header_length = f.payload
    header.checksum_start = f.transport
    header.checksum_offset = TCP_CHECKSUM
    h[f.transport + 13] |= m.flags
    checksum = checksum_fold(pseudo_header(f, segment))
    memcpy(h + f.transport + TCP_CHECKSUM, &checksum, 2)
    if is_ipv4(f):
        write_u16(h + f.network + 2, IPV4_HEADER + segment)
        memset(h + f.network + 10, 0, 2)
        checksum = ~checksum_fold(checksum_sum(h + f.network, IPV4_HEADER))
        memcpy(h + f.network + 10, &checksum, 2)
    else:
        write_u16(h + f.network + 4, segment)
    memcpy(m.at, h, f.payload)
    m.count = 0
    return True


# --- for tests -----------------------------------------------------------------------------------------

def merge(frames not None, *, uint64_t offloads, bint unfinished=False):
    """Merge frames as a port does, and gather each merged frame in one piece.

    Args:
        frames: the bytes of each, without FCS, in the order in which they arrived.
        offloads: the features that the guest accepted.
        unfinished: whether checksums may be unfinished.

    Returns:
        The virtio_net_hdr of 12 bytes, num_buffers being 0, and the bytes of each frame that the guest gets.
    """
    cdef merger m
    cdef net_header header
    cdef uint32_t payload = 0
    cdef _Block arrived, first = None
    cdef list out = []
    cdef list parts = []
    memset(&m, 0, sizeof(m))
    m.offloads = offloads
    m.unfinished = unfinished
    for frame in [*frames, None]:
        if frame is not None:
            arrived = _Block(frame)
            if merge_append(&m, arrived.data, arrived.length, &payload):
                parts.append(arrived.content()[payload:])
                continue
        memset(&header, 0, sizeof(header))
        merge_close(&m, &header)
        if first is not None:
            out.append(((<const uint8_t *>&header)[:sizeof(header)], first.content() + b"".join(parts)))
        if frame is not None:
            first, parts = arrived, []
            merge_begin(&m, first.data, first.length)
    return out


cdef class _Block:
    """A frame in memory of its own, so that a sanitizer sees where it ends."""

    cdef uint8_t *data
    cdef uint32_t length

    def __cinit__(self, bytes frame not None):
        self.length = len(frame)
        self.data = <uint8_t *>malloc(max(self.length, 1))
        if self.data == NULL:
            raise MemoryError
        memcpy(self.data, <const uint8_t *>frame, self.length)

    def __dealloc__(self):
        free(self.data)

    cdef bytes content(self):
        return self.data[:self.length]
