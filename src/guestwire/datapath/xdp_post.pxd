"""The receiving half of the xdp port, part one: buffers for the kernel."""

from libc.stdint cimport uint32_t

from guestwire.datapath.port cimport port_interface
from guestwire.datapath.ring cimport burst, ring_waiting
from guestwire.datapath.xdp cimport posted_buffer, xdp_port

cdef inline uint32_t chains_waiting(const xdp_port *x, const burst *buffers) noexcept nogil:
    """How many chains the guest has on offer: those taken from its ring, and those still in it.

    What the guest's ring says decides here only which buffers are posted first; nothing else is built on it.
    """
    return buffers.end - buffers.first + ring_waiting(x.base.pair.rx)

cdef void xdp_rx_post(port_interface *self, burst *buffers) noexcept nogil
cdef void post_again(xdp_port *x, const posted_buffer *e) noexcept nogil
