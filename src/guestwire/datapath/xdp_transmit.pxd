"""The sending half of the xdp port."""

from libc.stdint cimport uint32_t

from guestwire.datapath.abi cimport used_element
from guestwire.datapath.port cimport port
from guestwire.datapath.split_ring cimport burst

cdef void xdp_tx_submit(port *self, burst *frames) noexcept nogil
cdef uint32_t xdp_tx_poll(port *self, const used_element **done) noexcept nogil
cdef void xdp_drain(port *self) noexcept nogil
