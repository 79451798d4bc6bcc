# cython: language_level=3
"""What happens to a buffer when a frame arrives in it; see xdp_arrivals.pxd."""

from guestwire.datapath.counters cimport DROP_NO_BUFFERS, DROP_TOO_LONG
from guestwire.datapath.frames cimport DELIVER_NEVER, deliver
from guestwire.datapath.port cimport pair_context
from guestwire.datapath.receive_checksum cimport finish_checksum
from guestwire.datapath.ring cimport chain_segments
from guestwire.datapath.xdp cimport NO_HEAD, WITH_THE_KERNEL
from guestwire.datapath.xdp_post cimport chains_waiting


cdef posted_buffer *find_posted(xdp_port *x, uint64_t address) noexcept nogil:
    """The entry for an arrival. The kernel keeps the order but for buffers it had to put back."""
    cdef uint32_t i = x.posted_first
    cdef posted_buffer *e
    while i != x.posted_end:
        e = &x.posted[i & x.posted_mask]
        if e.address == address and e.state == WITH_THE_KERNEL:
            return e
        i += 1
    return NULL


cdef void finish_posted(xdp_port *x, posted_buffer *e) noexcept nogil:
    e.state = ARRIVED
    if e.head == NO_HEAD:
        x.spare_posted -= 1
    else:
        x.chains_posted -= 1
    if e.frame != GUEST_BUFFER:
        x.free_frames[x.free_count] = e.frame
        x.free_count += 1
    skip_arrived(x)


cdef void count_copied(pair_counters *counters, uint32_t reason, uint32_t length) noexcept nogil:
    counters.rx.frames += 1
    counters.rx.bytes += length
    counters.rx.copied_frames[reason] += 1
    counters.rx.copied_bytes += length


cdef void finish_before_copy(
    xdp_port *x, const piece *pieces, uint32_t count, uint32_t length
) noexcept nogil:
    """Complete the checksum of a frame in bounce frames that will not lie in one piece in the guest."""
    cdef net_header found
    if finish_checksum(pieces, count, length, &found, False):
        x.base.pair.counters.rx.checksums += 1


cdef int deliver_copy(
    xdp_port *x, const piece *pieces, uint32_t count, uint32_t length, const net_header *header
) noexcept nogil:
    """Copy a frame from bounce frames to the guest's next chains; returns what `deliver` does."""
    cdef pair_context *pair = x.base.pair
    cdef uint32_t next = pair.buffers.first
    cdef bint in_one_piece = next != pair.buffers.end and (
        chain_segments(pair.buffers, &pair.buffers.chains[next]).length >= pair.header_size + length)
    cdef int buffers, i
    if x.finish_checksums and not in_one_piece and header == NULL:
        finish_before_copy(x, pieces, count, length)
    buffers = deliver(pair, pieces, count, length, &x.received_elements[x.received])
    if buffers <= 0:
        return buffers
    for i in range(buffers):
        x.received_at[x.received + i] = 0
    if header != NULL:
        write_offload(x, pair.buffers.chains[next].offset, header)
    elif in_one_piece:
        x.received_at[x.received] = pair.buffers.chains[next].offset
    x.received += buffers
    x.overtaken = x.posted_end
    return buffers


cdef bint must_wait(xdp_port *x) noexcept nogil:
    """Tell whether a frame for which there are no buffers waits; otherwise it is lost."""
    if x.chains_posted and chains_waiting(x, x.base.pair.buffers) <= (
            x.base.pair.buffers.end - x.base.pair.buffers.first):
        # Waiting could be for ever: the guest offers more only when it gets back what it has posted,
        # and that is behind this frame.
        x.base.pair.counters.rx.drops[DROP_NO_BUFFERS] += 1
        return False
    # Until the worker has taken more chains from the ring, or the guest offers some.
    x.base.wants_buffers = True
    return True


cdef bint arrive_in_spares(
    xdp_port *x, const piece *pieces, uint32_t count, uint32_t length, uint8_t reason,
    const net_header *header
) noexcept nogil:
    """A frame in spare bounce frames: copy it to the next chains. Returns False if it has to wait.

    `header` is what the guest is told of it: NULL for nothing, else its virtio_net_hdr is in one piece.
    """
    cdef int buffers = deliver_copy(x, pieces, count, length, header)
    if buffers > 0:
        count_copied(x.base.pair.counters, reason, length)
    elif buffers == DELIVER_NEVER:
        x.base.pair.counters.rx.drops[DROP_TOO_LONG] += 1
    elif must_wait(x):
        return False
    return True
