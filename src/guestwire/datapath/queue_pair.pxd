"""One pass over a queue pair, for the worker that has it."""

from libc.stdint cimport uint32_t, uint64_t

from guestwire.datapath.counters cimport Counters
from guestwire.datapath.port cimport Port, pair_context, port_interface
from guestwire.datapath.ring cimport Ring, burst
from guestwire.datapath.window cimport Window

cdef struct pair_work:
    pair_context pair
    port_interface *port
    uint32_t index              # of the pair among the guest's
    uint32_t rx_enabled
    uint32_t tx_enabled
    uint32_t trouble_reported
    int trouble_fd              # tells the control side: a ring broke, or the window did
    bint ended                  # the window broke: no more passes are to be made
    bint rx_asked               # the driver will kick at its next buffer
    bint tx_asked               # ... at its next frame
    bint notified               # notifications were enabled, and not disabled since
    # The worker's.
    bint resting                # nothing was there when the worker slept, and no event has come since
    bint port_watched           # the port's descriptor wakes the worker
    uint32_t moving_passes      # since the worker's last sleep
    uint32_t idle_passes
    uint64_t looked_at          # the worker's `work` at the last pass
    # What was taken from the rings and not yet by the port.
    burst buffers
    burst frames

cdef uint32_t queue_pair_pass(pair_work *w) noexcept nogil
cdef bint queue_pair_ask_for_kicks(pair_work *w) noexcept nogil

# Make the calls that are held back.
cdef void queue_pair_make_calls(pair_work *w) noexcept nogil

cdef class QueuePair:
    cdef pair_work *w
    cdef readonly Window window
    cdef readonly Port port
    cdef readonly Ring rx
    cdef readonly Ring tx
    cdef Counters counters
