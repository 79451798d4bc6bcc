"""Received TCP segments put together again; see merging.pyx.

    for each frame that arrived, in order:
        if merge_append(m, frame, length, &payload):
            its bytes from `payload` on belong behind those of the frames before it
        else:
            if merge_close(m, &header): `header` is for the frame that was given to merge_begin
            merge_begin(m, frame, length)
    and merge_close once more behind the last, before anything is handed to the guest.
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from guestwire.datapath.abi cimport net_header

cdef enum:
    MOST_MERGED_HEADERS = 128   # Ethernet, two VLAN tags, IPv6, TCP with all options: 122

# A TCP segment in a frame. All positions are bytes from the frame's first one.
cdef struct tcp_frame:
    uint8_t headers[MOST_MERGED_HEADERS]  # a copy, which the guest cannot change
    uint32_t network            # where the IP header is,
    uint32_t transport          # the TCP header,
    uint32_t payload            # and the payload, which ends where the frame does
    uint32_t length

cdef struct merger:
    # For its owner to set, once.
    uint64_t offloads           # what the guest accepted: VIRTIO_NET_F_GUEST_TSO4, ...
    bint unfinished             # a checksum that equals the sum of its pseudo-header is a good one
    # The frame to which others are appended.
    uint32_t count              # of how many it is made; 0: there is none
    bint full                   # nothing may follow
    bint verified               # the first one's checksum is good
    uint8_t *at                 # where the first one lies
    tcp_frame first
    uint32_t payload            # bytes of payload in all of them
    uint8_t flags               # FIN and PSH of the last one

# Begin with a frame, in one piece: to be called for each that is not appended. Its bytes must stay where
# they are, and may be written, until it is closed.
cdef void merge_begin(merger *m, uint8_t *frame, uint32_t length) noexcept nogil

cdef bint append_frame(merger *m, const uint8_t *frame, uint32_t length, uint32_t *payload) noexcept nogil

cdef inline bint merge_append(
    merger *m, const uint8_t *frame, uint32_t length, uint32_t *payload
) noexcept nogil:
    """Return whether a frame follows the others so that one segmentation would have made them all.

    Then its bytes from `payload` on become a part of the merged frame, and the caller moves them there.
    """
    return m.count != 0 and not m.full and append_frame(m, frame, length, payload)

cdef bint close_merged(merger *m, net_header *header) noexcept nogil

cdef inline bint merge_close(merger *m, net_header *header) noexcept nogil:
    """End the frame that was begun, if any; return whether others were appended to it.

    Then its headers, which are written in place, and `header` describe the merged frame; `header.num_buffers`
    is left to the caller. Otherwise nothing was written.
    """
    if m.count > 1:
        return close_merged(m, header)
    m.count = 0
    return False
