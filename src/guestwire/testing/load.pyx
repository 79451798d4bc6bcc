# cython: language_level=3
"""Load for a given time, for measurements: as many frames as go, or one at a time."""

from cpython.exc cimport PyErr_CheckSignals
from libc.stdint cimport uint8_t, uint64_t
from libc.stdlib cimport calloc, free, malloc

from guestwire.datapath.atomics cimport cpu_relax
from guestwire.testing.driver cimport QueuePair
from guestwire.testing.driver_ring cimport ring_in_flight
from guestwire.testing.frame_stream cimport FrameStream
from guestwire.testing.traffic cimport RECEIVED_MOST, is_done, now_ns, run_state, turn

cdef extern from "<sched.h>" nogil:
    int sched_yield()

import array
from typing import NamedTuple

from guestwire.testing.faults import DeviceError

cdef enum:
    SLICE_NS = 50000000         # how long the loop keeps from Python
    PATIENCE_SECONDS = 5        # how long a single frame may be on its way
    AWAY_NS = 20000             # an empty turn takes less, unless the CPU was others'
    SPINS = 64                  # empty turns before a shared CPU is offered to others
    TRIPS_MOST = 1000000        # round trips that are remembered


class LoadWindow(NamedTuple):
    """What went through some queue pairs in a window of time.

    Attributes:
        seconds: how long it was.
        sent: frames that were sent and that the device has given back.
        received: frames that came back and were verified; without `returning`, frames that arrived.
        received_bytes: of these.
        waited: seconds of turns in which nothing moved: the driver had nothing to do. Turns so long that
            others must have had the CPU meanwhile are left out.
        turns: how often the driver went around in which something moved.
    """

    seconds: float
    sent: int
    received: int
    received_bytes: int
    waited: float
    turns: int


cdef struct load:
    run_state *states
    int pairs
    bint yielding
    uint64_t waited_ns
    uint64_t turns
    int failed                  # which pair


cdef bint load_slice(load *l, uint64_t end) noexcept nogil:
    """Send and receive on all pairs in turn until a moment; return whether all is well."""
    cdef uint64_t before = now_ns()
    cdef uint64_t now = before
    cdef uint64_t spins = 0
    cdef int moved, count, i
    while now < end:
        moved = 0
        for i in range(l.pairs):
            count = turn(&l.states[i])
            if count < 0:
                l.failed = i
                return False
            moved += count
        now = now_ns()
        if moved:
            l.turns += 1
            spins = 0
        else:
            if now - before < AWAY_NS:
                l.waited_ns += now - before
            spins += 1
            if l.yielding and spins >= SPINS:
                sched_yield()
            else:
                cpu_relax()
        before = now
    return True


cdef int one_trip(run_state *s, uint64_t end) noexcept nogil:
    """Send a frame and see it back; return 1, 0 if the time was over before, -1 if something is wrong."""
    cdef uint64_t looks = 0
    s.send_end = s.to_send.sent + 1
    if s.to_receive != NULL:
        s.receive_end = s.receive_start + (s.send_end - s.send_start)
    while True:
        if turn(s) < 0:
            return -1
        # With frames that return, the transmit buffer is no part of the trip.
        if s.to_receive.expected == s.send_end if s.to_receive != NULL else ring_in_flight(s.transmit) == 0:
            return 1
        looks += 1
        if looks % 1024 == 0 and now_ns() >= end:
            return 0


