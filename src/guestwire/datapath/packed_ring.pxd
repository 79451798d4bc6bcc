"""The device side of one packed virtqueue (virtio 1.3, 2.8)."""

from libc.stdint cimport uint16_t, uint32_t, uint64_t

from guestwire.datapath.abi cimport packed_descriptor
from guestwire.datapath.ring cimport Ring, ring

cdef struct packed_ring:
    ring common
    # Set when the ring starts, then only read.
    packed_descriptor *descriptors
    const uint32_t *driver_event    # Driver Event Suppression, offset and flags in one word
    uint32_t *device_event          # Device Event Suppression
    # The worker's. A position is the index of a descriptor; its flags tell of the wrap counter.
    uint16_t next_available         # position of the next list to read
    uint16_t available_flags        # AVAIL and USED of a descriptor there that is available
    uint16_t next_used              # position of the next used descriptor to write
    uint16_t used_flags             # AVAIL and USED of a used descriptor there
    uint32_t descriptors_in_flight
    uint32_t seen                   # descriptors from next_available on that were seen to be available
    uint32_t seen_lists             # lists of which they are the ends
    # Used descriptors that the driver does not see yet: the first one is written last.
    uint32_t unpublished            # over how many descriptors they extend
    uint32_t shown                  # the same of those that it was shown last
    uint16_t first_position
    uint64_t first_word
    # Copies of the descriptors of lists in flight, where used descriptors may overwrite them; else NULL.
    packed_descriptor *kept
    uint16_t *kept_free             # a stack of free copies
    uint16_t kept_free_count
    uint16_t *kept_next             # by copy: the next one of the same list
    uint16_t *kept_first            # by buffer id

cdef class PackedRing(Ring):
    cdef packed_ring *packed
