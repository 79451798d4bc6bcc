"""A frame that the guest sends, and the frames on a wire that it stands for; for ports that copy.

It is one, as it is, unless the guest asked for offloads that nobody behind us takes over. A port that cannot
take all of them yet sets `under_way` and goes on with the same frame later: what the guest writes over its
virtio_net_hdr and headers meanwhile does not matter.
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from guestwire.datapath.abi cimport net_header
from guestwire.datapath.frames cimport piece
from guestwire.datapath.port cimport pair_context
from guestwire.datapath.segmentation cimport MOST_HEADER, segmenter
from guestwire.datapath.ring cimport BURST_SEGMENTS, burst, chain

cdef struct sent_frame:
    bint under_way              # for the port: it was begun, and not all of it was taken
    bint large                  # the guest asks for segmentation
    bint finishing              # we compute its checksums, and take it apart if it is large
    net_header header           # what there is to be passed on; only flags and gso_type, 0, if nothing is
    uint32_t length             # as the guest sent it
    # The next frame on the wire.
    uint32_t wire_length
    uint32_t piece_count
    piece pieces[BURST_SEGMENTS + 1]
    uint8_t headers[MOST_HEADER]
    segmenter segmenter

# Begin with the frame in a chain, whose `header` is what check_sent_frame copied: GOOD_FRAME or DROP_... .
# What it asks for is passed on if who is to receive it has `accepted` that, named by the features by which
# guests do; 0: nobody has. A checksum is passed on only if it is that of the frame's own TCP or UDP header;
# the headers then are a copy.
cdef int sent_frame_begin(
    sent_frame *f, pair_context *pair, const burst *frames, const chain *c, const net_header *header,
    uint64_t accepted
) noexcept nogil

# Go on to the next frame on the wire; False if there is none.
cdef bint sent_frame_next(sent_frame *f, pair_context *pair) noexcept nogil
