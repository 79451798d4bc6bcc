"""Reading chains of descriptors."""

from libc.stdint cimport uint16_t, uint32_t

from guestwire.datapath.split_ring cimport burst, chain, split_ring

cdef uint32_t read_chains(split_ring *ring, burst *b, uint32_t count) noexcept nogil
cdef uint32_t read_chain(split_ring *ring, uint16_t head, burst *b, chain *c) noexcept nogil
