"""A stream of frames that can be verified: which were sent, which have arrived."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from guestwire.testing.frame_pattern cimport frame_pattern

cdef enum:
    STREAM_WINDOW = 65536       # sequence numbers back to which a repeated frame is told from a late one
    NET_HEADER_MOST = 12        # bytes of a virtio_net_hdr

cdef enum arrival:
    ARRIVED
    ARRIVED_CORRUPTED
    ARRIVED_AGAIN
    ARRIVED_LATE                # behind one with a higher number

cdef struct frame_stream:
    frame_pattern pattern
    uint8_t header[NET_HEADER_MOST]     # the virtio_net_hdr that a sender puts before each frame
    uint64_t sent               # frames sent, hence the next sequence number to send
    uint64_t expected           # the next sequence number to arrive
    uint64_t received           # frames that have arrived unharmed
    uint64_t received_bytes
    uint64_t lost               # numbers that were skipped
    uint8_t *seen               # one bit for each of the last STREAM_WINDOW numbers

cdef arrival stream_accept(frame_stream *s, const uint8_t *frame, uint32_t length) noexcept nogil

cdef class FrameStream:
    cdef frame_stream stream
