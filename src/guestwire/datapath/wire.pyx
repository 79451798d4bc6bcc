# cython: language_level=3
"""The wire port: a switch between the guests of one process, with one copy from guest to guest.

The sender's worker does the work: it reads a frame's addresses, learns the source, finds the member with the
destination, enters the inlet of one of its queue pairs, and copies the frame from its own guest's pages into
the buffers of the other. It stays there while the frames that follow are for the same inlet. Frames for
everybody, and for addresses that nobody knows, are copied to each of the other members in turn.

A frame that one member alone is to get waits in the sender's transmit ring for up to `wait_us` while that
member has no buffers: after some microseconds the sender's worker sleeps, and the worker of the other, which
its driver kicks, wakes it (inlet.pyx). What is behind a frame that waits, waits, too: order is kept. After a
frame that waited in vain none waits for this member, until it has offered buffers again.
"""

import os

from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport calloc, free

from guestwire.datapath.atomics cimport store_release_u64
from guestwire.datapath.counters cimport DROP_PORT, pair_counters
from guestwire.datapath.frames cimport GOOD_FRAME
from guestwire.datapath.inlet cimport (
    inlet_call,
    inlet_close,
    inlet_forget,
    inlet_look,
    inlet_open,
)
from guestwire.datapath.network cimport address_at, network_member, seconds_now
from guestwire.datapath.ring cimport chain, put_element
from guestwire.datapath.wire_forward cimport WAITS, wire_leave, wire_send, wire_send_run


cdef inline void stop_waiting(wire_port *e) noexcept nogil:
    if e.waits_at != NULL:
        inlet_forget(e.waits_at, &e.waiter)
        e.waits_at = NULL


cdef void wire_tx_submit(port_interface *self, burst *frames) noexcept nogil:
    cdef wire_port *e = <wire_port *>self
    cdef pair_counters *counters = self.pair.counters
    cdef chain *c
    cdef int reason
    stop_waiting(e)
    e.frames = frames
    e.now = seconds_now()
    e.destination_inlet = NULL      # whoever had the address may have moved
    while frames.first < frames.end:
        c = &frames.chains[frames.first]
        reason = wire_send(e, frames, c)
        if reason == WAITS:
            break
        e.waits_since = 0
        if reason == GOOD_FRAME or reason == DROP_PORT:
            counters.tx.frames += 1
            counters.tx.bytes += c.length - self.pair.header_size
        if reason != GOOD_FRAME:
            counters.tx.drops[reason] += 1
        put_element(&e.sent_elements[e.sent], c.head, 0)
        e.sent += 1
        frames.first += 1
        if reason == GOOD_FRAME:
            wire_send_run(e, frames)
    wire_leave(e)
    self.under_way = e.frame.under_way
    self.busy = e.waits_at != NULL


cdef uint32_t wire_tx_poll(port_interface *self, const used_element **done) noexcept nogil:
    cdef wire_port *e = <wire_port *>self
    cdef uint32_t count = e.sent
    done[0] = e.sent_elements
    e.sent = 0
    return count


cdef void wire_rx_post(port_interface *self, burst *buffers) noexcept nogil:
    # The ring is the inlet's: what is left to us is what another guest's worker must not wait for.
    cdef wire_port *e = <wire_port *>self
    inlet_call(e.own, self.pair)
    inlet_look(e.own)


cdef uint32_t wire_rx_poll(port_interface *self, const used_element **done) noexcept nogil:
    return 0


cdef void wire_drain(port_interface *self) noexcept nogil:
    """A frame of which a part has gone is finished now; the others are offered to the next port."""
    cdef wire_port *e = <wire_port *>self
    cdef uint32_t end
    e.wait_ns = 0
    if e.frame.under_way:
        end = e.frames.end
        e.frames.end = e.frames.first + 1
        wire_tx_submit(self, e.frames)
        e.frames.end = end
    stop_waiting(e)
    inlet_call(e.own, self.pair)


cdef class WirePort(Port):
    """A queue pair's end of a wire.

    Args:
        network: what it joins.
        member: the guest's number there. pair: the queue pair's number in the guest.
        source: the only address that the guest may send from, 6 bytes; None for any, which is then learnt.
        ageing: after how many seconds of silence an address is forgotten.
        wait_us: how long a frame waits for its receiver's buffers, in microseconds.
    """

    def __cinit__(self):
        cdef wire_port *e = <wire_port *>calloc(1, sizeof(wire_port))
        if e == NULL:
            raise MemoryError
        self.port = &e.base
        e.base.rx_post = wire_rx_post
        e.base.rx_poll = wire_rx_poll
        e.base.tx_submit = wire_tx_submit
        e.base.tx_poll = wire_tx_poll
        e.base.drain = wire_drain
        e.base.keeps_receive_ring = True
        e.base.fd = -1

    def __init__(self, Network network, member, pair=0, *, bytes source=None, ageing=300, wait_us=10_000):
        cdef wire_port *e = <wire_port *>self.port
        self.network = network
        e.network = network.n
        e.member, e.pair = member, pair
        e.own = network._inlet(member, pair)
        e.source = 0 if source is None else address_at(source)
        e.ageing = ageing
        e.wait_ns = wait_us * 1000
        e.base.fd = e.waiter.fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def __dealloc__(self):
        if self.port != NULL and self.port.fd >= 0:
            os.close(self.port.fd)
        free(self.port)

    def open(self):
        """Let frames come, for the queue pair that has this port."""
        cdef wire_port *e = <wire_port *>self.port
        cdef network_member *m = &e.network.members[e.member]
        with nogil:
            inlet_open(e.own, e.base.pair, e.base.fd)
        # Release: the inlet is open before anybody finds it; pairs with open_inlet.
        store_release_u64(&m.open_pairs, m.open_pairs | <uint64_t>1 << e.pair)

    def close(self):
        """Let no more frames come: afterwards nobody else touches the guest's memory or its rings.

        To be called before the queue pair goes. Closing twice is harmless.
        """
        cdef wire_port *e = <wire_port *>self.port
        cdef network_member *m = &e.network.members[e.member]
        store_release_u64(&m.open_pairs, m.open_pairs & ~(<uint64_t>1 << e.pair))
        with nogil:
            inlet_close(e.own, e.base.pair)
