"""The receiving half of the tap port; see tap_receive.pyx."""

from libc.stdint cimport uint32_t

from guestwire.datapath.abi cimport used_element
from guestwire.datapath.port cimport port_interface
from guestwire.datapath.ring cimport burst

cdef uint32_t tap_rx_poll(port_interface *self, const used_element **done) noexcept nogil
cdef void tap_rx_post(port_interface *self, burst *buffers) noexcept nogil
