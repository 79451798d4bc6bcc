"""The receiving half of the xdp port, part two: frames from the kernel."""

from libc.stdint cimport uint32_t

from guestwire.datapath.abi cimport used_element
from guestwire.datapath.port cimport port_interface

cdef uint32_t xdp_rx_poll(port_interface *self, const used_element **done) noexcept nogil