cdef class Load:
    """Frames from one thread through some queue pairs to a device, and back if it returns them.

    It goes on where it stopped: frames stay with the device between two calls, which all come from one
    thread.

    Args:
        pairs: the queue pairs, used by nobody else meanwhile.
        streams: which frames go through each.
        returning: whether the device sends them back in their order; they are verified then. If not, what
            arrives is counted, whatever it is.
        window: most frames on their way in each pair, if they return; as many as the receive buffers
            hold if None.
        burst: frames that are made available at once.
        yielding: whether to offer the CPU to others while there is nothing to do: for a CPU that the
            device shares.

    Raises:
        ValueError: the frames fit no buffer.
    """

    cdef load load
    cdef list pairs
    cdef list streams
    cdef bint returning

    def __init__(self, pairs, streams, *, returning, window=None, burst=32, yielding=False):
        cdef run_state *s
        cdef QueuePair pair
        cdef FrameStream stream
        self.pairs, self.streams, self.returning = list(pairs), list(streams), returning
        self.load.pairs = len(self.pairs)
        self.load.yielding = yielding
        self.load.states = <run_state *>calloc(self.load.pairs, sizeof(run_state))
        if self.load.states == NULL:
            raise MemoryError
        for i, (pair, stream) in enumerate(zip(self.pairs, self.streams, strict=True)):
            s = &self.load.states[<int>i]
            pair._begin(s, stream, stream if returning else None, window)
            s.receive = &pair.receive_ring.ring
            s.count_only = not returning
            s.burst = burst
            s.received = <uint8_t *>malloc(RECEIVED_MOST)
            if s.received == NULL:
                raise MemoryError

    def __dealloc__(self):
        cdef int i
        if self.load.states != NULL:
            for i in range(self.load.pairs):
                free(self.load.states[i].received)
            free(self.load.states)

    def run(self, seconds):
        """Send as fast as it goes for some seconds.

        Returns:
            The `LoadWindow`.

        Raises:
            VerificationError: a frame was lost, repeated, out of order or changed.
            DeviceError: the device broke a rule.
        """
        cdef uint64_t start, end, slice_end
        cdef bint well
        cdef int i
        for i in range(self.load.pairs):
            self.load.states[i].send_end = self.load.states[i].receive_end = <uint64_t>-1
        before = self._moved()
        start = now_ns()
        end = start + <uint64_t>(seconds * 1e9)
        while now_ns() < end:
            slice_end = min(now_ns() + SLICE_NS, end)
            with nogil:
                well = load_slice(&self.load, slice_end)
            if not well:
                self._fail()
            PyErr_CheckSignals()
        took = (now_ns() - start) / 1e9
        sent, received, octets, waited, turns = (b - a for a, b in zip(before, self._moved(), strict=True))
        return LoadWindow(took, sent, received, octets, waited / 1e9, turns)

    def drain(self, timeout=5.0):
        """Send no more, and wait until the device has given everything back.

        Raises:
            DeviceError: it does not, or it broke a rule.
        """
        cdef uint64_t end = now_ns() + <uint64_t>(timeout * 1e9)
        cdef run_state *s
        cdef bint well
        cdef int i
        for i in range(self.load.pairs):
            s = &self.load.states[i]
            s.drain = True
            s.send_end = s.to_send.sent
            s.receive_end = s.receive_start + (s.send_end - s.send_start)
        while not self._is_done():
            if now_ns() > end:
                raise DeviceError(
                    f"the device has not given back all that was sent in {timeout:g} s",
                    "look at the backend's log, and whether it runs the transmit rings")
            with nogil:
                well = load_slice(&self.load, now_ns() + 1000000)
            if not well:
                self._fail()
            PyErr_CheckSignals()

    def round_trips(self, seconds):
        """Send one frame after the other through the first pair for some seconds, after `drain`.

        Each is waited for, so that one that takes long counts, too, and there is one on any machine.

        Returns:
            For each frame the nanoseconds until it was back, or, if frames do not return, its buffer.

        Raises:
            VerificationError: a frame was lost, repeated, out of order or changed.
            DeviceError: the device broke a rule, or a frame did not come back for 5 seconds.
        """
        cdef run_state *s = &self.load.states[0]
        cdef uint64_t end = now_ns() + <uint64_t>(seconds * 1e9)
        cdef uint64_t slice_end, start
        cdef uint64_t count = 0
        cdef int back = 1  # 0: a frame did not come back
        trips = array.array("Q", bytes(8 * TRIPS_MOST))
        cdef uint64_t[::1] times = trips
        while count < TRIPS_MOST and (count == 0 or now_ns() < end):
            slice_end = min(now_ns() + SLICE_NS, end)
            with nogil:
                while count < TRIPS_MOST:
                    start = now_ns()
                    if count > 0 and start >= slice_end:
                        break
                    back = one_trip(s, start + PATIENCE_SECONDS * <uint64_t>1000000000)
                    if back != 1:
                        break
                    times[count] = now_ns() - start
                    count += 1
            if back < 0:
                self.load.failed = 0
                self._fail()
            if back == 0:
                raise DeviceError(
                    f"a frame was on its way for {PATIENCE_SECONDS} s and did not come back",
                    "look at the backend's log, and whether it runs both rings")
            PyErr_CheckSignals()
        return trips[:count]

    def _moved(self):
        """All counts since the beginning: sent, received, received bytes, nanoseconds waited, turns."""
        cdef uint64_t sent = 0, received = 0, octets = 0
        cdef run_state *s
        cdef int i
        for i in range(self.load.pairs):
            s = &self.load.states[i]
            sent += s.taken_back
            received += s.to_receive.received if self.returning else s.arrived
            octets += s.to_receive.received_bytes if self.returning else s.arrived_bytes
        return sent, received, octets, self.load.waited_ns, self.load.turns

    def _is_done(self):
        cdef run_state *s
        cdef int i
        for i in range(self.load.pairs):
            s = &self.load.states[i]
            if self.returning and not is_done(s):
                return False
            if ring_in_flight(s.transmit):
                return False
        return True

    def _fail(self):
        cdef int i = self.load.failed
        cdef QueuePair pair = self.pairs[i]
        pair._fail(&self.load.states[i], self.streams[i])
