"""Frames in guest buffers: the pieces of one that is sent, the placing of one that is received."""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy

from guestwire.datapath.abi cimport used_element
from guestwire.datapath.port cimport pair_context
from guestwire.datapath.split_ring cimport burst, chain

cdef enum:
    ETHERNET_HEADER = 14
    DELIVER_LATER = 0           # not enough buffers yet
    DELIVER_NEVER = -1          # no buffers this guest can offer hold the frame

cdef struct piece:
    const uint8_t *data
    uint32_t length

cdef inline void write_net_header(uint8_t *at, uint16_t size, uint16_t num_buffers) noexcept nogil:
    """Write a virtio_net_hdr without offloads: all zero but num_buffers (virtio 1.3, 5.1.6)."""
    cdef uint64_t zero = 0
    cdef uint32_t tail = <uint32_t>num_buffers << 16
    memcpy(at, &zero, 8)
    memcpy(at + 8, &tail, size - 8)

cdef uint32_t frame_pieces(
    const pair_context *pair, const burst *b, const chain *c, piece *pieces, uint32_t most
) noexcept nogil
cdef int deliver(
    pair_context *pair, const piece *pieces, uint32_t count, uint32_t length, used_element *done
) noexcept nogil
cdef void fill_chain(
    const pair_context *pair, const burst *b, const chain *c, uint32_t skip,
    const uint8_t *data, uint32_t length
) noexcept nogil
cdef int check_sent_frame(
    const pair_context *pair, const burst *b, const chain *c, uint32_t most
) noexcept nogil
