# cython: language_level=3
"""The other end of a cable: a stream's frames through a packet socket on an ordinary interface."""

cimport cython
from cpython.exc cimport PyErr_CheckSignals
from libc.errno cimport EAGAIN, EINTR, ENOBUFS, errno
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc

from guestwire.testing.frame_pattern cimport PATTERN_LONGEST, pattern_length, pattern_write
from guestwire.testing.frame_stream cimport ARRIVED, FrameStream, arrival, frame_stream, stream_accept
from guestwire.testing.traffic cimport now_ns

import os
import socket

from guestwire.errors import HostError
from guestwire.testing.driver import Traffic
from guestwire.testing.faults import VerificationError
from guestwire.testing.frame_stream import ETHERTYPE as _ETHERTYPE
from guestwire.testing.frame_stream import explain_arrival

cdef extern from "<sys/socket.h>" nogil:
    struct iovec:
        void *iov_base
        size_t iov_len
    struct msghdr:
        iovec *msg_iov
        size_t msg_iovlen
    struct mmsghdr:
        msghdr msg_hdr
        unsigned int msg_len
    int sendmmsg(int fd, mmsghdr *messages, unsigned int count, int flags)
    int recvmmsg(int fd, mmsghdr *messages, unsigned int count, int flags, void *timeout)
    const int MSG_DONTWAIT, MSG_TRUNC

cdef extern from "<poll.h>" nogil:
    struct pollfd:
        int fd
        short events
    int poll(pollfd *fds, unsigned long count, int timeout)
    const short POLLIN, POLLOUT

cdef enum:
    BATCH = 64                  # frames of a system call
    SLICE_MS = 50               # how long a wait keeps from Python
    RETRY_MS = 1                # until a full device queue, which tells nobody, is tried again
    SO_RCVBUFFORCE = 33         # asm-generic/socket.h
    RECEIVE_BUFFER = 8 << 20    # bytes, as the kernel counts them: with what it needs beside a frame


cdef struct batch:
    mmsghdr messages[BATCH]
    iovec pieces[BATCH]
    uint8_t *frames             # PATTERN_LONGEST bytes for each message
    # What is wrong with a frame that has arrived, if anything is.
    arrival how
    uint64_t expected           # the number it should have had
    int wrong                   # which of the batch, or -1


cdef inline uint8_t *frame_at(const batch *b, uint32_t i) noexcept nogil:
    return b.frames + <uint64_t>i * PATTERN_LONGEST


# The steps return how many frames they moved, or minus an errno.

cdef int send_batch(int fd, batch *b, frame_stream *stream, uint32_t count) noexcept nogil:
    cdef uint32_t i
    cdef int sent
    for i in range(count):
        b.pieces[i].iov_len = pattern_length(&stream.pattern, stream.sent + i)
        pattern_write(&stream.pattern, stream.sent + i, frame_at(b, i), b.pieces[i].iov_len)
    sent = sendmmsg(fd, b.messages, count, MSG_DONTWAIT)
    if sent < 0:
        return -errno
    stream.sent += sent
    return sent


cdef int receive_batch(
    int fd, batch *b, frame_stream *stream, uint32_t count, bint allow_loss
) noexcept nogil:
    """Take and verify what has arrived, up to the first frame that should not be there."""
    cdef uint64_t lost = stream.lost
    cdef uint32_t i
    cdef int arrived
    for i in range(count):
        b.pieces[i].iov_len = PATTERN_LONGEST
    arrived = recvmmsg(fd, b.messages, count, MSG_DONTWAIT | MSG_TRUNC, NULL)
    if arrived < 0:
        return -errno
    for i in range(<uint32_t>arrived):
        b.expected = stream.expected
        b.how = stream_accept(stream, frame_at(b, i), b.messages[i].msg_len)
        if b.how != ARRIVED or (stream.lost != lost and not allow_loss):
            b.wrong = i
            break
    return arrived


cdef void wait_for(int fd, short events, int error) noexcept nogil:
    cdef pollfd p
    p.fd = fd
    p.events = events
    if error == ENOBUFS:
        poll(NULL, 0, RETRY_MS)
    else:
        poll(&p, 1, SLICE_MS)


