"""Received frames whose checksum is still unfinished; see receive_checksum.pyx."""

from libc.stdint cimport uint32_t

from guestwire.datapath.abi cimport net_header
from guestwire.datapath.frames cimport piece

# Make sure that the guest is not misled about the checksum of a received frame of `length` bytes, which
# lies in `count` pieces that may be written, its headers in the first.
#
# Returns False if there was nothing to do, as is usual. Otherwise the checksum is complete now; or, if it
# may be marked (VIRTIO_NET_F_GUEST_CSUM), `flags`, `checksum_start` and `checksum_offset` of `header` say
# that it is not. Nothing else is written to `header`.
cdef bint finish_checksum(
    const piece *pieces, uint32_t count, uint32_t length, net_header *header, bint may_mark
) noexcept nogil
