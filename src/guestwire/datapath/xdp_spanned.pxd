"""Frames that span several posted buffers: long ones, and merged ones."""

from libc.stdint cimport uint32_t

from guestwire.datapath.xdp cimport xdp_port

cdef uint32_t take_spanned(xdp_port *x) noexcept nogil
cdef uint32_t take_merged(xdp_port *x, uint32_t waiting) noexcept nogil
