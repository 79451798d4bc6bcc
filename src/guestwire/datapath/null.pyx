# cython: language_level=3
"""A port that takes every frame and never has one: a sink for benchmarks and quarantined guests."""

from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport calloc, free

from guestwire.datapath.abi cimport used_element
from guestwire.datapath.counters cimport DROP_PORT
from guestwire.datapath.port cimport Port, pair_context, port_interface
from guestwire.datapath.ring cimport BURST_CHAINS, burst, chain, put_element

cdef struct null_port:
    port_interface base
    uint32_t sent
    used_element sent_elements[BURST_CHAINS]


cdef void null_rx_post(port_interface *self, burst *buffers) noexcept nogil:
    pass


cdef uint32_t null_rx_poll(port_interface *self, const used_element **done) noexcept nogil:
    return 0


cdef void null_tx_submit(port_interface *self, burst *frames) noexcept nogil:
    cdef null_port *n = <null_port *>self
    cdef pair_context *pair = self.pair
    cdef const chain *c = &frames.chains[frames.first]
    cdef uint32_t header_size = pair.header_size
    cdef uint32_t count = frames.end - frames.first
    cdef uint64_t octets = 0
    cdef uint32_t i
    for i in range(count):
        octets += c[i].length - min(c[i].length, header_size)
        put_element(&n.sent_elements[i], c[i].head, 0)
    n.sent = count
    frames.first = frames.end
    pair.counters.tx.frames += count
    pair.counters.tx.bytes += octets
    pair.counters.tx.drops[DROP_PORT] += count


cdef uint32_t null_tx_poll(port_interface *self, const used_element **done) noexcept nogil:
    cdef null_port *n = <null_port *>self
    cdef uint32_t count = n.sent
    done[0] = n.sent_elements
    n.sent = 0
    return count


cdef void null_drain(port_interface *self) noexcept nogil:
    pass


cdef class NullPort(Port):
    """Takes every frame and drops it, counted; never has one for the guest."""

    def __cinit__(self):
        cdef null_port *n = <null_port *>calloc(1, sizeof(null_port))
        if n == NULL:
            raise MemoryError
        self.port = &n.base
        n.base.rx_post = null_rx_post
        n.base.rx_poll = null_rx_poll
        n.base.tx_submit = null_tx_submit
        n.base.tx_poll = null_tx_poll
        n.base.drain = null_drain
        n.base.fd = -1

    def __dealloc__(self):
        free(self.port)
