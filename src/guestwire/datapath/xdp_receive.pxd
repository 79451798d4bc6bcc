"""The receiving half of the xdp port."""

from libc.stdint cimport uint32_t

from guestwire.datapath.abi cimport used_element
from guestwire.datapath.port cimport port_interface
from guestwire.datapath.split_ring cimport burst

cdef void xdp_rx_post(port_interface *self, burst *buffers) noexcept nogil
cdef uint32_t xdp_rx_poll(port_interface *self, const used_element **done) noexcept nogil
