# cython: language_level=3
"""The receiving half of the tap port.

A frame is read into

    header | the waiting buffers, from behind the header's place | spill

as many buffers as the longest frame needs, if so many wait. The spill is larger than any frame, so the
kernel never cuts one off. What lies in it is copied to buffers that come later; meanwhile nothing is read.
"""

from libc.errno cimport EBADFD, EFAULT, EOPNOTSUPP, errno
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memset

from guestwire.datapath.abi cimport (
    VIRTIO_NET_F_GUEST_CSUM,
    VIRTIO_NET_F_GUEST_ECN,
    VIRTIO_NET_F_GUEST_TSO4,
    VIRTIO_NET_F_GUEST_TSO6,
    VIRTIO_NET_F_GUEST_USO4,
    VIRTIO_NET_F_GUEST_USO6,
    VIRTIO_NET_HDR_F_NEEDS_CSUM,
    VIRTIO_NET_HDR_GSO_ECN,
    VIRTIO_NET_HDR_GSO_TCPV4,
    VIRTIO_NET_HDR_GSO_TCPV6,
    VIRTIO_NET_HDR_GSO_UDP_L4,
    net_header,
    used_element,
)
from guestwire.datapath.counters cimport (
    COPY_FEW_BUFFERS,
    COPY_SCATTERED,
    DROP_NO_BUFFERS,
    DROP_NOT_NEGOTIATED,
    DROP_TOO_LONG,
    DROP_TOO_SHORT,
    direction_counters,
)
from guestwire.datapath.frames cimport (
    DELIVER_LATER,
    DELIVER_NEVER,
    ETHERNET_HEADER,
    GOOD_FRAME,
    LONGEST_GSO_FRAME,
    buffers_for,
    fill_chain,
)
from guestwire.datapath.port cimport pair_context, port_interface
from guestwire.datapath.ring cimport (
    BURST_CHAINS,
    BURST_SEGMENTS,
    burst,
    chain,
    chain_segments,
    first_used_segment,
)
from guestwire.datapath.tap cimport (
    MOST_VECTORS,
    SPILL_BYTES,
    iovec,
    leave_out,
    list_segments,
    preadv2,
    tap_port,
    touch,
)


cdef inline iovec *vectors_of(tap_port *t, uint32_t position) noexcept nogil:
    """Return the vectors of the chain at a position in the burst, or, at its end, the one behind the last."""
    return &t.vectors[t.vector_at[position]]


cdef void cover(tap_port *t) noexcept nogil:
    """Let the frame that is read next have the chains it may need, from the burst's front."""
    cdef pair_context *pair = t.base.pair
    cdef const burst *b = pair.buffers
    cdef uint32_t needed = pair.header_size + t.longest_received
    cdef iovec *front = vectors_of(t, t.first)
    cdef const chain *c
    if t.cover_end > t.first and b.chains[t.first].length < pair.header_size:
        # A frame could have ended in it, but none can begin there.
        t.cover_end, t.covered = t.first, 0
    # Not even one, if the kernel takes no such list or the header has no place: the spill is always there.
    while t.covered < needed and t.cover_end < t.end:
        c = &b.chains[t.cover_end]
        if vectors_of(t, t.cover_end) + c.segment_count - front > MOST_VECTORS - 2:
            break
        if t.cover_end == t.first and c.length < pair.header_size:
            break
        if t.cover_end > t.first and not pair.mergeable:
            break
        t.covered += min(c.length, needed)
        t.cover_end += 1
    # More chains than the burst has may do; a guest that cannot merge buffers has no use for them.
    t.base.wants_buffers = t.first == t.end or (
        pair.mergeable and t.covered < needed and t.cover_end == t.end)


cdef inline void begin_frame(tap_port *t) noexcept nogil:
    """Make the burst's first chain the one in which the next frame begins."""
    cdef iovec *front = vectors_of(t, t.first)
    cdef iovec *before = front - 1
    cover(t)
    before.iov_base = &t.header
    before.iov_len = t.base.pair.header_size
    if t.cover_end > t.first:
        leave_out(front, t.base.pair.header_size)


