# cython: language_level=3
"""The tap port: frames between a guest's buffers and one queue of a TAP interface.

Every frame is a readv or writev on the buffers themselves, so the kernel's copy is the only one. A system
call for each frame is how a TAP interface works: it has no call for several. What makes it fast are frames
of 64 KiB, whose virtio_net_hdr the kernel reads and writes as the guest's driver does.

The virtio_net_hdr is always ours. One that is sent is a checked copy, which the guest cannot change
afterwards, and so are the frame's own headers if it asks for anything: the kernel gets those that were
looked at. One that is received comes into our memory first: the kernel's is not believed either, since a
frame may have been queued before TUNSETOFFLOAD, for a guest that accepted more.

Receiving is in tap_receive.pyx, sending here.
"""

from libc.errno cimport (
    EAGAIN,
    EBADFD,
    EFAULT,
    EINTR,
    EINVAL,
    EIO,
    ENETDOWN,
    ENOBUFS,
    ENOMEM,
    EOPNOTSUPP,
    errno,
)
from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset

from guestwire.datapath.abi cimport net_header, used_element
from guestwire.datapath.clock cimport now_ns
from guestwire.datapath.counters cimport (
    DROP_BAD_OFFLOAD,
    DROP_NO_BUFFERS,
    DROP_PORT,
    DROP_TOO_LONG,
    DROP_UNSENT,
    direction_counters,
)
from guestwire.datapath.frames cimport GOOD_FRAME, check_sent_frame
from guestwire.datapath.port cimport Port, pair_context, port_interface
from guestwire.datapath.ring cimport burst, chain, chain_segments
from guestwire.datapath.sent_frame cimport sent_frame, sent_frame_begin
from guestwire.datapath.tap_receive cimport tap_rx_poll, tap_rx_post

cdef enum:
    PATIENCE_NS = 1000000000        # how long the kernel may refuse a frame before it is dropped
    SEND_LATER = -2                 # beside GOOD_FRAME and DROP_...

# Nothing is negotiated that the kernel behind the interface does not do.
cdef uint64_t ALL_THAT_WAS_NEGOTIATED = ~<uint64_t>0


cdef int refused(tap_port *t) noexcept nogil:
    """Say what becomes of a frame that the kernel did not take, by errno."""
    cdef uint64_t now
    if errno == EINVAL:
        return DROP_BAD_OFFLOAD
    if errno in (EIO, ENETDOWN):
        return DROP_PORT
    if errno == EBADFD:
        t.base.gone = True
        return DROP_PORT
    if errno not in (EAGAIN, EINTR, ENOBUFS, ENOMEM):
        return DROP_UNSENT
    now = now_ns()
    if t.refused_since == 0:
        t.refused_since = now
    return SEND_LATER if now - t.refused_since < PATIENCE_NS else DROP_UNSENT


cdef int write_frame(tap_port *t, uint32_t count) noexcept nogil:
    """Write a frame that lies in `send_vectors`: a header of ours, and so many others."""
    cdef ssize_t sent = pwritev2(t.base.fd, t.send_vectors, 1 + count, -1, t.nowait)
    if sent < 0 and errno == EOPNOTSUPP and t.nowait:
        t.nowait = 0
        sent = pwritev2(t.base.fd, t.send_vectors, 1 + count, -1, 0)
    if sent >= 0:
        return GOOD_FRAME
    if errno == EFAULT:
        touch(&t.send_vectors[1], count)
        return DROP_UNSENT
    return refused(t)


cdef int send_offloads(
    tap_port *t, const burst *frames, const chain *c, const net_header *header
) noexcept nogil:
    """Send a frame that asks for something, its headers from a copy that was looked at."""
    cdef sent_frame *f = &t.frame
    cdef int reason = sent_frame_begin(f, t.base.pair, frames, c, header, ALL_THAT_WAS_NEGOTIATED)
    cdef uint32_t i
    if reason != GOOD_FRAME:
        return reason
    if f.piece_count >= MOST_VECTORS:
        return DROP_TOO_LONG
    if f.finishing:
        memset(&f.header, 0, sizeof(f.header))
    t.send_vectors[0].iov_base = &f.header
    for i in range(f.piece_count):
        t.send_vectors[1 + i].iov_base = <void *>f.pieces[i].data
        t.send_vectors[1 + i].iov_len = f.pieces[i].length
    return write_frame(t, f.piece_count)


