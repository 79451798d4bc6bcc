"""Frames that say which one they are and can be verified to the last byte.

    0   destination address, 6 bytes
    6   source address, 6 bytes
    12  EtherType 0x88b5 (IEEE 802, local experimental use)
    14  stream identifier, 16 bits
    16  sequence number, 64 bits
    24  64-bit words, all different, that follow from the sequence number; the last one may be cut

The numbers are little-endian. Any byte lost, moved, repeated or left over from another frame shows.
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy

cdef enum:
    PATTERN_HEAD = 16           # bytes that all frames of a stream share
    PATTERN_SEQUENCE = 16       # offset of the sequence number
    PATTERN_WORDS = 24          # offset of the first word
    PATTERN_SHORTEST = 32       # one word, so that a wrong sequence number shows
    PATTERN_LONGEST = 65536

cdef struct frame_pattern:
    uint8_t head[PATTERN_HEAD]
    uint32_t shortest           # bytes of a frame
    uint32_t longest


cdef inline uint64_t pattern_mix(uint64_t x) noexcept nogil:
    """Spread a number over 64 bits (the finalizer of SplitMix64)."""
    x = (x ^ (x >> 30)) * <uint64_t>0xBF58476D1CE4E5B9
    x = (x ^ (x >> 27)) * <uint64_t>0x94D049BB133111EB
    return x ^ (x >> 31)


cdef inline uint32_t pattern_length(const frame_pattern *p, uint64_t sequence) noexcept nogil:
    """Return the length of a frame, which follows from its sequence number."""
    if p.shortest == p.longest:
        return p.shortest
    return p.shortest + <uint32_t>(pattern_mix(sequence + 1) % (p.longest - p.shortest + 1))


cdef inline void pattern_write(
    const frame_pattern *p, uint64_t sequence, uint8_t *frame, uint32_t length
) noexcept nogil:
    """Write the `length` bytes of a frame."""
    cdef uint64_t step = 0x9E3779B97F4A7C15
    cdef uint64_t word = pattern_mix(sequence)
    cdef uint8_t *at = frame + PATTERN_WORDS
    cdef uint64_t words = (length - PATTERN_WORDS) // 8
    cdef uint64_t i
    memcpy(frame, p.head, PATTERN_HEAD)
    memcpy(frame + PATTERN_SEQUENCE, &sequence, 8)
    for i in range(words):
        word += step
        memcpy(at + 8 * i, &word, 8)
    word += step
    memcpy(at + 8 * words, &word, (length - PATTERN_WORDS) % 8)


cdef inline bint pattern_matches(
    const frame_pattern *p, uint64_t sequence, const uint8_t *frame, uint32_t length
) noexcept nogil:
    """Whether `frame` is byte for byte what pattern_write would write."""
    cdef uint64_t step = 0x9E3779B97F4A7C15
    cdef uint64_t word = pattern_mix(sequence)
    cdef uint64_t difference = 0
    cdef uint64_t found
    cdef const uint8_t *at = frame + PATTERN_WORDS
    cdef uint64_t words = (length - PATTERN_WORDS) // 8
    cdef uint64_t i
    if length != pattern_length(p, sequence):
        return False
    # No early exit: the loop without branches is the one that compilers make wide.
    for i in range(words):
        word += step
        memcpy(&found, at + 8 * i, 8)
        difference |= found ^ word
    word += step
    return (difference == 0
            and memcmp(at + 8 * words, &word, (length - PATTERN_WORDS) % 8) == 0
            and memcmp(frame, p.head, PATTERN_HEAD) == 0)


cdef inline uint64_t pattern_sequence(const uint8_t *frame) noexcept nogil:
    """Return the sequence number that a frame claims."""
    cdef uint64_t sequence
    memcpy(&sequence, frame + PATTERN_SEQUENCE, 8)
    return sequence
