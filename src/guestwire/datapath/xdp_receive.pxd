"""The receiving half of the xdp port."""

from libc.stdint cimport uint32_t

from guestwire.datapath.abi cimport used_element
from guestwire.datapath.port cimport port
from guestwire.datapath.split_ring cimport burst

cdef void xdp_rx_post(port *self, burst *buffers) noexcept nogil
cdef uint32_t xdp_rx_poll(port *self, const used_element **done) noexcept nogil
