# cython: language_level=3
"""The loop through which all traffic of a queue pair goes, without the GIL.

Take back what was sent, send a burst, take and verify what arrived and offer the buffers again; if
nothing moved, poll on or sleep until the device calls. It returns to Python after each slice of time, so
that signals are seen.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec

from guestwire.datapath.abi cimport (
    VIRTIO_NET_F_GUEST_CSUM,
    VIRTIO_NET_F_GUEST_ECN,
    VIRTIO_NET_F_GUEST_TSO4,
    VIRTIO_NET_F_GUEST_TSO6,
    VIRTIO_NET_F_GUEST_USO4,
    VIRTIO_NET_F_GUEST_USO6,
    VIRTIO_NET_HDR_F_DATA_VALID,
    VIRTIO_NET_HDR_F_NEEDS_CSUM,
    VIRTIO_NET_HDR_GSO_ECN,
    VIRTIO_NET_HDR_GSO_NONE,
    VIRTIO_NET_HDR_GSO_TCPV4,
    VIRTIO_NET_HDR_GSO_TCPV6,
    VIRTIO_NET_HDR_GSO_UDP_L4,
    net_header,
)
from guestwire.datapath.atomics cimport cpu_relax
from guestwire.testing.driver_ring cimport (
    BUFFER_NOT_FULL,
    DEVICE_OK,
    NET_HEADER,
    NUM_BUFFERS,
    SENT_CHANGED,
    USED_INDEX,
    USED_LENGTH,
    WRITTEN_BEYOND,
    buffer_at,
    buffer_offer,
    buffer_read,
    buffer_write,
    device_fault,
    driver_ring,
    is_unwritten,
    ring_decline_calls,
    ring_in_flight,
    ring_kick,
    ring_post,
    ring_publish,
    ring_request_call,
    ring_take,
    ring_take_call,
    ring_used,
)
from guestwire.testing.frame_pattern cimport pattern_length, pattern_matches, pattern_write
from guestwire.testing.frame_stream cimport ARRIVED, frame_stream, stream_accept

cdef extern from "<poll.h>" nogil:
    struct pollfd:
        int fd
        short events
    int poll(pollfd *fds, unsigned long count, int timeout)
    const short POLLIN

cdef extern from "<sched.h>" nogil:
    int sched_yield()

cdef enum:
    SLICE_MS = 50               # how long the loop keeps from Python
    SPINS = 256                 # empty turns before the core is offered to others
    BURST_MOST = 64             # used buffers taken in one turn


cdef uint64_t now_ns() noexcept nogil:
    """Return the time since some fixed moment."""
    cdef timespec t
    clock_gettime(CLOCK_MONOTONIC, &t)
    return <uint64_t>t.tv_sec * 1000000000 + t.tv_nsec


cdef inline int broken(run_state *s, driver_ring *r, device_fault fault) noexcept nogil:
    s.fault = fault
    s.faulty = r
    return -1


# The steps return how many buffers or frames they moved, or -1 after `broken` or an odd arrival.

cdef int take_back(run_state *s) noexcept nogil:
    """Take back the transmit buffers that the device has used."""
    cdef driver_ring *r = s.transmit
    cdef uint16_t count = ring_used(r)
    cdef uint16_t _, buffer
    cdef uint32_t length
    cdef device_fault fault
    if count > ring_in_flight(r):
        return broken(s, r, USED_INDEX)
    for _ in range(count):
        fault = ring_take(r, &buffer, &length)
        if fault != DEVICE_OK:
            return broken(s, r, fault)
        if s.verify_sent and s.to_send != NULL and not is_unchanged(s, buffer):
            return broken(s, r, SENT_CHANGED)
    if count:
        ring_decline_calls(r)
        s.taken_back += count
    return count


cdef bint is_unchanged(run_state *s, uint16_t buffer) noexcept nogil:
    """Whether a transmit buffer still holds the frame that was sent from it."""
    cdef driver_ring *r = s.transmit
    cdef uint64_t sequence = r.sequence[buffer]
    cdef uint32_t length = r.described[buffer] - r.header_size
    if sequence == <uint64_t>NO_SEQUENCE:
        return True
    buffer_read(r, buffer, r.header_size, s.received, length)
    return pattern_matches(&s.to_send.pattern, sequence, s.received, length)


cdef int send_burst(run_state *s) noexcept nogil:
    """Send as many frames as are wanted, have buffers, and fit the window, at most a burst."""
    cdef driver_ring *r = s.transmit
    cdef frame_stream *stream = s.to_send
    cdef uint64_t count = min(min(s.send_end - stream.sent, <uint64_t>s.burst), <uint64_t>r.free_count)
    cdef uint64_t _, away, back
    cdef uint16_t buffer
    cdef uint32_t length
    if s.to_receive != NULL:
        away = stream.sent - s.send_start
        back = s.to_receive.received + s.to_receive.lost - s.receive_start
        away -= min(away, back)
        count = min(count, s.window - min(s.window, away))
    for _ in range(count):
        r.free_count -= 1
        buffer = r.free[r.free_count]
        length = pattern_length(&stream.pattern, stream.sent)
        if r.contiguous:
            if r.header_size == sizeof(net_header):
                memcpy(buffer_at(r, buffer) + r.header_offset, stream.header, sizeof(net_header))
            else:
                memcpy(buffer_at(r, buffer) + r.header_offset, stream.header, r.header_size)
            pattern_write(&stream.pattern, stream.sent, buffer_at(r, buffer) + r.frame_offset, length)
        else:
            memcpy(s.received, stream.header, r.header_size)
            pattern_write(&stream.pattern, stream.sent, s.received + r.header_size, length)
            buffer_write(r, buffer, 0, s.received, r.header_size + length)
        r.sequence[buffer] = stream.sent
        stream.sent += 1
        buffer_offer(r, buffer, r.header_size + length)
    if ring_publish(r):
        ring_kick(r)
    return count


cdef bint is_negotiated(const run_state *s) noexcept nogil:
    """Whether a virtio_net_hdr names only offloads that were negotiated, and together (5.1.6.4.1)."""
    cdef const net_header *h = &s.header
    cdef uint8_t kind = h.gso_type & ~VIRTIO_NET_HDR_GSO_ECN
    cdef uint64_t allowed = 0       # any of these features
    if h.flags & ~(VIRTIO_NET_HDR_F_NEEDS_CSUM | VIRTIO_NET_HDR_F_DATA_VALID):
        return False
    if h.flags and not s.features & VIRTIO_NET_F_GUEST_CSUM:
        return False
    if h.gso_type == VIRTIO_NET_HDR_GSO_NONE:
        return True
    if kind == VIRTIO_NET_HDR_GSO_TCPV4:
        allowed = VIRTIO_NET_F_GUEST_TSO4
    elif kind == VIRTIO_NET_HDR_GSO_TCPV6:
        allowed = VIRTIO_NET_F_GUEST_TSO6
    elif kind == VIRTIO_NET_HDR_GSO_UDP_L4:
        allowed = VIRTIO_NET_F_GUEST_USO4 | VIRTIO_NET_F_GUEST_USO6
    if h.gso_type != kind and not s.features & VIRTIO_NET_F_GUEST_ECN:
        return False
    return s.features & allowed and h.flags & VIRTIO_NET_HDR_F_NEEDS_CSUM and h.gso_size


cdef bint fits_frame(const run_state *s) noexcept nogil:
    """Whether what a virtio_net_hdr points to lies in the frame, which is there now."""
    cdef const net_header *h = &s.header
    cdef uint32_t length = s.received_length - s.receive.header_size
    if h.flags & VIRTIO_NET_HDR_F_NEEDS_CSUM:
        if <uint32_t>h.checksum_start + h.checksum_offset + 2 > length:
            return False
    return h.gso_type == VIRTIO_NET_HDR_GSO_NONE or h.header_length <= length


cdef device_fault check_header(run_state *s, uint16_t waiting) noexcept nogil:
    """Check a frame's virtio_net_hdr; `waiting` used entries can be read, its own among them (5.1.6.4)."""
    cdef uint16_t num_buffers = s.header.num_buffers
    if not s.mergeable and not s.strict:
        s.header.num_buffers = num_buffers = 1
    if (s.header.flags or s.header.gso_type) and not is_negotiated(s):
        return NET_HEADER
    if num_buffers == 0 or (num_buffers > 1 and not s.mergeable):
        return NUM_BUFFERS
    # The device publishes all buffers of a frame together, so they must all be there.
    return NUM_BUFFERS if num_buffers > waiting else DEVICE_OK


