"""Where the headers of a frame that a guest sends are, and what a checksum that it asks for covers.

All is read from a copy, which the guest cannot change. See packet_headers.pyx.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t
from libc.string cimport memcpy

cdef extern from "<arpa/inet.h>" nogil:
    uint16_t ntohs(uint16_t value)

cdef enum:
    # RFC 791, 3.1
    IPV4_HEADER = 20
    IPV4_TOTAL_LENGTH = 2
    # RFC 8200, 3
    IPV6_HEADER = 40
    IPV6_PAYLOAD_LENGTH = 4
    # RFC 9293, 3.1, and RFC 768
    TCP = 6
    TCP_CHECKSUM = 16
    UDP = 17
    UDP_CHECKSUM = 6

cdef enum packet:
    PACKET
    BAD_PACKET                  # of IP, but not what it says, a fragment, or not known as far as needed
    NO_PACKET                   # of another protocol

# Positions in a frame.
cdef struct layout:
    uint32_t network            # the IP header
    uint32_t transport          # what is behind it and its extension headers
    uint32_t end                # of the packet, at most the frame's
    bint ipv4
    uint8_t protocol            # of what is at `transport`

cdef enum checksum_place:
    OF_TRANSPORT                # the one of the packet's own TCP or UDP header
    ELSEWHERE                   # of what is inside a tunnel, or of a protocol that is not known here
    FORGED                      # no driver asks for that: in a network header, or not where TCP or UDP has it

cdef inline uint16_t get_u16(const uint8_t *at) noexcept nogil:
    cdef uint16_t value
    memcpy(&value, at, 2)
    return ntohs(value)

# Find the IP packet in a frame of `length` bytes, 14 at least, the first `known` of which are at `header`.
cdef packet find_packet(
    const uint8_t *header, uint32_t known, uint32_t length, layout *found
) noexcept nogil

# Say which checksum it is that is computed from the byte `start` on, and stored `offset` bytes behind that.
cdef checksum_place place_of_checksum(
    const uint8_t *header, uint32_t known, uint32_t length, uint32_t start, uint32_t offset
) noexcept nogil
