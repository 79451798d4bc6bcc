# cython: language_level=3
"""Where the headers of a frame that a guest sends are, and what a checksum that it asks for covers.

A kernel that is handed a frame with a checksum to be computed believes csum_start and csum_offset: it looks
at the headers, lets filters decide, and writes the checksum last, wherever that is. So a guest could have
it change an address that was checked. Only the checksum of a frame's own TCP or UDP header is left to
others; what lies in network headers is no checksum; and any other we compute, as for guests whose tunnels
ask for it.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy

from guestwire.datapath.frames cimport ETHERNET_HEADER

cdef enum:
    ETHERTYPE_IPV4 = 0x0800
    ETHERTYPE_IPV6 = 0x86DD
    ETHERTYPE_VLAN = 0x8100         # IEEE 802.1Q
    ETHERTYPE_QINQ = 0x88A8         # IEEE 802.1ad
    VLAN_TAG = 4
    # RFC 791, 3.1
    IPV4_FRAGMENT = 6
    IPV4_PROTOCOL = 9
    MORE_FRAGMENTS_AND_OFFSET = 0x3FFF
    # RFC 8200, 3 and 4
    IPV6_NEXT_HEADER = 6
    IPV6_EXTENSION = 8              # their length is in these units, the first not counted
    HOP_BY_HOP = 0
    ROUTING = 43
    DESTINATION = 60


cdef bint find_ipv4(const uint8_t *header, uint32_t known, layout *found) noexcept nogil:
    cdef const uint8_t *ip = header + found.network
    cdef uint32_t ip_header
    if found.network + IPV4_HEADER > known:
        return False
    ip_header = (ip[0] & 15) * 4
    found.ipv4 = True
    found.transport = found.network + ip_header
    found.end = found.network + get_u16(ip + IPV4_TOTAL_LENGTH)
    found.protocol = ip[IPV4_PROTOCOL]
    return (ip[0] >> 4 == 4 and ip_header >= IPV4_HEADER
            and get_u16(ip + IPV4_FRAGMENT) & MORE_FRAGMENTS_AND_OFFSET == 0)


cdef bint find_ipv6(const uint8_t *header, uint32_t known, layout *found) noexcept nogil:
    """The extension headers passed over are those behind which Linux segments."""
    cdef const uint8_t *ip = header + found.network
    cdef uint32_t at = found.network + IPV6_HEADER
    if at > known:
        return False
    found.ipv4 = False
    found.end = at + get_u16(ip + IPV6_PAYLOAD_LENGTH)
    found.protocol = ip[IPV6_NEXT_HEADER]
    while found.protocol == HOP_BY_HOP or found.protocol == ROUTING or found.protocol == DESTINATION:
        if at + IPV6_EXTENSION > known:
            return False
        found.protocol = header[at]
        at += (header[at + 1] + 1) * IPV6_EXTENSION
    found.transport = at
    return ip[0] >> 4 == 6


cdef packet find_packet(
    const uint8_t *header, uint32_t known, uint32_t length, layout *found
) noexcept nogil:
    cdef uint32_t at = ETHERNET_HEADER
    cdef uint16_t ethertype
    cdef bint good
    if at > known:
        return BAD_PACKET
    ethertype = get_u16(header + at - 2)
    while ethertype == ETHERTYPE_VLAN or ethertype == ETHERTYPE_QINQ:
        at += VLAN_TAG
        if at > known:
            return BAD_PACKET
        ethertype = get_u16(header + at - 2)
    found.network = at
    if ethertype == ETHERTYPE_IPV4:
        good = find_ipv4(header, known, found)
    elif ethertype == ETHERTYPE_IPV6:
        good = find_ipv6(header, known, found)
    else:
        return NO_PACKET
    return PACKET if good and found.transport <= found.end <= length else BAD_PACKET


cdef checksum_place place_of_checksum(
    const uint8_t *header, uint32_t known, uint32_t length, uint32_t start, uint32_t offset
) noexcept nogil:
    cdef layout found
    cdef packet kind = find_packet(header, known, length, &found)
    if kind == NO_PACKET:
        return ELSEWHERE
    # A receiver cuts off what is behind the packet.
    if kind == BAD_PACKET or start < found.transport or start + offset + 2 > found.end:
        return FORGED
    if start > found.transport or (found.protocol != TCP and found.protocol != UDP):
        return ELSEWHERE
    return OF_TRANSPORT if offset == (TCP_CHECKSUM if found.protocol == TCP else UDP_CHECKSUM) else FORGED


# --- for tests -----------------------------------------------------------------------------------------

def checksum_of(bytes frame not None, known, start, offset):
    """Say which checksum of a frame is computed from `start` on and stored `offset` behind that.

    Args:
        frame: its bytes, without FCS.
        known: how many of them are looked at.
        start: `csum_start`. offset: `csum_offset`.

    Returns:
        "transport", "elsewhere" or "forged".
    """
    cdef const uint8_t *data = frame
    cdef uint32_t count = min(len(frame), known)
    # In memory of its own, so that a sanitizer sees where it ends.
    cdef uint8_t *header = <uint8_t *>malloc(max(count, 1))
    cdef checksum_place place
    if header == NULL:
        raise MemoryError
    memcpy(header, data, count)
    place = place_of_checksum(header, count, len(frame), start, offset)
    free(header)
    if place == OF_TRANSPORT:
        return "transport"
    return "elsewhere" if place == ELSEWHERE else "forged"
