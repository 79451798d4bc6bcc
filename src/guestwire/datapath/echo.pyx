# cython: language_level=3
"""A port that sends every frame back to the guest it came from: one copy, straight between guest buffers."""

from libc.stdint cimport uint32_t
from libc.stdlib cimport calloc, free

from guestwire.datapath.abi cimport net_header, used_element
from guestwire.datapath.counters cimport COPY_PORT, DROP_RING_DISABLED, DROP_TOO_LONG, pair_counters
from guestwire.datapath.frames cimport (
    DELIVER_LATER,
    DELIVER_NEVER,
    GOOD_FRAME,
    check_sent_frame,
    deliver,
    frame_pieces,
    piece,
)
from guestwire.datapath.port cimport Port, pair_context, port_interface
from guestwire.datapath.split_ring cimport BURST_CHAINS, BURST_SEGMENTS, burst, chain

cdef enum:
    LONGEST_FRAME = 65550   # 64 KiB and an Ethernet header

cdef struct echo_port:
    port_interface base
    uint32_t sent
    uint32_t received
    used_element sent_elements[BURST_CHAINS]
    used_element received_elements[2 * BURST_CHAINS]
    piece pieces[BURST_SEGMENTS]


cdef void echo_rx_post(port_interface *self, burst *buffers) noexcept nogil:
    # Buffers stay where they are: tx_submit takes them as frames come.
    pass


cdef void echo_tx_submit(port_interface *self, burst *frames) noexcept nogil:
    cdef echo_port *e = <echo_port *>self
    cdef pair_context *pair = self.pair
    cdef pair_counters *counters = pair.counters
    cdef net_header header
    cdef chain *c
    cdef uint32_t length, count
    cdef int reason, buffers
    e.sent = 0
    e.received = 0
    while frames.first < frames.end and e.received < BURST_CHAINS:
        c = &frames.chains[frames.first]
        reason = check_sent_frame(pair, frames, c, LONGEST_FRAME, &header)
        if reason != GOOD_FRAME:
            counters.tx.drops[reason] += 1
        else:
            length = c.length - pair.header_size
            count = frame_pieces(pair, frames, c, e.pieces, BURST_SEGMENTS)
            buffers = DELIVER_NEVER
            if pair.receiving:
                buffers = deliver(pair, e.pieces, count, length, &e.received_elements[e.received])
            if buffers == DELIVER_LATER:
                break
            counters.tx.frames += 1
            counters.tx.bytes += length
            if buffers == DELIVER_NEVER:
                counters.rx.drops[DROP_TOO_LONG if pair.receiving else DROP_RING_DISABLED] += 1
            else:
                counters.rx.frames += 1
                counters.rx.bytes += length
                counters.rx.copied_frames[COPY_PORT] += 1
                counters.rx.copied_bytes += length
                e.received += buffers
        e.sent_elements[e.sent].id = c.head
        e.sent_elements[e.sent].length = 0
        e.sent += 1
        frames.first += 1
    self.wants_buffers = frames.first < frames.end


cdef uint32_t echo_tx_poll(port_interface *self, const used_element **done) noexcept nogil:
    cdef echo_port *e = <echo_port *>self
    cdef uint32_t count = e.sent
    done[0] = e.sent_elements
    e.sent = 0
    return count


cdef uint32_t echo_rx_poll(port_interface *self, const used_element **done) noexcept nogil:
    cdef echo_port *e = <echo_port *>self
    cdef uint32_t count = e.received
    done[0] = e.received_elements
    e.received = 0
    return count


cdef void echo_drain(port_interface *self) noexcept nogil:
    pass


cdef class EchoPort(Port):
    """Sends every frame back to the guest it came from.

    A frame waits in the transmit ring until the guest offers receive buffers for it: none is lost.
    """

    def __cinit__(self):
        cdef echo_port *e = <echo_port *>calloc(1, sizeof(echo_port))
        if e == NULL:
            raise MemoryError
        self.port = &e.base
        e.base.rx_post = echo_rx_post
        e.base.rx_poll = echo_rx_poll
        e.base.tx_submit = echo_tx_submit
        e.base.tx_poll = echo_tx_poll
        e.base.drain = echo_drain
        e.base.fd = -1

    def __dealloc__(self):
        free(self.port)