cdef void describe_buffers(tap_port *t) noexcept nogil:
    """Make the vectors of all chains in the burst."""
    cdef const burst *b = t.base.pair.buffers
    cdef const chain *c
    cdef uint32_t vector = 1
    cdef uint32_t i
    for i in range(b.first, b.end):
        c = &b.chains[i]
        t.vector_at[i] = vector
        list_segments(t.base.pair, chain_segments(b, c), c.segment_count, &t.vectors[vector])
        vector += c.segment_count
    t.vector_at[b.end] = vector
    t.first, t.end = b.first, b.end
    t.cover_end, t.covered = b.first, 0
    begin_frame(t)


cdef void take_chains(tap_port *t, uint32_t count) noexcept nogil:
    """The frame is delivered: go on behind its chains."""
    cdef burst *b = t.base.pair.buffers
    cdef uint32_t needed = t.base.pair.header_size + t.longest_received
    cdef uint32_t i
    for i in range(b.first, b.first + count):
        if i < t.cover_end:
            t.covered -= min(b.chains[i].length, needed)
    b.first += count
    t.first = b.first
    t.cover_end = max(t.cover_end, b.first)
    begin_frame(t)


cdef uint64_t features_needed(const net_header *header) noexcept nogil:
    """Return the features by which a guest accepts what a received header says (virtio 1.3, 5.1.6.4)."""
    cdef uint64_t needed = VIRTIO_NET_F_GUEST_CSUM
    cdef uint8_t kind = header.gso_type & ~VIRTIO_NET_HDR_GSO_ECN
    if header.gso_type & VIRTIO_NET_HDR_GSO_ECN:
        needed |= VIRTIO_NET_F_GUEST_ECN
    if kind == VIRTIO_NET_HDR_GSO_TCPV4:
        return needed | VIRTIO_NET_F_GUEST_TSO4
    if kind == VIRTIO_NET_HDR_GSO_TCPV6:
        return needed | VIRTIO_NET_F_GUEST_TSO6
    if kind == VIRTIO_NET_HDR_GSO_UDP_L4:
        return needed | VIRTIO_NET_F_GUEST_USO4 | VIRTIO_NET_F_GUEST_USO6
    return needed if header.gso_type == 0 else ~<uint64_t>0


cdef int refuse(const pair_context *pair, net_header *header, uint32_t length) noexcept nogil:
    """Return why the guest must not get the frame that was just read, or GOOD_FRAME.

    Where the guest accepted nothing, nothing is said to it.
    """
    if length < ETHERNET_HEADER:
        return DROP_TOO_SHORT
    if length > LONGEST_GSO_FRAME:
        return DROP_TOO_LONG
    if header.gso_type or header.flags & VIRTIO_NET_HDR_F_NEEDS_CSUM:
        return DROP_NOT_NEGOTIATED if features_needed(header) & ~pair.offloads else GOOD_FRAME
    if not pair.offloads & VIRTIO_NET_F_GUEST_CSUM:
        memset(header, 0, sizeof(header[0]))
    return GOOD_FRAME


