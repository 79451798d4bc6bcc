"""Frames with offloads on an xdp port: taken apart, with their checksums computed."""

from libc.stdint cimport uint32_t

from guestwire.datapath.abi cimport net_header
from guestwire.datapath.ring cimport burst, chain
from guestwire.datapath.xdp cimport xdp_port

cdef int submit_segments(
    xdp_port *x, const burst *frames, const chain *c, const net_header *header, uint32_t *space
) noexcept nogil
cdef int send_segments(xdp_port *x, uint32_t *space) noexcept nogil
cdef void abandon_segments(xdp_port *x, uint32_t reason) noexcept nogil
