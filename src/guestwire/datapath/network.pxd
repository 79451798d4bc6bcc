"""Those who are joined by a wire: their inlets, and where each address was last heard."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy
from posix.time cimport clock_gettime, clockid_t, timespec

cdef extern from "<time.h>" nogil:
    const clockid_t CLOCK_MONOTONIC_COARSE

from guestwire.datapath.addresses cimport MOST_MEMBERS, address_table
from guestwire.datapath.atomics cimport load_acquire_u64
from guestwire.datapath.inlet cimport inlet

cdef enum:
    MOST_PAIRS = 64
    ADDRESS_BYTES = 6

cdef struct network_member:
    uint64_t open_pairs         # a bit for each inlet that is open
    inlet *inlets[MOST_PAIRS]   # made when they are needed, and kept for the network's life

cdef struct network:
    uint32_t member_end         # behind the last member that there ever was
    network_member members[MOST_MEMBERS]
    address_table table

cdef inline uint64_t seconds_now() noexcept nogil:
    """Return the time for the table of addresses; never 0."""
    cdef timespec t
    # A system call less, and good to some milliseconds.
    clock_gettime(CLOCK_MONOTONIC_COARSE, &t)
    return <uint64_t>t.tv_sec + 1

cdef inline uint64_t address_at(const uint8_t *at) noexcept nogil:
    cdef uint64_t address = 0
    memcpy(&address, at, ADDRESS_BYTES)
    return address

cdef inline inlet *open_inlet(const network_member *m, uint32_t pair) noexcept nogil:
    """Return a member's inlet for another's queue pair of this number; NULL if none is open."""
    cdef uint64_t pairs = load_acquire_u64(&m.open_pairs)
    cdef uint64_t rest = pairs
    cdef uint32_t count = 0
    cdef uint32_t number = 0
    if pairs & (pairs - 1) == 0:
        # None, or one: that of the lowest bit.
        while pairs >> number > 1:
            number += 1
        return m.inlets[number] if pairs else NULL
    while rest:
        rest &= rest - 1
        count += 1
    for _ in range(pair % count):
        pairs &= pairs - 1
    while not pairs >> number & 1:
        number += 1
    return m.inlets[number]

cdef class Network:
    cdef network *n
    cdef readonly str name
    cdef readonly dict members
    cdef inlet *_inlet(self, uint32_t member, uint32_t pair) except NULL
