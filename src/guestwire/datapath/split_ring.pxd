"""The device side of one split virtqueue (virtio 1.3, 2.7)."""

from libc.stdint cimport uint16_t

from guestwire.datapath.abi cimport split_available, split_descriptor, split_used
from guestwire.datapath.ring cimport Ring, ring

cdef struct split_ring:
    ring common
    # Set when the ring starts, then only read.
    const split_descriptor *descriptors
    const split_available *available
    split_used *used
    uint16_t mask
    # The worker's.
    uint16_t last_available     # the next entry of the available ring to read
    uint16_t next_used          # the next entry of the used ring to write
    uint16_t shown_used         # the used index the driver can see
    uint16_t shown_before       # the one that it could see before

cdef class SplitRing(Ring):
    cdef split_ring *split