cdef int chains_for(const pair_context *pair, uint32_t total) noexcept nogil:
    """How many of the waiting chains a frame takes, DELIVER_LATER or DELIVER_NEVER."""
    cdef const burst *b = pair.buffers
    cdef int chains = buffers_for(pair, total)
    # Chains of so many small pieces that the burst may have no place for another one: none may come.
    if (chains == DELIVER_LATER and b.first < b.end
            and b.segment_end - first_used_segment(b) > BURST_SEGMENTS // 2):
        return DELIVER_NEVER
    return chains


cdef uint32_t put(tap_port *t, uint32_t total, uint32_t placed, uint32_t chains) noexcept nogil:
    """Give the frame that was read last to the guest, in the first `chains` chains.

    `placed` of them hold their part already, what follows comes from the spill. Returns the bytes of that.
    """
    cdef pair_context *pair = t.base.pair
    cdef burst *b = pair.buffers
    cdef const uint8_t *rest = t.spill
    cdef uint32_t left = total
    cdef uint32_t k, part, skip
    cdef chain *c
    t.header.num_buffers = chains
    fill_chain(pair, b, &b.chains[b.first], 0, <const uint8_t *>&t.header, pair.header_size)
    for k in range(chains):
        c = &b.chains[b.first + k]
        part = min(c.length, left)
        if k >= placed:
            skip = pair.header_size if k == 0 else 0
            fill_chain(pair, b, c, skip, rest, part - skip)
            rest += part - skip
        t.received_elements[t.received].id = c.head
        t.received_elements[t.received].length = part
        t.received += 1
        left -= part
    return rest - t.spill


cdef bint deliver(tap_port *t, uint32_t total, uint32_t placed, bint waited) noexcept nogil:
    """Give the frame that was read last to the guest, or drop it; return False if it must wait."""
    cdef pair_context *pair = t.base.pair
    cdef direction_counters *rx = &pair.counters.rx
    cdef int chains = chains_for(pair, total)
    cdef uint32_t copied
    if chains == DELIVER_LATER:
        return False
    if chains == DELIVER_NEVER:
        rx.drops[DROP_TOO_LONG] += 1
        return True
    copied = put(t, total, placed, chains)
    rx.frames += 1
    rx.bytes += total - pair.header_size
    rx.gso_frames += t.header.gso_type != 0
    if copied:
        rx.copied_frames[COPY_FEW_BUFFERS if waited else COPY_SCATTERED] += 1
        rx.copied_bytes += copied
    else:
        rx.direct_frames += 1
    take_chains(t, chains)
    return True


cdef int read_frame(tap_port *t) noexcept nogil:
    """Read a frame; return its length with the header, 0 if there is none."""
    cdef pair_context *pair = t.base.pair
    cdef iovec *front = vectors_of(t, t.first) - 1
    cdef iovec *behind = vectors_of(t, t.cover_end)
    cdef iovec kept = behind[0]
    cdef ssize_t length
    behind.iov_base = t.spill
    behind.iov_len = SPILL_BYTES
    length = preadv2(t.base.fd, front, behind - front + 1, -1, t.nowait)
    if length < 0 and errno == EOPNOTSUPP and t.nowait:
        t.nowait = 0
        length = preadv2(t.base.fd, front, behind - front + 1, -1, 0)
    behind[0] = kept
    if length > 0:
        return length
    if length < 0 and errno == EBADFD:
        t.base.gone = True
    elif length < 0 and errno == EFAULT:
        touch(front + 1, behind - front - 1)
        pair.counters.rx.drops[DROP_NO_BUFFERS] += 1
    return 0


cdef void receive_frames(tap_port *t) noexcept nogil:
    """Read frames until there are none, or the burst's buffers are used.

    Also until more buffers are wanted: the ring may have them, and then the next pass need not copy.
    """
    cdef pair_context *pair = t.base.pair
    cdef uint32_t placed
    cdef int total, reason
    cdef uint32_t reads = 0     # a peer that sends what is dropped must not keep us for ever
    while reads < BURST_CHAINS and t.first < t.end and not (t.received and t.base.wants_buffers):
        total = read_frame(t)
        if total == 0:
            return
        reads += 1
        t.base.progress = True
        reason = refuse(pair, &t.header, total - min(<uint32_t>total, <uint32_t>pair.header_size))
        if reason != GOOD_FRAME:
            pair.counters.rx.drops[reason] += 1
            continue
        placed = t.cover_end - t.first
        if not deliver(t, total, placed, False):
            t.waiting_length, t.waiting_chains = total, placed
            t.base.wants_buffers = True
            return


cdef uint32_t tap_rx_poll(port_interface *self, const used_element **done) noexcept nogil:
    cdef tap_port *t = <tap_port *>self
    cdef burst *b = self.pair.buffers
    t.received = 0
    done[0] = t.received_elements
    if self.fd < 0:
        return 0
    if b.first != t.first or b.end != t.end:
        # Chains were added: those that wait moved to the burst's front.
        describe_buffers(t)
    if t.waiting_length:
        if not deliver(t, t.waiting_length, t.waiting_chains, True):
            self.wants_buffers = True
            return 0
        t.waiting_length = 0
    receive_frames(t)
    return t.received


cdef void tap_rx_post(port_interface *self, burst *buffers) noexcept nogil:
    # Buffers stay where they are: rx_poll takes them as frames come.
    pass
