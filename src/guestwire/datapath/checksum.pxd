"""The Internet checksum of checksum.h, and of data in pieces."""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from guestwire.datapath.frames cimport piece

cdef extern from "checksum.h" nogil:
    uint64_t checksum_reduce(uint64_t sum)
    uint16_t checksum_fold(uint64_t sum)
    uint64_t checksum_sum(const uint8_t *data, size_t length)
    uint64_t checksum_swap(uint64_t sum)

cdef inline uint64_t checksum_pieces(const piece *pieces, uint32_t count, bint odd) noexcept nogil:
    """Return the sum of the bytes in `count` pieces, which follow an odd number of others if `odd`."""
    cdef uint64_t sum = 0
    cdef uint64_t part
    cdef uint32_t i
    for i in range(count):
        part = checksum_sum(pieces[i].data, pieces[i].length)
        sum += checksum_swap(part) if odd else part
        odd ^= pieces[i].length & 1
    return sum
