# cython: language_level=3
"""A frame's way over a wire: its addresses are read, its source is learnt, it is delivered; see wire.pyx."""

from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memcpy

from guestwire.datapath.abi cimport net_header
from guestwire.datapath.addresses cimport (
    NOWHERE,
    addresses_find,
    addresses_is_news,
    addresses_learn,
)
from guestwire.datapath.atomics cimport load_relaxed_u32
from guestwire.datapath.clock cimport now_ns
from guestwire.datapath.counters cimport (
    DROP_NO_BUFFERS,
    DROP_PORT,
    DROP_RING_DISABLED,
    DROP_SOURCE_ADDRESS,
)
from guestwire.datapath.frames cimport (
    ADDRESSES,
    DELIVER_LATER,
    GOOD_FRAME,
    LONGEST_FRAME,
    check_sent_frame,
    deliver_run,
    frame_addresses,
    frame_pieces,
)
from guestwire.datapath.inlet cimport (
    INLET_ELEMENTS,
    inlet,
    inlet_await,
    inlet_deliver,
    inlet_drop,
    inlet_enter,
    inlet_is_able,
    inlet_leave,
    inlet_push,
)
from guestwire.datapath.network cimport open_inlet
from guestwire.datapath.port cimport pair_context
from guestwire.datapath.ring cimport BURST_CHAINS, BURST_SEGMENTS, burst, chain, chain_segments
from guestwire.datapath.sent_frame cimport sent_frame, sent_frame_begin, sent_frame_next
from guestwire.datapath.wire cimport wire_port

cdef enum:
    SPIN_NS = 20000             # how long a frame waits before its receiver is asked for a kick


# --- where a frame goes ---------------------------------------------------------------------------------

cdef inline uint64_t destination_of(const frame_addresses *a) noexcept nogil:
    return a.first & <uint64_t>0xFFFFFFFFFFFF


cdef void learn(wire_port *e, uint64_t source) noexcept nogil:
    cdef uint64_t until = e.now + e.ageing
    if not source & 1 and addresses_is_news(&e.network.table, source, e.member, e.now, until):
        wire_leave(e)       # nobody holds two locks
        addresses_learn(&e.network.table, source, e.member, e.now, until)
    e.source_known = source
    e.source_known_until = e.now + 1


cdef inline int learn_source(wire_port *e) noexcept nogil:
    """Note where the frame comes from: GOOD_FRAME, or DROP_... if the guest may not send from there."""
    cdef uint64_t source = e.addresses.first >> 48 | <uint64_t>e.addresses.last << 16
    if e.source:
        return GOOD_FRAME if source == e.source else DROP_SOURCE_ADDRESS
    if source != e.source_known or e.now >= e.source_known_until:
        learn(e, source)
    return GOOD_FRAME


# --- delivering -----------------------------------------------------------------------------------------

cdef void wire_leave(wire_port *e) noexcept nogil:
    if e.entered != NULL:
        inlet_leave(e.entered)
        e.entered = NULL


cdef inline bint enter(wire_port *e, inlet *i) noexcept nogil:
    """Be the one who delivers there, and nowhere else; return whether it takes frames."""
    if e.entered != i:
        wire_leave(e)
        e.able = inlet_enter(i)
        e.entered = i
    return e.able


cdef uint32_t frames_left(const wire_port *e) noexcept nogil:
    """Return how many frames on the wire are left of the frame that is being delivered."""
    if e.frame.under_way and e.frame.finishing:
        return 1 + e.frame.segmenter.segment_count - e.frame.segmenter.segment
    return 1


cdef int give_offloads(
    wire_port *e, const burst *frames, const chain *c, const net_header *header, inlet *i
) noexcept nogil:
    """Deliver what a frame with offloads becomes for this guest; returns GOOD_FRAME, DROP_... or WAITS."""
    cdef pair_context *pair = e.base.pair
    cdef sent_frame *f = &e.frame
    cdef int reason
    if not f.under_way:
        reason = sent_frame_begin(f, pair, frames, c, header, i.pair.offloads)
        if reason != GOOD_FRAME:
            return reason
        f.under_way = True
    while f.under_way:
        if inlet_deliver(
                i, f.pieces, f.piece_count, f.wire_length, &e.addresses, &f.header) == DELIVER_LATER:
            return WAITS
        f.under_way = sent_frame_next(f, pair)
    pair.counters.tx.gso_frames += f.large
    return GOOD_FRAME


cdef bint may_wait(wire_port *e, inlet *i) noexcept nogil:
    """Wait for buffers at the inlet, which is entered; return whether there is time left for that."""
    cdef uint64_t now
    if i.stalled or e.wait_ns == 0:
        return False
    now = now_ns()
    if e.waits_since == 0:
        e.waits_since = now
    if now - e.waits_since >= e.wait_ns:
        i.stalled = True
        return False
    if now - e.waits_since < SPIN_NS:
        # A driver that is at work offers buffers soon, and need not be troubled for a kick.
        e.base.progress = True
    else:
        inlet_await(i, &e.waiter)
        e.waits_at = i
    return True


cdef int put_off(wire_port *e, inlet *i, bint patient) noexcept nogil:
    """Let a frame that cannot be delivered now wait (WAITS), or count it as dropped (GOOD_FRAME)."""
    if not inlet_is_able(i):
        inlet_drop(i, DROP_RING_DISABLED, frames_left(e))
    elif patient and may_wait(e, i):
        e.target = i
        # One that is passed on as it is begins anew: by then its receiver may accept less.
        e.frame.under_way = e.frame.under_way and e.frame.finishing
        return WAITS
    else:
        inlet_drop(i, DROP_NO_BUFFERS, frames_left(e))
    e.frame.under_way = False
    return GOOD_FRAME


