# cython: language_level=3
"""Frames with offloads on an xdp port: taken apart, with their checksums computed.

The headers of each frame on the wire are made in a bounce frame, and its payload follows from the guest's
pages, where the kernel takes frames in several descriptors; else it is copied behind them. A large frame can
become more frames than there is room for: the rest is sent by later passes (`xdp_port.segmenting`), and its
chain is the guest's again when all of it has left.
"""

from libc.stdint cimport uint8_t, uint32_t
from libc.string cimport memcmp

from guestwire.datapath.counters cimport (
    COPY_BOUNCE_MODE,
    COPY_CHECKSUM,
    COPY_SEGMENTATION,
    DROP_SOURCE_ADDRESS,
    DROP_TOO_LONG,
    direction_counters,
)
from guestwire.datapath.frames cimport GOOD_FRAME, frame_pieces
from guestwire.datapath.segmentation cimport (
    segmenter_begin,
    segmenter_done,
    segmenter_payload,
    segmenter_write,
)
from guestwire.datapath.ring cimport BURST_SEGMENTS
from guestwire.datapath.xdp cimport COPY_NOT, HEADER_COPY, SOURCE_ADDRESS
from guestwire.datapath.xdp_descriptors cimport (
    NO_SPACE,
    count_in_place,
    frames_to_copy,
    free_to_send,
    next_bounce_frame,
    put_copied,
    put_pieces,
    return_sent,
    split_pieces,
)


cdef int submit_segments(
    xdp_port *x, const burst *frames, const chain *c, const net_header *header, uint32_t *space
) noexcept nogil:
    """Begin to send a frame as its checked `header` asks; returns GOOD_FRAME, DROP_..., or NO_SPACE.

    After NO_SPACE, `send_segments` goes on with it.
    """
    cdef uint32_t length = c.length - x.base.pair.header_size
    cdef uint32_t count = frame_pieces(x.base.pair, frames, c, x.pieces, BURST_SEGMENTS)
    cdef int reason = segmenter_begin(&x.segmenter, header, x.pieces, count, length)
    if reason != GOOD_FRAME:
        return reason
    # No segment is longer than the first.
    segmenter_payload(&x.segmenter, x.pieces, &length)
    if x.segmenter.header_length + length > x.longest_frame:
        return DROP_TOO_LONG
    if x.check_source and memcmp(x.segmenter.header + SOURCE_ADDRESS, x.source, sizeof(x.source)):
        return DROP_SOURCE_ADDRESS
    x.segmenting = True
    x.segmenting_head = c.head
    x.segmenting_copy = COPY_NOT
    x.segmenting_length = c.length - x.base.pair.header_size
    x.segmenting_gso = header.gso_type != 0
    x.pieces_left[c.head] += 1      # until all segments are on their way
    return send_segments(x, space)


cdef inline uint8_t why_copy_payload(const xdp_port *x, uint32_t count, uint32_t length) noexcept nogil:
    """Say why the payload of a frame of `length` bytes cannot be sent from where it is, or COPY_NOT."""
    if not x.guest_memory:
        return COPY_BOUNCE_MODE
    if count + 1 > x.most_pieces or length < x.in_place_from:
        return COPY_SEGMENTATION if x.segmenting_gso else COPY_CHECKSUM
    # Of a short frame the headers, which are copied anyhow, are the larger part.
    if length <= HEADER_COPY and not x.segmenting_gso:
        return COPY_CHECKSUM
    return COPY_NOT


cdef bint send_segment(xdp_port *x, uint32_t *space) noexcept nogil:
    """Put the next segment on the tx ring; returns False if there is no room for it."""
    cdef direction_counters *tx = &x.base.pair.counters.tx
    cdef uint32_t header_length = x.segmenter.header_length
    cdef uint32_t length
    cdef uint32_t count = split_pieces(x, segmenter_payload(&x.segmenter, x.pieces, &length))
    cdef uint8_t copy = why_copy_payload(x, count, header_length + length)
    cdef uint32_t copied = length if copy != COPY_NOT else 0
    cdef uint32_t frames_needed = frames_to_copy(x, header_length + copied)
    cdef uint32_t needed = frames_needed + (count if copy == COPY_NOT else 0)
    cdef uint32_t first
    if space[0] < needed or frames_needed > free_to_send(x):
        return False
    segmenter_write(&x.segmenter, next_bounce_frame(x), x.pieces, count, length)
    first = put_copied(x, 0, count, header_length, copied)
    if first < count:
        put_pieces(x, x.segmenting_head, first, count)
    if x.segmenting_copy == COPY_NOT:
        x.segmenting_copy = copy
    space[0] -= needed
    x.base.progress = True
    tx.checksums += 1
    tx.segments += x.segmenting_gso
    return True


cdef inline void end_segments(xdp_port *x) noexcept nogil:
    x.segmenting = False
    x.pieces_left[x.segmenting_head] -= 1
    if x.pieces_left[x.segmenting_head] == 0:
        return_sent(x, x.segmenting_head)


cdef int send_segments(xdp_port *x, uint32_t *space) noexcept nogil:
    """Send what is left of the frame that is being taken apart; returns GOOD_FRAME or NO_SPACE."""
    cdef direction_counters *tx = &x.base.pair.counters.tx
    while not segmenter_done(&x.segmenter):
        if not send_segment(x, space):
            return NO_SPACE
    tx.frames += 1
    tx.bytes += x.segmenting_length
    tx.gso_frames += x.segmenting_gso
    if x.segmenting_copy == COPY_NOT:
        count_in_place(x, 1)
    else:
        tx.copied_frames[x.segmenting_copy] += 1
    end_segments(x)
    return GOOD_FRAME


cdef void abandon_segments(xdp_port *x, uint32_t reason) noexcept nogil:
    """Send no more of the frame that is being taken apart, and count it as dropped."""
    x.base.pair.counters.tx.drops[reason] += 1
    x.abandoned_head = x.segmenting_head
    end_segments(x)
