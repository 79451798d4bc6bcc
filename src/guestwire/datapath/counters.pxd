"""Counters of a guest's queue pairs, in a small file that anybody may map and read."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t

# Why a frame was copied by us. Names: COPY_REASONS in counters.pyx.
cdef enum:
    COPY_PORT = 0               # the port always copies: echo, pcap
    COPY_BOUNCE_MODE = 1        # guest memory is not registered
    COPY_BUFFER_TOO_SMALL = 2   # the guest's buffer cannot hold the largest frame in one piece
    COPY_SCATTERED = 3          # more pieces than a multi-buffer frame may have, or none allowed
    COPY_BAD_PLACE = 4          # the kernel put the frame elsewhere than asked
    COPY_PAGE_CROSSING = 5      # a device does not see it in one piece
    COPY_FEW_BUFFERS = 6        # the guest offered fewer buffers than the NIC must always have
    COPY_HEADER_POLICY = 7      # headers are sent from our own memory, and the frame cannot be taken apart
    COPY_CHECKSUM = 8           # the frame's checksum was completed, and the frame cannot be taken apart
    COPY_SEGMENTATION = 9       # a segment that cannot be described by pieces in the guest's pages
    COPY_SEVERAL_BUFFERS = 10   # received over several buffers, of which all but the first had to be moved
    COPY_MERGED = 11            # a received segment was appended to the one before it
    COPY_OTHER_QUEUE = 12       # received on the queue of a pair that is not at work
    COPY_REASON_COUNT = 13

# Why a frame was dropped. Names: DROP_REASONS in counters.pyx.
cdef enum:
    DROP_TOO_SHORT = 0          # header or Ethernet header incomplete
    DROP_TOO_LONG = 1           # longer than the port or the guest's buffers can take
    DROP_NO_BUFFERS = 2         # the guest offered no receive buffer in time
    DROP_RING_DISABLED = 3      # VHOST_USER_SET_VRING_ENABLE 0
    DROP_NOT_NEGOTIATED = 4     # an offload that was not negotiated
    DROP_PORT = 5               # the port has nowhere to send it: null
    DROP_UNEXPECTED_PLACE = 6   # an arrival for a buffer that the kernel does not own
    DROP_SOURCE_ADDRESS = 7     # sent from another address than the guest's
    DROP_UNSENT = 8             # still waiting to be sent when the port was closed
    DROP_BAD_OFFLOAD = 9        # a virtio_net_hdr or frame header that contradicts itself
    DROP_REASON_COUNT = 10

cdef struct direction_counters:
    uint64_t frames
    uint64_t bytes
    uint64_t zero_copy_frames   # placed by the NIC in the guest's buffer, or taken from it
    uint64_t direct_frames      # the same by the kernel, with its one copy
    uint64_t copied_bytes
    uint64_t gso_frames         # of `frames`, those that stand for several on the wire
    uint64_t segments           # on the wire, of those that we took apart or put together
    uint64_t checksums          # that we computed, completed or marked as incomplete
    uint64_t copied_frames[16]
    uint64_t drops[16]

cdef struct pair_counters:
    direction_counters rx
    direction_counters tx
    uint64_t bursts             # loop passes that moved something
    uint64_t sleeps             # times the worker went to sleep
    uint64_t rx_calls
    uint64_t tx_calls
    uint64_t kicks
    uint64_t system_calls       # sendto and recvfrom that woke the kernel
    uint64_t ring_errors
    uint64_t idle_ns            # from a round in vain to the next one, by the clock, summed up
    uint64_t reserved[14]

cdef class Counters:
    cdef uint8_t *area
    cdef uint64_t area_size
    cdef readonly int pairs
    cdef pair_counters *pair(self, int index) except NULL