cdef int send_frame(tap_port *t, const burst *frames, const chain *c, net_header *header) noexcept nogil:
    """Send a frame with a checked header; returns GOOD_FRAME, DROP_... or SEND_LATER."""
    cdef pair_context *pair = t.base.pair
    cdef iovec *vectors = t.send_vectors
    cdef uint32_t count = c.segment_count
    vectors[0].iov_len = pair.header_size
    if header.flags or header.gso_type:
        return send_offloads(t, frames, c, header)
    if count >= MOST_VECTORS:
        return DROP_TOO_LONG
    # The kernel looks at the rest all the same.
    memset(header, 0, sizeof(header[0]))
    vectors[0].iov_base = header
    list_segments(pair, chain_segments(frames, c), count, &vectors[1])
    leave_out(&vectors[1], pair.header_size)
    return write_frame(t, count)


cdef void count_sent(tap_port *t, int result, const net_header *header, uint32_t length) noexcept nogil:
    """Count a frame that was sent or dropped. One that only found no way out has left the guest, too."""
    cdef direction_counters *tx = &t.base.pair.counters.tx
    if result != GOOD_FRAME:
        tx.drops[result] += 1
        if result not in (DROP_PORT, DROP_UNSENT):
            return
    else:
        tx.direct_frames += 1
        tx.gso_frames += header.gso_type != 0
    tx.frames += 1
    tx.bytes += length


cdef void tap_tx_submit(port_interface *self, burst *frames) noexcept nogil:
    cdef tap_port *t = <tap_port *>self
    cdef pair_context *pair = self.pair
    cdef net_header header
    cdef const chain *c
    cdef int result
    t.sent = 0
    while frames.first < frames.end:
        c = &frames.chains[frames.first]
        result = check_sent_frame(pair, frames, c, t.longest_frame, &header)
        if result == GOOD_FRAME:
            result = send_frame(t, frames, c, &header)
        if result == SEND_LATER:
            t.held = True
            return
        t.refused_since = 0
        count_sent(t, result, &header, c.length - pair.header_size)
        t.sent_elements[t.sent].id = c.head
        t.sent_elements[t.sent].length = 0
        t.sent += 1
        frames.first += 1


cdef uint32_t tap_tx_poll(port_interface *self, const used_element **done) noexcept nogil:
    cdef tap_port *t = <tap_port *>self
    cdef uint32_t count = t.sent
    done[0] = t.sent_elements
    t.sent = 0
    # Nobody tells when the kernel takes frames again.
    self.busy = t.held
    if not t.held:
        t.refused_since = 0
    t.held = False
    return count


cdef void tap_drain(port_interface *self) noexcept nogil:
    # A frame that was written has left, and what the kernel refuses stays the guest's.
    pass


cdef class TapPort(Port):
    """One queue of a TAP interface for one queue pair.

    The interface's header size must be the pair's (TUNSETVNETHDRSZ), and the kernel must leave to the guest
    only what its driver accepted (TUNSETOFFLOAD).

    Args:
        fd: the queue, with O_NONBLOCK; borrowed, until `close`.
        longest_frame: bytes of the longest frame that is sent, unless the guest asks for segmentation.
        longest_received: bytes of the longest frame that may come.
    """

    def __cinit__(self):
        cdef tap_port *t = <tap_port *>calloc(1, sizeof(tap_port))
        if t == NULL:
            raise MemoryError
        self.port = &t.base
        t.base.rx_post = tap_rx_post
        t.base.rx_poll = tap_rx_poll
        t.base.tx_submit = tap_tx_submit
        t.base.tx_poll = tap_tx_poll
        t.base.drain = tap_drain
        t.base.fd = -1

    def __init__(self, fd, *, longest_frame, longest_received):
        cdef tap_port *t = <tap_port *>self.port
        t.base.fd = fd
        t.base.wants_buffers = True
        t.longest_frame, t.longest_received = longest_frame, longest_received
        # O_NONBLOCK belongs to the open file, which whoever gave it to us may share and change.
        t.nowait = RWF_NOWAIT

    def close(self):
        """Leave the queue alone from now on; the worker has ended. A frame that waits is dropped, counted."""
        cdef tap_port *t = <tap_port *>self.port
        t.base.fd = -1
        if t.waiting_length:
            t.waiting_length = 0
            t.base.pair.counters.rx.drops[DROP_NO_BUFFERS] += 1

    def __dealloc__(self):
        free(self.port)
