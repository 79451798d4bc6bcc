# cython: language_level=3
"""A port that sends the guest the frames of one capture file and writes what it sends to another."""

import os
import struct

from libc.errno cimport EINTR, errno
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy
from posix.time cimport CLOCK_REALTIME, clock_gettime, timespec
from posix.unistd cimport write

from guestwire.datapath.abi cimport net_header, used_element
from guestwire.datapath.counters cimport (
    COPY_PORT,
    DROP_PORT,
    DROP_TOO_LONG,
    direction_counters,
)
from guestwire.datapath.frames cimport (
    DELIVER_LATER,
    DELIVER_NEVER,
    GOOD_FRAME,
    LONGEST_FRAME,
    LONGEST_GSO_FRAME,
    check_sent_frame,
    deliver,
    piece,
)
from guestwire.datapath.port cimport Port, pair_context, port_interface
from guestwire.datapath.sent_frame cimport sent_frame, sent_frame_begin, sent_frame_next
from guestwire.datapath.ring cimport BURST_CHAINS, burst, chain

cdef enum:
    MOST_INTERRUPTIONS = 3
    RECORD_HEADER = 16
    OUTPUT_BYTES = 64 * (LONGEST_GSO_FRAME + RECORD_HEADER)     # a whole burst of the longest frames

LINKTYPE_ETHERNET = 1

cdef struct pcap_port:
    port_interface base
    # Frames to deliver: where they lie in the input, as it is in memory.
    piece *frames
    uint64_t frame_count
    uint64_t next_frame
    uint64_t after_last         # the frame to go on with behind the last: the first, or none
    uint64_t in_vain            # frames since the last that a buffer of the guest could hold
    # Frames from the guest.
    int output_fd
    int output_error            # errno of the write that failed; nothing is written after it
    uint8_t *output
    uint64_t output_used
    uint32_t sent
    used_element sent_elements[BURST_CHAINS]
    used_element received_elements[2 * BURST_CHAINS]
    sent_frame frame


cdef void pcap_rx_post(port_interface *self, burst *buffers) noexcept nogil:
    pass


cdef uint32_t pcap_rx_poll(port_interface *self, const used_element **done) noexcept nogil:
    cdef pcap_port *p = <pcap_port *>self
    cdef pair_context *pair = self.pair
    cdef direction_counters *rx = &pair.counters.rx
    cdef const piece *frame
    cdef uint64_t next_frame = p.next_frame
    cdef uint32_t left = BURST_CHAINS
    cdef uint64_t frames = 0
    cdef uint64_t bytes = 0
    cdef uint32_t received = 0
    cdef int buffers
    while next_frame < p.frame_count and received < BURST_CHAINS and left:
        frame = &p.frames[next_frame]
        buffers = deliver(pair, frame, 1, frame.length, &p.received_elements[received])
        if buffers == DELIVER_LATER:
            break
        left -= 1
        next_frame += 1
        if next_frame == p.frame_count:
            next_frame = p.after_last
        if buffers == DELIVER_NEVER:
            rx.drops[DROP_TOO_LONG] += 1
            p.in_vain += 1
            continue
        p.in_vain = 0
        received += buffers
        frames += 1
        bytes += frame.length
    p.next_frame = next_frame
    # Once a burst: the counters lie in memory that others read.
    rx.frames += frames
    rx.bytes += bytes
    rx.copied_frames[COPY_PORT] += frames
    rx.copied_bytes += bytes
    self.wants_buffers = next_frame < p.frame_count
    # There may be more behind frames that no buffer holds, but not behind a whole round of them.
    self.progress = self.wants_buffers and left == 0 and received == 0 and p.in_vain < p.frame_count
    done[0] = p.received_elements
    return received


cdef void flush(pcap_port *p) noexcept nogil:
    cdef uint64_t at = 0
    cdef ssize_t n
    cdef int interruptions = 0      # stopping interrupts us; a file that still blocks then is given up
    while at < p.output_used and not p.output_error:
        n = write(p.output_fd, p.output + at, p.output_used - at)
        if n > 0:
            at += n
        elif errno == EINTR and interruptions < MOST_INTERRUPTIONS:
            interruptions += 1
        else:
            p.output_error = errno
    p.output_used = 0


cdef void append_record(pcap_port *p, const piece *pieces, uint32_t count, uint32_t length) noexcept nogil:
    cdef timespec now
    cdef uint32_t header[4]
    cdef uint32_t i
    if p.output_used + RECORD_HEADER + length > OUTPUT_BYTES:
        flush(p)
    clock_gettime(CLOCK_REALTIME, &now)
    header[0] = <uint32_t>now.tv_sec
    header[1] = <uint32_t>now.tv_nsec
    header[2] = header[3] = length
    memcpy(p.output + p.output_used, header, RECORD_HEADER)
    p.output_used += RECORD_HEADER
    for i in range(count):
        memcpy(p.output + p.output_used, pieces[i].data, pieces[i].length)
        p.output_used += pieces[i].length


