"""The receiving half of the xdp port, part one: buffers for the kernel."""

from libc.stdint cimport uint16_t, uint32_t

from guestwire.datapath.atomics cimport load_relaxed_u16
from guestwire.datapath.port cimport port_interface
from guestwire.datapath.split_ring cimport burst, split_ring
from guestwire.datapath.xdp cimport posted_buffer, xdp_port

cdef inline uint32_t chains_waiting(const xdp_port *x, const burst *buffers) noexcept nogil:
    """How many chains the guest has on offer: those taken from its ring, and those still in it.

    The guest's index decides here only which buffers are posted first; nothing else is built on it.
    """
    cdef const split_ring *ring = x.base.pair.rx
    cdef uint16_t in_ring = load_relaxed_u16(&ring.available.index) - ring.last_available
    return buffers.end - buffers.first + min(in_ring, ring.size)

cdef void xdp_rx_post(port_interface *self, burst *buffers) noexcept nogil
cdef void post_again(xdp_port *x, const posted_buffer *e) noexcept nogil
