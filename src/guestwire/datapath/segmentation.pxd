"""Frames with offloads, turned into frames as they are on a wire; see segmentation.pyx."""

from libc.stdint cimport uint8_t, uint16_t, uint32_t

from guestwire.datapath.abi cimport net_header
from guestwire.datapath.frames cimport piece
from guestwire.datapath.ring cimport BURST_SEGMENTS

cdef enum:
    MOST_HEADER = 512           # bytes of headers that a segment can have
    SHORT_FRAME = 128           # one up to this, if it is not taken apart, is all header

# A frame that is being taken apart. It keeps what it needs: it may be left alone between two segments for as
# long as the frame's memory stays mapped.
cdef struct segmenter:
    uint8_t header[MOST_HEADER]     # as the guest wrote it when it was copied
    uint32_t header_length
    uint32_t segment_count
    uint32_t segment                # the number of the next one, from 0
    uint32_t segment_size           # bytes of payload in all segments but the last
    uint32_t payload_left
    # Positions in the header.
    uint32_t network                # the IP header, if there are several segments
    uint32_t transport              # the TCP or UDP header; where the checksum starts
    uint32_t checksum               # the checksum field
    uint16_t partial                # the sum in it, in memory's byte order, less the length that it includes
    bint ipv4
    bint tcp
    bint computes                   # there is a checksum to compute
    # The payload that is left.
    uint32_t first_piece
    uint32_t piece_count
    piece pieces[BURST_SEGMENTS]

# Begin with a frame of `length` bytes, at least 14, in `count` pieces: GOOD_FRAME, or DROP_BAD_OFFLOAD if its
# headers do not fit what `h` asks for or are longer than MOST_HEADER. `h` and the pieces are not needed
# afterwards. A frame without gso_type is one segment.
cdef int segmenter_begin(
    segmenter *s, const net_header *h, const piece *pieces, uint32_t count, uint32_t length
) noexcept nogil

cdef inline bint segmenter_done(const segmenter *s) noexcept nogil:
    """Whether all segments were written."""
    return s.segment == s.segment_count

# List the pieces of the next segment's payload and return their number, at most BURST_SEGMENTS and possibly
# none; `length` becomes their bytes. It changes nothing.
cdef uint32_t segmenter_payload(const segmenter *s, piece *payload, uint32_t *length) noexcept nogil

# Write the headers of the next segment, with all checksums, to `to`, which has room for MOST_HEADER bytes,
# and go on to the segment after it. The payload has the `length` that segmenter_payload said, and is there
# or a copy of what is there. Returns the bytes written, `header_length` for each segment of a frame.
cdef uint32_t segmenter_write(
    segmenter *s, uint8_t *to, const piece *payload, uint32_t count, uint32_t length
) noexcept nogil