cdef void write_frame(pcap_port *p) noexcept nogil:
    """Write what the guest's frame becomes on a wire."""
    cdef direction_counters *tx = &p.base.pair.counters.tx
    cdef sent_frame *f = &p.frame
    tx.frames += 1
    tx.bytes += f.length
    tx.gso_frames += f.large
    if p.output_fd < 0 or p.output_error:
        tx.drops[DROP_PORT] += 1
        return
    append_record(p, f.pieces, f.piece_count, f.wire_length)
    while sent_frame_next(f, p.base.pair):
        append_record(p, f.pieces, f.piece_count, f.wire_length)
    tx.copied_frames[COPY_PORT] += 1
    tx.copied_bytes += f.length


cdef void pcap_tx_submit(port_interface *self, burst *frames) noexcept nogil:
    cdef pcap_port *p = <pcap_port *>self
    cdef net_header header
    cdef chain *c
    cdef int reason
    p.sent = 0
    while frames.first < frames.end:
        c = &frames.chains[frames.first]
        reason = check_sent_frame(self.pair, frames, c, LONGEST_FRAME, &header)
        if reason == GOOD_FRAME:
            reason = sent_frame_begin(&p.frame, self.pair, frames, c, &header, 0)
        if reason != GOOD_FRAME:
            self.pair.counters.tx.drops[reason] += 1
        else:
            write_frame(p)
        p.sent_elements[p.sent].id = c.head
        p.sent_elements[p.sent].length = 0
        p.sent += 1
        frames.first += 1
    flush(p)


cdef uint32_t pcap_tx_poll(port_interface *self, const used_element **done) noexcept nogil:
    cdef pcap_port *p = <pcap_port *>self
    cdef uint32_t count = p.sent
    done[0] = p.sent_elements
    p.sent = 0
    return count


cdef void pcap_drain(port_interface *self) noexcept nogil:
    pass


cdef class PcapPort(Port):
    """Sends the guest the frames of a capture file, and writes what the guest sends.

    Args:
        data: the bytes of a capture file, or None to send nothing.
        places: where each frame begins in them, and its length in bytes, by turns: 64-bit integers.
        output_fd: an open file to write a pcap file with nanosecond times to; borrowed; -1 for none.
        repeat: after the last frame go on with the first; else each is sent once.

    Raises:
        ValueError: a place does not lie in the file, or is longer than any frame.
    """

    cdef object input_buffer

    def __cinit__(self):
        cdef pcap_port *p = <pcap_port *>calloc(1, sizeof(pcap_port))
        if p == NULL:
            raise MemoryError
        self.port = &p.base
        p.base.rx_post = pcap_rx_post
        p.base.rx_poll = pcap_rx_poll
        p.base.tx_submit = pcap_tx_submit
        p.base.tx_poll = pcap_tx_poll
        p.base.drain = pcap_drain
        p.base.fd = -1
        p.output_fd = -1

    def __init__(self, data=None, places=None, output_fd=-1, *, repeat=False):
        cdef pcap_port *p = <pcap_port *>self.port
        cdef const uint8_t[::1] view
        cdef const uint64_t[::1] numbers
        cdef uint64_t i, at, length, size
        if data is not None and len(data) and len(places):
            self.input_buffer = view = data
            numbers = places
            size = <uint64_t>view.shape[0]
            p.frame_count = numbers.shape[0] // 2
            p.frames = <piece *>calloc(p.frame_count, sizeof(piece))
            if p.frames == NULL:
                raise MemoryError
            for i in range(p.frame_count):
                at, length = numbers[2 * i], numbers[2 * i + 1]
                if not 0 < length <= LONGEST_GSO_FRAME or at > size or length > size - at:
                    raise ValueError(f"frame {i} lies outside of the file")
                p.frames[i].data = &view[at]
                p.frames[i].length = <uint32_t>length
            p.after_last = 0 if repeat else p.frame_count
        if output_fd >= 0:
            p.output = <uint8_t *>calloc(1, OUTPUT_BYTES)
            if p.output == NULL:
                raise MemoryError
            if os.fstat(output_fd).st_size == 0:
                os.write(output_fd, struct.pack("<IHHiIII", 0xA1B23C4D, 2, 4, 0, 0, LONGEST_GSO_FRAME,
                                                LINKTYPE_ETHERNET))
            p.output_fd = output_fd

    @property
    def output_error(self):
        """The errno of the write that failed, 0 if none did. Frames after it are dropped, counted."""
        return (<pcap_port *>self.port).output_error

    def __dealloc__(self):
        cdef pcap_port *p = <pcap_port *>self.port
        if p != NULL:
            free(p.frames)
            free(p.output)
            free(p)