cdef int take_frame(run_state *s, uint16_t waiting, const uint8_t **frame) noexcept nogil:
    """Take the next frame from the receive ring; return how many buffers it took, or -1; 0 if there is none.

    The frame is at `frame` until its buffers, which are free now, are posted again: in its buffer if it
    lies there in one piece, otherwise in `received`.
    """
    cdef driver_ring *r = s.receive
    cdef uint32_t length
    cdef uint16_t buffer
    cdef bint in_place
    cdef device_fault fault = ring_take(r, &buffer, &length)
    if fault == DEVICE_OK:
        if length == 0 and s.accept_empty:
            s.empty += 1
            return 0
        if length < r.header_size:
            return broken(s, r, NET_HEADER)
        s.header.num_buffers = 1    # a short header has no such field
        if r.contiguous and r.header_size == sizeof(net_header):
            # The usual case, with a length that the compiler knows: it takes no call.
            memcpy(&s.header, buffer_at(r, buffer) + r.header_offset, sizeof(net_header))
        else:
            buffer_read(r, buffer, 0, <uint8_t *>&s.header, r.header_size)
        fault = check_header(s, waiting)
    s.frame_buffers = 0
    s.received_length = 0
    in_place = s.header.num_buffers == 1 and r.contiguous
    frame[0] = buffer_at(r, buffer) + r.frame_offset if in_place else s.received + r.header_size
    while fault == DEVICE_OK:
        if s.received_length + length > RECEIVED_MOST:
            return broken(s, r, USED_LENGTH)
        # Who only counts frames looks at none of their bytes, like a driver that hands its buffers on.
        if not in_place and not s.count_only:
            buffer_read(r, buffer, 0, s.received + s.received_length, length)
        if r.verify_unwritten and not is_unwritten(r, buffer, length):
            return broken(s, r, WRITTEN_BEYOND)
        s.received_length += length
        s.frame_buffers += 1
        if s.frame_buffers == s.header.num_buffers:
            return s.frame_buffers if fits_frame(s) else broken(s, r, NET_HEADER)
        # "the device MUST use all buffers but the last [...] completely" (5.1.6.4.1)
        fault = BUFFER_NOT_FULL
        if length == r.capacity or not s.strict:
            fault = ring_take(r, &buffer, &length)
    return broken(s, r, fault)