@cython.final
cdef class PacketSocket:
    """A packet socket on an interface, that sends and receives the frames of a `FrameStream`.

    It gets only frames that arrive on the interface with the streams' Ethernet type. It is made in the
    network namespace of the thread that makes it, and may be used in any. One thread at a time may use
    it; the GIL is released meanwhile. It can be used as a context manager.

    Args:
        interface: its name.

    Raises:
        HostError: there is no such interface, or CAP_NET_RAW is missing.
    """

    cdef readonly str interface
    cdef object socket
    cdef batch *batch

    def __cinit__(self):
        cdef uint32_t i
        self.batch = <batch *>calloc(1, sizeof(batch))
        if self.batch == NULL:
            raise MemoryError
        self.batch.frames = <uint8_t *>malloc(BATCH * <uint64_t>PATTERN_LONGEST)
        if self.batch.frames == NULL:
            raise MemoryError
        for i in range(BATCH):
            self.batch.pieces[i].iov_base = frame_at(self.batch, i)
            self.batch.messages[i].msg_hdr.msg_iov = &self.batch.pieces[i]
            self.batch.messages[i].msg_hdr.msg_iovlen = 1

    def __init__(self, str interface not None):
        self.interface = interface
        try:
            # Protocol 0: nothing arrives before it is bound to the interface.
            self.socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
            try:
                self.socket.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, RECEIVE_BUFFER)
            except PermissionError:
                self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
            self.socket.bind((interface, _ETHERTYPE))
        except OSError as error:
            self.close()
            raise HostError(
                f"a packet socket on interface {interface}: {error.strerror}",
                "see `ip link` for its name; packet sockets need CAP_NET_RAW") from error

    def __dealloc__(self):
        if self.batch != NULL:
            free(self.batch.frames)
            free(self.batch)

    def send_stream(self, FrameStream stream not None, count, *, timeout=10.0):
        """Send the next `count` frames of a stream.

        Args:
            stream: which frames.
            count: how many.
            timeout: seconds after which it gives up if the kernel takes none.

        Returns:
            The `Traffic`.

        Raises:
            HostError: the kernel took none in time, or refuses them.
        """
        cdef uint64_t first = stream.stream.sent
        cdef uint64_t end = first + <uint64_t>count
        cdef uint64_t patience = <uint64_t>(timeout * 1e9)
        cdef uint64_t started = now_ns()
        cdef uint64_t progress = started
        cdef int fd = self.socket.fileno()
        cdef int moved
        while stream.stream.sent < end:
            with nogil:
                moved = send_batch(
                    fd, self.batch, &stream.stream, min(end - stream.stream.sent, <uint64_t>BATCH))
                if moved < 0:
                    wait_for(fd, POLLOUT, -moved)
            PyErr_CheckSignals()
            if moved > 0:
                progress = now_ns()
                continue
            self._check(-moved)
            if now_ns() - progress > patience:
                raise HostError(
                    f"interface {self.interface} took {stream.stream.sent - first} of {count} frames, then "
                    f"none for {timeout:g} s", f"ip -s link show {self.interface}")
        return Traffic(count, 0, 0, (progress - started) / 1e9)

    def receive_stream(self, FrameStream stream not None, count, *, timeout=10.0, allow_loss=False):
        """Receive and verify `count` frames of a stream.

        Args:
            stream: which frames are expected.
            count: how many; lost ones count.
            timeout: seconds after which it gives up if nothing arrives.
            allow_loss: whether frames may be missing; then silence is an end like any other.

        Returns:
            The `Traffic`.

        Raises:
            VerificationError: a frame was lost (unless allowed), repeated, out of order or changed.
            HostError: the interface went down.
        """
        cdef frame_stream *s = &stream.stream
        cdef uint64_t received = s.received
        cdef uint64_t lost = s.lost
        cdef uint64_t end = received + lost + <uint64_t>count
        cdef uint64_t patience = <uint64_t>(timeout * 1e9)
        cdef uint64_t started = now_ns()
        cdef uint64_t progress = started
        cdef bint loses = allow_loss
        cdef int fd = self.socket.fileno()
        cdef int moved
        self.batch.wrong = -1
        while s.received + s.lost < end:
            with nogil:
                moved = receive_batch(
                    fd, self.batch, s, min(end - s.received - s.lost, <uint64_t>BATCH), loses)
                if moved < 0:
                    wait_for(fd, POLLIN, -moved)
            PyErr_CheckSignals()
            if self.batch.wrong >= 0:
                raise self._not_expected(stream)
            if moved > 0:
                progress = now_ns()
                continue
            self._check(-moved)
            if now_ns() - progress > patience:
                if loses:
                    break
                raise VerificationError(
                    f"{s.received - received} of {count} frames arrived on {self.interface}, then none "
                    f"for {timeout:g} s", "look at the backend's counters for where it dropped them")
        return Traffic(0, s.received - received, s.lost - lost, (progress - started) / 1e9)

    cdef int _check(self, int error) except -1:
        """Raise what the kernel refused for good."""
        if error and error not in (EAGAIN, EINTR, ENOBUFS):
            raise HostError(f"frames on interface {self.interface}: {os.strerror(error)}",
                            f"ip link show {self.interface}")
        return 0

    def _not_expected(self, FrameStream stream):
        cdef const batch *b = self.batch
        cdef const uint8_t *frame = frame_at(b, b.wrong)
        length = min(b.messages[b.wrong].msg_len, <unsigned int>PATTERN_LONGEST)
        if b.how != ARRIVED:
            why = explain_arrival(stream, frame[:length], b.how, b.expected)
        else:
            why = (f"frame {stream.stream.expected - 1} arrived where number {b.expected} was expected: "
                   f"{stream.stream.expected - 1 - b.expected} were lost")
        return VerificationError(f"{why}, on {self.interface}", "look at how the backend moves frames")

    def discard(self):
        """Throw away what has arrived; return how many frames that were."""
        count = 0
        while True:
            try:
                self.socket.recv(1, MSG_DONTWAIT | MSG_TRUNC)
            except BlockingIOError:
                return count
            count += 1

    def close(self):
        """Close the socket."""
        if self.socket is not None:
            self.socket.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()
