"""Sockets on queues of pairs that are not at work; see xdp_stand_in.pyx."""

from libc.stdint cimport uint32_t, uint64_t

from guestwire.datapath.xdp cimport stand_in, xdp_port
from guestwire.datapath.xdp_socket cimport XdpSocket

# Give all frames of a stand-in to the kernel.
cdef void stand_in_open(stand_in *s, XdpSocket socket, uint64_t offset, uint32_t frames) noexcept

# Count as dropped what has arrived and found no buffer; afterwards the sockets may be closed.
cdef void stand_in_close(xdp_port *x) noexcept nogil

# Take frames from the stand-ins, in turn, and leave at least half of the burst to the port's own socket.
cdef void stand_ins_poll(xdp_port *x) noexcept nogil