cdef int verify(run_state *s, const uint8_t *frame) noexcept nogil:
    """Account for a frame; return 0, or -1 if it is not the one that should be here."""
    cdef uint32_t length = s.received_length - s.receive.header_size
    cdef uint64_t lost
    if s.count_only:
        s.arrived += 1
        s.arrived_bytes += length
        return 0
    if s.to_receive != NULL:
        lost = s.to_receive.lost
        s.expected = s.to_receive.expected
        s.how = stream_accept(s.to_receive, frame, length)
        if s.how == ARRIVED and (s.allow_loss or s.to_receive.lost == lost):
            return 0
    if frame != s.received + s.receive.header_size:
        memcpy(s.received + s.receive.header_size, frame, length)
    return 0 if s.to_receive == NULL else -1


cdef int receive_burst(run_state *s) noexcept nogil:
    """Take and verify what has arrived, and post the buffers again."""
    cdef driver_ring *r = s.receive
    cdef uint16_t waiting = ring_used(r)
    cdef uint16_t free_before = r.free_count
    cdef uint16_t taken
    cdef const uint8_t *frame
    cdef int result = 0
    if waiting > ring_in_flight(r):
        return broken(s, r, USED_INDEX)
    while result >= 0 and not has_received(s):
        taken = r.free_count - free_before
        if taken >= waiting or taken >= BURST_MOST:
            break
        result = take_frame(s, waiting - taken, &frame)
        if result > 0:
            result = verify(s, frame)
    taken = r.free_count - free_before
    if taken:
        ring_post(r, taken)
        ring_decline_calls(r)
    return result if result < 0 else taken


cdef inline bint has_sent(const run_state *s) noexcept nogil:
    return s.to_send == NULL or s.to_send.sent >= s.send_end


cdef inline bint has_received(const run_state *s) noexcept nogil:
    if s.receive == NULL:
        return True
    if s.count_only:
        return False
    if s.to_receive == NULL:
        return s.frame_buffers > 0
    return s.to_receive.received + s.to_receive.lost >= s.receive_end


cdef void sleep_for_calls(run_state *s) noexcept nogil:
    """Sleep until the device calls for what the run cannot go on without, or the slice is over."""
    cdef pollfd fds[2]
    cdef driver_ring *rings[2]
    cdef int count = 0
    cdef int i
    cdef uint16_t ready = 0
    if not has_received(s):
        rings[count] = s.receive
        count += 1
    if s.transmit != NULL and (has_sent(s) or s.transmit.free_count == 0):
        rings[count] = s.transmit
        count += 1
    for i in range(count):
        ready |= ring_request_call(rings[i])
        fds[i].fd = rings[i].call_fd
        fds[i].events = POLLIN
    if not ready:
        poll(fds, count, SLICE_MS)
    for i in range(count):
        ring_take_call(rings[i])
        ring_decline_calls(rings[i])


cdef int turn(run_state *s) noexcept nogil:
    """Once around: return how many buffers moved; -1 if something is wrong."""
    cdef int moved = 0
    cdef int count
    if s.transmit != NULL:
        moved = take_back(s)
        if moved < 0:
            return moved
        if not has_sent(s):
            moved += send_burst(s)
    if has_received(s):
        return moved
    count = receive_burst(s)
    return count if count < 0 else moved + count


cdef bint is_done(const run_state *s) noexcept nogil:
    """Whether all that was wanted has happened."""
    return has_sent(s) and has_received(s) and not (
        s.drain and s.transmit != NULL and ring_in_flight(s.transmit))


cdef outcome run(run_state *s) noexcept nogil:
    """Send and receive what is wanted, for a slice of time."""
    cdef uint64_t now = now_ns()
    cdef uint64_t slice_end = now + SLICE_MS * 1000000
    cdef uint32_t spins = 0
    cdef int moved
    while True:
        moved = turn(s)
        if moved < 0:
            return FAILED
        if is_done(s):
            return DONE
        now = now_ns()
        if moved:
            s.progress_ns = now
            spins = 0
        elif now - s.progress_ns > s.patience_ns:
            return SILENT
        if now > slice_end:
            return GO_ON
        if not moved and s.wait:
            sleep_for_calls(s)
        elif not moved:
            spins += 1
            if spins < SPINS:
                cpu_relax()
            else:
                sched_yield()
