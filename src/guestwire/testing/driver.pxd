"""The driver of a virtio network device: a queue pair that sends, receives and verifies frames."""

from libc.stdint cimport uint64_t

from guestwire.testing.driver_ring cimport DriverRing
from guestwire.testing.frame_stream cimport FrameStream
from guestwire.testing.traffic cimport run_state

cdef class QueuePair:
    cdef readonly DriverRing receive_ring
    cdef readonly DriverRing transmit_ring
    cdef readonly bint verify_sent
    cdef readonly bint strict
    cdef readonly bint accept_empty
    cdef readonly uint64_t empty
    cdef FrameStream sent_from

    cdef int _begin(self, run_state *s, FrameStream to_send, FrameStream to_receive, window) except -1
    cdef void _send_from(self, FrameStream stream) noexcept
    cdef bint _run(self, run_state *s, double timeout, bint wait, FrameStream expected) except -1
    cdef int _fail(self, const run_state *s, FrameStream expected) except -1
