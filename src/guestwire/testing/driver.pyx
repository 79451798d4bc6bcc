# cython: language_level=3
"""The driver of a virtio network device: a queue pair that sends, receives and verifies frames."""

cimport cython
from cpython.exc cimport PyErr_CheckSignals
from libc.stdint cimport uint8_t, uint16_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memset

from guestwire.testing.driver_ring cimport (
    DEVICE_OK,
    DriverRing,
    buffer_offer,
    buffer_write,
    driver_ring,
    ring_kick,
    ring_publish,
)
from guestwire.testing.frame_stream cimport ARRIVED, FrameStream
from guestwire.testing.traffic cimport (
    DONE,
    FAILED,
    GO_ON,
    NO_SEQUENCE,
    RECEIVED_MOST,
    now_ns,
    outcome,
    run,
    run_state,
)

from typing import NamedTuple

from guestwire.testing.faults import DeviceError, VerificationError
from guestwire.testing.frame_stream import explain_arrival
from guestwire.virtio.features import Feature
from guestwire.virtio.segmentation import NetHeader

cdef uint64_t MRG_RXBUF = Feature.VIRTIO_NET_F_MRG_RXBUF


class ReceivedFrame(NamedTuple):
    """A frame from the receive ring.

    Attributes:
        data: the frame, without FCS.
        header: the virtio_net_hdr before it, 12 or 10 bytes.
        buffers: over how many receive buffers it was spread.
    """

    data: bytes
    header: bytes
    buffers: int

    @property
    def offload(self):
        """What the header says of the frame: an unfinished checksum, segments to be made of it."""
        return NetHeader.parse(self.header)


class Traffic(NamedTuple):
    """What went through a queue pair.

    Attributes:
        sent: frames sent.
        received: frames received unharmed.
        lost: frames lost on the way, as far as the numbers of later ones tell.
        seconds: how long it took.
    """

    sent: int
    received: int
    lost: int
    seconds: float