cdef int give_otherwise(
    wire_port *e, const burst *frames, const chain *c, const net_header *header, inlet *i, bint patient
) noexcept nogil:
    """The same for a frame with offloads, or for a guest that takes none."""
    cdef int reason
    if i.pair == NULL:
        e.frame.under_way = False
        return DROP_PORT
    if e.able:
        reason = give_offloads(e, frames, c, header, i)
        if reason != WAITS:
            return reason
    return put_off(e, i, patient)


cdef inline int give(
    wire_port *e, const burst *frames, const chain *c, const net_header *header, inlet *i, bint patient
) noexcept nogil:
    """Deliver a frame to one guest, or count it there as dropped; returns GOOD_FRAME, DROP_... or WAITS.

    DROP_PORT means that the guest has just gone. WAITS is for a patient sender only.
    """
    cdef uint32_t count
    if not enter(e, i) or e.frame.under_way or header.flags or header.gso_type:
        return give_otherwise(e, frames, c, header, i, patient)
    count = frame_pieces(e.base.pair, frames, c, e.pieces, BURST_SEGMENTS)
    if inlet_deliver(
            i, e.pieces, count, c.length - e.base.pair.header_size, &e.addresses, NULL) == DELIVER_LATER:
        return put_off(e, i, patient)
    return GOOD_FRAME


cdef int flood(wire_port *e, const burst *frames, const chain *c, const net_header *header) noexcept nogil:
    """Deliver a frame to everybody else; returns GOOD_FRAME or DROP_... ."""
    cdef inlet *i
    cdef int reason
    cdef int result = DROP_PORT
    cdef uint32_t number
    for number in range(load_relaxed_u32(&e.network.member_end)):
        if number == e.member:
            continue
        i = open_inlet(&e.network.members[number], e.pair)
        if i == NULL:
            continue
        reason = give(e, frames, c, header, i, False)
        if reason == GOOD_FRAME:
            result = GOOD_FRAME
        elif reason != DROP_PORT:
            return reason       # the frame is as bad for the others
    return result


cdef inline inlet *find(wire_port *e, uint64_t destination, bint *known) noexcept nogil:
    """Return where frames for an address go: NULL if it is not known, or nobody has it now."""
    cdef int number = addresses_find(&e.network.table, destination, e.now)
    known[0] = number != NOWHERE
    if number == NOWHERE or number == <int>e.member:
        return NULL
    return open_inlet(&e.network.members[number], e.pair)


cdef int forward(wire_port *e, const burst *frames, const chain *c, const net_header *header) noexcept nogil:
    cdef uint64_t destination = destination_of(&e.addresses)
    cdef bint known
    if destination != e.destination or e.destination_inlet == NULL:
        if destination & 1:
            return flood(e, frames, c, header)
        e.destination = destination
        e.destination_inlet = find(e, destination, &known)
        if not known:
            return flood(e, frames, c, header)
        if e.destination_inlet == NULL:
            return DROP_PORT
    return give(e, frames, c, header, e.destination_inlet, True)


cdef void read_addresses(wire_port *e, const burst *frames, const chain *c) noexcept nogil:
    """Read the addresses of a frame, once, wherever its bytes lie."""
    cdef uint32_t filled = 0
    cdef uint32_t n = 0
    cdef uint32_t part
    frame_pieces(e.base.pair, frames, c, e.pieces, BURST_SEGMENTS)
    while filled < ADDRESSES:
        part = min(e.pieces[n].length, ADDRESSES - filled)
        memcpy(<char *>&e.addresses + filled, e.pieces[n].data, part)
        filled += part
        n += 1


cdef int wire_send(wire_port *e, const burst *frames, const chain *c) noexcept nogil:
    cdef pair_context *pair = e.base.pair
    cdef net_header header
    cdef int reason
    if e.frame.under_way:
        return give(e, frames, c, &e.frame.header, e.target, True)
    reason = check_sent_frame(pair, frames, c, LONGEST_FRAME, &header)
    if reason != GOOD_FRAME:
        return reason
    if chain_segments(frames, c).length >= pair.header_size + <uint32_t>ADDRESSES:
        memcpy(&e.addresses, pair.window.base + c.offset + pair.header_size, ADDRESSES)
    else:
        read_addresses(e, frames, c)
    reason = learn_source(e)
    if reason != GOOD_FRAME:
        return reason
    return forward(e, frames, c, &header)


cdef void wire_send_run(wire_port *e, burst *frames) noexcept nogil:
    cdef inlet *i = e.entered
    cdef pair_context *pair = e.base.pair
    cdef uint32_t count
    cdef uint64_t octets
    if (i == NULL or i != e.destination_inlet or not e.able
            or destination_of(&e.addresses) != e.destination):
        return
    # The source is what it was, so it is allowed, and known.
    count = deliver_run(
        pair, frames, i.pair, INLET_ELEMENTS - i.element_count,
        &e.sent_elements[e.sent], &i.elements[i.element_count], &octets, &e.addresses)
    frames.first += count
    e.sent += count
    i.element_count += count
    pair.counters.tx.frames += count
    pair.counters.tx.bytes += octets
    i.pair.counters.rx.frames += count
    i.pair.counters.rx.bytes += octets
    if i.element_count > BURST_CHAINS:
        inlet_push(i)
