# cython: language_level=3
"""A port that sends every frame back to the guest it came from: one copy, straight between guest buffers."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free

from guestwire.datapath.abi cimport net_header, used_element
from guestwire.datapath.counters cimport (
    COPY_PORT,
    DROP_RING_DISABLED,
    DROP_TOO_LONG,
    direction_counters,
    pair_counters,
)
from guestwire.datapath.frames cimport (
    DELIVER_LATER,
    DELIVER_NEVER,
    GOOD_FRAME,
    HEADER_FIELDS,
    LONGEST_FRAME,
    check_sent_frame,
    deliver,
    deliver_run,
    fill_chain,
    frame_pieces,
    piece,
)
from guestwire.datapath.port cimport Port, pair_context, port_interface
from guestwire.datapath.sent_frame cimport sent_frame, sent_frame_begin, sent_frame_next
from guestwire.datapath.ring cimport BURST_CHAINS, BURST_SEGMENTS, burst, chain, put_element

cdef enum:
    ECHO_ELEMENTS = 2 * BURST_CHAINS    # a frame is begun with BURST_CHAINS left, and takes no more
    NO_ROOM = -2            # for the frame, yet; never GOOD_FRAME or DROP_...

cdef struct echo_port:
    port_interface base
    uint32_t sent
    uint32_t received
    used_element sent_elements[BURST_CHAINS]
    used_element received_elements[ECHO_ELEMENTS]
    piece pieces[BURST_SEGMENTS]
    sent_frame frame            # the one with offloads that is under way


cdef void echo_rx_post(port_interface *self, burst *buffers) noexcept nogil:
    # Buffers stay where they are: tx_submit takes them as frames come.
    pass


cdef inline bint give_back(
    echo_port *e, pair_context *pair, direction_counters *rx,
    const piece *pieces, uint32_t count, uint32_t length
) noexcept nogil:
    """Deliver a frame; returns False if there is no room for it yet."""
    cdef int buffers = DELIVER_NEVER
    if pair.receiving:
        buffers = deliver(pair, pieces, count, length, &e.received_elements[e.received])
    if buffers == DELIVER_LATER:
        return False
    if buffers == DELIVER_NEVER:
        rx.drops[DROP_TOO_LONG if pair.receiving else DROP_RING_DISABLED] += 1
    else:
        rx.frames += 1
        rx.bytes += length
        e.received += buffers
    return True


cdef int give_back_offloads(
    echo_port *e, const burst *frames, const chain *c, const net_header *header
) noexcept nogil:
    """Deliver what a frame with offloads becomes; returns GOOD_FRAME, DROP_... or NO_ROOM.

    After NO_ROOM the frame is under way, and the next call goes on with it.
    """
    cdef pair_context *pair = e.base.pair
    cdef direction_counters *rx = &pair.counters.rx
    cdef sent_frame *f = &e.frame
    cdef uint32_t first
    cdef int reason
    if not f.under_way:
        reason = sent_frame_begin(f, pair, frames, c, header, pair.offloads)
        if reason != GOOD_FRAME:
            return reason
        f.under_way = True
    while f.under_way:
        first = pair.buffers.first
        if e.received >= BURST_CHAINS:
            return NO_ROOM
        if not give_back(e, pair, rx, f.pieces, f.piece_count, f.wire_length):
            return NO_ROOM
        if f.header.flags and first < pair.buffers.first:
            fill_chain(
                pair, pair.buffers, &pair.buffers.chains[first], 0, <const uint8_t *>&f.header, HEADER_FIELDS)
            rx.gso_frames += f.large
            rx.checksums += 1
        f.under_way = sent_frame_next(f, pair)
    pair.counters.tx.gso_frames += f.large
    return GOOD_FRAME


cdef inline int give_back_frame(
    echo_port *e, pair_context *pair, pair_counters *counters,
    const burst *frames, const chain *c, uint32_t length
) noexcept nogil:
    """Deliver a frame; returns GOOD_FRAME, DROP_... or NO_ROOM."""
    cdef net_header header
    cdef uint32_t count
    cdef int reason
    if e.frame.under_way:
        return give_back_offloads(e, frames, c, NULL)
    reason = check_sent_frame(pair, frames, c, LONGEST_FRAME, &header)
    if reason != GOOD_FRAME:
        return reason
    if header.flags or header.gso_type:
        return give_back_offloads(e, frames, c, &header)
    count = frame_pieces(pair, frames, c, e.pieces, BURST_SEGMENTS)
    return GOOD_FRAME if give_back(e, pair, &counters.rx, e.pieces, count, length) else NO_ROOM


cdef void give_back_run(echo_port *e, burst *frames) noexcept nogil:
    """Deliver frames as long as they are common ones."""
    cdef pair_context *pair = e.base.pair
    cdef uint64_t octets
    cdef uint32_t count = deliver_run(
        pair, frames, pair, ECHO_ELEMENTS - e.received,
        &e.sent_elements[e.sent], &e.received_elements[e.received], &octets, NULL)
    frames.first += count
    e.sent += count
    e.received += count
    pair.counters.tx.frames += count
    pair.counters.tx.bytes += octets
    pair.counters.rx.frames += count
    pair.counters.rx.bytes += octets


cdef bint give_back_other(echo_port *e, burst *frames) noexcept nogil:
    """Deliver the next frame, or count it as dropped; returns False if there is no room for it yet."""
    cdef pair_context *pair = e.base.pair
    cdef pair_counters *counters = pair.counters
    cdef chain *c = &frames.chains[frames.first]
    cdef uint32_t length = c.length - pair.header_size
    cdef int reason = give_back_frame(e, pair, counters, frames, c, length)
    if reason == NO_ROOM:
        return False
    if reason == GOOD_FRAME:
        counters.tx.frames += 1
        counters.tx.bytes += length
    else:
        counters.tx.drops[reason] += 1
    put_element(&e.sent_elements[e.sent], c.head, 0)
    e.sent += 1
    frames.first += 1
    return True


cdef void echo_tx_submit(port_interface *self, burst *frames) noexcept nogil:
    cdef echo_port *e = <echo_port *>self
    cdef direction_counters *rx = &self.pair.counters.rx
    cdef uint64_t frames_before = rx.frames
    cdef uint64_t bytes_before = rx.bytes
    while True:
        if self.pair.receiving and not e.frame.under_way:
            give_back_run(e, frames)
        if frames.first == frames.end or e.received >= BURST_CHAINS or not give_back_other(e, frames):
            break
    # All that arrives was copied.
    rx.copied_frames[COPY_PORT] += rx.frames - frames_before
    rx.copied_bytes += rx.bytes - bytes_before
    self.under_way = e.frame.under_way
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

    A frame waits in the transmit ring until the guest offers receive buffers for it: none is lost. What its
    virtio_net_hdr asks for comes back with it if the guest accepts that, else we do it.
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
