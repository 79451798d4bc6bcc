"""The sending half of the xdp port."""

from libc.stdint cimport uint32_t

from guestwire.datapath.abi cimport used_element
from guestwire.datapath.port cimport port_interface
from guestwire.datapath.ring cimport burst

cdef void xdp_tx_submit(port_interface *self, burst *frames) noexcept nogil
cdef uint32_t xdp_tx_poll(port_interface *self, const used_element **done) noexcept nogil
cdef void xdp_drain(port_interface *self) noexcept nogil