@cython.final
cdef class QueuePair:
    """A receive ring and a transmit ring, and the traffic between them and the device.

    One thread may send while another receives; no two threads may use the same ring. Every method
    waits at most for `timeout` seconds in which nothing moves, and can be interrupted by a signal.

    Args:
        receive_ring: its buffers are the device's to write.
        transmit_ring: its buffers are the device's to read.
        verify_sent: whether to check each time the device gives back a frame of a stream that it is
            still as it was sent.
        verify_unwritten: whether to check that no receive buffer is written behind what the device says
            it wrote. A device may do so (virtio 1.3, 2.7.8.2), but should know that it does.
        strict: whether to require what no driver looks at, although the device MUST do it (virtio 1.3,
            5.1.6.4.1): num_buffers of 1 without VIRTIO_NET_F_MRG_RXBUF, which DPDK 22.11 does not write;
            and with it, that all buffers of a frame but the last are full.
        accept_empty: whether receive buffers may come back with nothing in them, which Linux' driver takes
            for a frame that is too short. A device that stops in the middle of its buffers does so.

    Attributes:
        empty: how many have.
    """

    def __init__(self, DriverRing receive_ring not None, DriverRing transmit_ring not None, *,
                 verify_sent=False, verify_unwritten=False, strict=True, accept_empty=False):
        if not receive_ring.ring.direction or transmit_ring.ring.direction:
            raise ValueError("a queue pair is a receive ring and a transmit ring, in this order")
        self.receive_ring = receive_ring
        self.transmit_ring = transmit_ring
        self.verify_sent = verify_sent
        # Until now no buffer has come back: they are painted as they were made.
        receive_ring.ring.verify_unwritten = verify_unwritten
        self.strict, self.accept_empty = strict, accept_empty

    def send(self, frame, *, header=None, timeout=10.0):
        """Send one frame.

        Args:
            frame: its bytes, without FCS.
            header: the virtio_net_hdr before it; all zero if None.
            timeout: seconds to wait for a free buffer.

        Raises:
            ValueError: the frame fits no buffer, or the header has a wrong size.
            DeviceError: the device gave no buffer back in time, or broke a rule.
        """
        cdef driver_ring *r = &self.transmit_ring.ring
        cdef uint16_t buffer
        cdef bytes data = (bytes(r.header_size) if header is None else bytes(header)) + bytes(frame)
        if len(data) != r.header_size + len(frame):
            raise ValueError(f"a header of {len(header)} bytes instead of {r.header_size}")
        if not r.header_size < len(data) <= r.capacity:
            raise ValueError(f"a frame of {len(frame)} bytes; a buffer holds 1 to "
                             f"{self.transmit_ring.capacity}")
        if r.free_count == 0:
            self.drain(timeout=timeout)
        self.transmit_ring._check_alive()
        r.free_count -= 1
        buffer = r.free[r.free_count]
        buffer_write(r, buffer, 0, data, len(data))
        r.sequence[buffer] = <uint64_t>NO_SEQUENCE
        buffer_offer(r, buffer, len(data))
        if ring_publish(r):
            ring_kick(r)

    def drain(self, *, timeout=10.0, wait=False):
        """Wait until the device has given back everything that was sent.

        Raises:
            DeviceError: it did not, or it broke a rule.
        """
        cdef run_state s
        memset(&s, 0, sizeof(s))
        self._begin(&s, None, None, None)
        s.transmit = &self.transmit_ring.ring
        s.drain = True
        if not self._run(&s, timeout, wait, None):
            raise self._stuck(timeout)

    def receive(self, *, timeout=10.0, wait=True):
        """Receive one frame.

        Returns:
            The frame; None if none came.

        Raises:
            DeviceError: the device broke a rule.
        """
        cdef run_state s
        cdef uint8_t *received
        memset(&s, 0, sizeof(s))
        self._begin(&s, None, None, None)
        s.receive = &self.receive_ring.ring
        s.received = received = <uint8_t *>malloc(RECEIVED_MOST)
        if received == NULL:
            raise MemoryError
        try:
            if not self._run(&s, timeout, wait, None):
                return None
            size = s.receive.header_size
            header = (<const uint8_t *>&s.header)[:size]
            return ReceivedFrame(received[size:s.received_length], header, s.frame_buffers)
        finally:
            free(received)

    def send_stream(self, FrameStream stream not None, count, *, timeout=10.0, burst=32, wait=False,
                    drain=True):
        """Send the next `count` frames of a stream.

        Args:
            stream: which frames.
            count: how many.
            timeout: seconds after which it gives up if nothing moves.
            burst: frames that are made available at once.
            wait: sleep until the device calls, instead of polling.
            drain: return only when the device has given back every buffer.

        Returns:
            The `Traffic`.

        Raises:
            ValueError: the frames fit no buffer.
            DeviceError: the device took no frames, or broke a rule.
        """
        return self._traffic(stream, None, count, 0, timeout, burst, wait, drain, False)

    def receive_stream(self, FrameStream stream not None, count, *, timeout=10.0, wait=False,
                       allow_loss=False):
        """Receive and verify `count` frames of a stream.

        Args:
            stream: which frames are expected.
            count: how many; lost ones count.
            timeout: seconds after which it gives up if nothing arrives.
            wait: sleep until the device calls, instead of polling.
            allow_loss: whether frames may be missing; then silence is an end like any other.

        Returns:
            The `Traffic`.

        Raises:
            VerificationError: a frame was lost (unless allowed), repeated, out of order or changed.
            DeviceError: the device broke a rule.
        """
        return self._traffic(None, stream, 0, count, timeout, 1, wait, False, allow_loss)

    def exchange(self, FrameStream stream not None, count, *, returning=None, window=None, timeout=10.0,
                 burst=32, wait=False, allow_loss=False):
        """Send the next `count` frames of a stream to something that sends them back, and verify that.

        Args:
            stream: which frames.
            count: how many.
            returning: the frames that come back, if they are not the same: a reflector may exchange
                the MAC addresses.
            window: most frames that are on the way at any time. If None, as many as the receive buffers
                hold, or half of that if others come back, whose sender may be as far ahead: so none need
                be lost.
            timeout: seconds after which it gives up if nothing moves.
            burst: frames that are made available at once.
            wait: sleep until the device calls, instead of polling.
            allow_loss: whether frames may be missing; then silence is an end like any other.

        Returns:
            The `Traffic`.

        Raises:
            ValueError: the frames fit no buffer.
            VerificationError: a frame was lost (unless allowed), repeated, out of order or changed.
            DeviceError: the device took no frames, or broke a rule.
        """
        returning = stream if returning is None else returning
        return self._traffic(stream, returning, count, count, timeout, burst, wait, True, allow_loss,
                             window)

    def _traffic(self, FrameStream to_send, FrameStream to_receive, send_count, receive_count, timeout,
                 burst, wait, drain, allow_loss, window=None):
        cdef run_state s
        cdef uint64_t received = 0, lost = 0
        memset(&s, 0, sizeof(s))
        self._begin(&s, to_send, to_receive, window)
        s.burst, s.drain, s.allow_loss = burst, drain, allow_loss
        if to_send is not None:
            s.send_end = s.send_start + <uint64_t>send_count
        if to_receive is not None:
            received, lost = to_receive.stream.received, to_receive.stream.lost
            s.receive_end = s.receive_start + <uint64_t>receive_count
        s.received = <uint8_t *>malloc(RECEIVED_MOST)
        if s.received == NULL:
            raise MemoryError
        try:
            finished = self._run(&s, timeout, wait, to_receive)
        finally:
            free(s.received)
        traffic = Traffic(
            0 if to_send is None else to_send.stream.sent - s.send_start,
            0 if to_receive is None else to_receive.stream.received - received,
            0 if to_receive is None else to_receive.stream.lost - lost,
            (s.progress_ns - s.started_ns) / 1e9)
        if finished:
            return traffic
        arrived = traffic.received + traffic.lost
        if traffic.sent < send_count and (to_receive is None or arrived == traffic.sent):
            raise self._stuck(timeout)
        if drain and to_send is not None and self.transmit_ring.in_flight:
            raise self._stuck(timeout)
        if allow_loss:
            return traffic
        raise VerificationError(
            f"{traffic.received} of {receive_count} frames arrived, then none for {timeout:g} s; "
            f"{traffic.sent} were sent meanwhile",
            "look at the backend's counters for where it dropped them")

    cdef int _begin(self, run_state *s, FrameStream to_send, FrameStream to_receive, window) except -1:
        """Begin a run: which frames go through which rings, from where they are now."""
        self.receive_ring._check_alive()
        self.transmit_ring._check_alive()
        s.mergeable = (self.receive_ring.features & MRG_RXBUF) != 0
        s.strict, s.accept_empty, s.verify_sent = self.strict, self.accept_empty, self.verify_sent
        s.features = self.receive_ring.features
        if to_send is not None:
            self._room(self.transmit_ring, to_send)
            self._send_from(to_send)
            s.transmit, s.to_send = &self.transmit_ring.ring, &to_send.stream
            s.send_start = to_send.stream.sent
        if to_receive is not None:
            room = self._room(self.receive_ring, to_receive)
            s.receive, s.to_receive = &self.receive_ring.ring, &to_receive.stream
            s.receive_start = to_receive.stream.received + to_receive.stream.lost
            if window is None:
                window = room if to_receive is to_send else max(1, room // 2)
            s.window = window
        return 0

    cdef void _send_from(self, FrameStream stream) noexcept:
        """Note whose frames are sent from now on: those of another stream are not verified as its own."""
        cdef driver_ring *r = &self.transmit_ring.ring
        cdef uint16_t buffer
        if stream is not self.sent_from:
            for buffer in range(r.buffer_count):
                r.sequence[buffer] = <uint64_t>NO_SEQUENCE
            self.sent_from = stream

    def _room(self, DriverRing ring, FrameStream stream):
        """Return how many of a stream's frames fit the ring's buffers at a time."""
        needed = stream.longest + ring.header_size
        buffers = -(-needed // <int>ring.ring.capacity)
        if buffers > 1 and not (ring.ring.direction and ring.features & MRG_RXBUF):
            raise ValueError(f"frames of up to {stream.longest} bytes, a buffer holds {ring.capacity}")
        if buffers > ring.buffers:
            raise ValueError(f"frames of up to {stream.longest} bytes need {buffers} buffers each, there "
                             f"are {ring.buffers}")
        return ring.buffers // buffers

    cdef bint _run(self, run_state *s, double timeout, bint wait, FrameStream expected) except -1:
        """Run until all is done (True) or nothing has moved for `timeout` seconds (False)."""
        cdef outcome result = GO_ON
        for ring in (self.receive_ring, self.transmit_ring):
            if wait and (<DriverRing>ring).ring.call_fd < 0:
                raise ValueError("a ring without a call eventfd can only be polled")
        s.patience_ns = <uint64_t>(timeout * 1e9)
        s.wait = wait
        s.started_ns = s.progress_ns = now_ns()
        while result == GO_ON:
            with nogil:
                result = run(s)
            PyErr_CheckSignals()
        self.empty += s.empty
        if result == FAILED:
            self._fail(s, expected)
        return result == DONE

    cdef int _fail(self, const run_state *s, FrameStream expected) except -1:
        if s.fault != DEVICE_OK:
            ring = self.receive_ring if s.faulty == &self.receive_ring.ring else self.transmit_ring
            raise ring.fault(s.fault)
        size = s.receive.header_size
        frame = s.received[size:s.received_length]
        if s.how != ARRIVED:
            raise VerificationError(
                explain_arrival(expected, frame, s.how, s.expected) +
                f"; it lay in {s.frame_buffers} buffers, before used entry {s.receive.next_used}",
                "look at how the backend moves frames")
        raise VerificationError(
            f"frame {expected.stream.expected - 1} arrived where number {s.expected} was expected: "
            f"{expected.stream.expected - 1 - s.expected} were lost",
            "look at the backend's counters for where it dropped them")

    def _stuck(self, timeout):
        return DeviceError(
            f"the device has not given back {self.transmit_ring.in_flight} transmit buffers in "
            f"{timeout:g} s", "look whether the backend runs the transmit ring")
