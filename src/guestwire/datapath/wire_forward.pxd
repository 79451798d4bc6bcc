"""A frame's way over a wire; see wire_forward.pyx."""

from guestwire.datapath.ring cimport burst, chain
from guestwire.datapath.wire cimport wire_port

cdef enum:
    WAITS = -2                  # for buffers; never GOOD_FRAME or DROP_...

# Send a frame on its way; returns GOOD_FRAME, DROP_... or WAITS.
cdef int wire_send(wire_port *e, const burst *frames, const chain *c) noexcept nogil

# Send on what is behind a frame that was delivered, as far as it is common frames for the same place.
cdef void wire_send_run(wire_port *e, burst *frames) noexcept nogil

# Leave the inlet that was entered for that.
cdef void wire_leave(wire_port *e) noexcept nogil
