# cython: language_level=3
"""Stand-ins: sockets on the queues of pairs that are not at work, read by a pair that is.

An interface spreads frames over its queues and does not ask which of its pairs a guest uses. A stand-in
keeps those frames from the host's network stack. They arrive in bounce frames and are copied to buffers of
the guest's that this port keeps for them (`held_for_stand_ins` in xdp_post). A bounce frame goes back to the
kernel as soon as its frame is copied, so nothing needs to be listed: whatever is not in the fill ring waits
on the rx ring.

Stand-ins are bound in copy mode: no driver gets their memory, and none has to be woken for them.
"""

from libc.stdint cimport uint32_t, uint64_t

from guestwire.datapath.abi cimport XDP_PKT_CONTD, xdp_desc
from guestwire.datapath.atomics cimport load_acquire_u32
from guestwire.datapath.counters cimport (
    COPY_OTHER_QUEUE,
    DROP_NO_BUFFERS,
    DROP_TOO_LONG,
    DROP_UNEXPECTED_PLACE,
)
from guestwire.datapath.frames cimport DELIVER_LATER, piece
from guestwire.datapath.ring cimport BURST_CHAINS
from guestwire.datapath.window cimport FRAME_BYTES
from guestwire.datapath.xdp cimport MOST_BUFFERS, OFFSET_SHIFT, address_bits
from guestwire.datapath.xdp_arrivals cimport count_copied, deliver_copy
from guestwire.datapath.xdp_socket cimport ring_release, ring_submit, ring_waiting


cdef inline void give_to_kernel(stand_in *s, uint64_t address) noexcept nogil:
    # There is room: the fill ring has as many entries as there are frames.
    (<uint64_t *>s.fill.entries)[s.fill.mine & s.fill.mask] = address
    s.fill.mine += 1


cdef inline const xdp_desc *arrival(const stand_in *s, uint32_t i) noexcept nogil:
    return &(<const xdp_desc *>s.rx.entries)[(s.rx.mine + i) & s.rx.mask]


cdef inline bint is_frame(const stand_in *s, uint64_t address) noexcept nogil:
    return address >= s.frames and address - s.frames < s.size and (address - s.frames) % FRAME_BYTES == 0


cdef uint32_t find_parts(
    xdp_port *x, stand_in *s, piece *pieces, uint32_t *length, bint *good
) noexcept nogil:
    """Find the parts of the next frame; returns how many, 0 if not all are there yet."""
    cdef uint32_t waiting = s.rx.theirs - s.rx.mine
    cdef uint32_t i
    cdef uint64_t address, shift
    cdef const xdp_desc *d
    length[0] = 0
    good[0] = True
    for i in range(MOST_BUFFERS):
        if i == waiting:
            # Acquire: as in ring_waiting, which looks only when it believes that nothing waits.
            s.rx.theirs = load_acquire_u32(s.rx.producer)
            waiting = s.rx.theirs - s.rx.mine
            if i == waiting:
                return 0
        d = arrival(s, i)
        address, shift = address_bits(d.addr), d.addr >> OFFSET_SHIFT
        # The kernel is believed, but not about what lies outside of what it was given.
        good[0] = good[0] and is_frame(s, address) and shift + d.len <= FRAME_BYTES
        pieces[i].data = x.base.pair.window.base + s.umem + address + shift
        pieces[i].length = d.len
        length[0] += d.len
        if not d.options & XDP_PKT_CONTD:
            break
    return i + 1


cdef bint take_frame(xdp_port *x, stand_in *s) noexcept nogil:
    """Take the next frame; returns False if it has to wait."""
    cdef piece pieces[MOST_BUFFERS]
    cdef uint32_t length, i
    cdef bint good
    cdef uint32_t count = find_parts(x, s, pieces, &length, &good)
    cdef int buffers
    if count == 0:
        return False
    if not good:
        x.base.pair.counters.rx.drops[DROP_UNEXPECTED_PLACE] += 1
    elif count > 1 and length > x.longest_frame:
        x.base.pair.counters.rx.drops[DROP_TOO_LONG] += 1
    else:
        buffers = deliver_copy(x, pieces, count, length, NULL)
        if buffers == DELIVER_LATER:
            # The guest owes us the chains that are kept for this: it offers them again, whatever the kernel
            # has of the others.
            x.base.wants_buffers = True
            return False
        if buffers > 0:
            count_copied(x.base.pair.counters, COPY_OTHER_QUEUE, length)
        else:
            x.base.pair.counters.rx.drops[DROP_TOO_LONG] += 1
    for i in range(count):
        if is_frame(s, address_bits(arrival(s, i).addr)):
            give_to_kernel(s, address_bits(arrival(s, i).addr))
    s.rx.mine += count
    return True


cdef void stand_ins_poll(xdp_port *x) noexcept nogil:
    cdef uint32_t i, before
    cdef stand_in *s
    for i in range(x.stand_in_count):
        s = &x.stand_ins[(x.stand_in_next + i) % x.stand_in_count]
        before = s.rx.mine
        while x.received < BURST_CHAINS // 2 and ring_waiting(s.rx):
            if not take_frame(x, s):
                break
        if s.rx.mine != before:
            ring_release(s.rx)
            ring_submit(s.fill)
    x.stand_in_next = (x.stand_in_next + 1) % x.stand_in_count


cdef void stand_in_open(stand_in *s, XdpSocket socket, uint64_t offset, uint32_t frames) noexcept:
    cdef uint32_t i
    s.fill, s.rx = &socket.fill, &socket.rx
    s.umem = socket.umem_offset
    s.frames = offset - s.umem
    s.size = <uint64_t>frames * FRAME_BYTES
    for i in range(frames):
        give_to_kernel(s, s.frames + <uint64_t>i * FRAME_BYTES)
    ring_submit(s.fill)


cdef void stand_in_close(xdp_port *x) noexcept nogil:
    cdef uint32_t i
    cdef stand_in *s
    for i in range(x.stand_in_count):
        s = &x.stand_ins[i]
        while ring_waiting(s.rx):
            if not arrival(s, 0).options & XDP_PKT_CONTD:
                x.base.pair.counters.rx.drops[DROP_NO_BUFFERS] += 1
            s.rx.mine += 1
