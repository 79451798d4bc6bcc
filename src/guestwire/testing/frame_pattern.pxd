"""Frames that say which one they are and can be verified to the last byte.

    0   destination address, 6 bytes
    6   source address, 6 bytes
    12  EtherType 0x88b5 (IEEE 802, local experimental use)
    14  stream identifier, 16 bits
    16  sequence number, 64 bits
    24  64-bit words, all different, that follow from the sequence number; the last one may be cut

The numbers are little-endian. Any byte lost, moved, repeated or left over from another frame shows.
Other headers may take the place of the first 16 bytes; what follows then comes behind them. A pattern may
also leave the words of most frames alone, which is for measurements: an ordinary driver does not touch them.
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy

cdef enum:
    PATTERN_HEAD = 16           # bytes that all frames of a stream share, at least
    PATTERN_HEAD_MOST = 64      # and at most
    PATTERN_TAIL = 16           # the sequence number and one word, so that a wrong number shows
    PATTERN_SHORTEST = PATTERN_HEAD + PATTERN_TAIL
    PATTERN_LONGEST = 65536

cdef struct frame_pattern:
    uint8_t head[PATTERN_HEAD_MOST]
    uint32_t head_length        # PATTERN_HEAD to PATTERN_HEAD_MOST
    uint64_t whole_mask         # a frame has all its words if its number has none of these bits, else one
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


cdef inline uint64_t pattern_words(
    const frame_pattern *p, uint64_t sequence, uint32_t length
) noexcept nogil:
    """Return how many bytes of words a frame has."""
    return 8 if sequence & p.whole_mask else length - p.head_length - 8


cdef inline void pattern_write(
    const frame_pattern *p, uint64_t sequence, uint8_t *frame, uint32_t length
) noexcept nogil:
    """Write the `length` bytes of a frame."""
    cdef uint64_t step = 0x9E3779B97F4A7C15
    cdef uint64_t word = pattern_mix(sequence)
    cdef uint8_t *at = frame + p.head_length + 8
    cdef uint64_t octets = pattern_words(p, sequence, length)
    cdef uint64_t i
    # Of a length that the compiler knows, since that takes no call; the rest is rare.
    memcpy(frame, p.head, PATTERN_HEAD)
    if p.head_length > PATTERN_HEAD:
        memcpy(frame + PATTERN_HEAD, p.head + PATTERN_HEAD, p.head_length - PATTERN_HEAD)
    memcpy(frame + p.head_length, &sequence, 8)
    for i in range(octets // 8):
        word += step
        memcpy(at + 8 * i, &word, 8)
    if octets % 8:
        word += step
        memcpy(at + octets // 8 * 8, &word, octets % 8)


cdef inline bint pattern_matches(
    const frame_pattern *p, uint64_t sequence, const uint8_t *frame, uint32_t length
) noexcept nogil:
    """Whether `frame` is byte for byte what pattern_write would write."""
    cdef uint64_t step = 0x9E3779B97F4A7C15
    cdef uint64_t word = pattern_mix(sequence)
    cdef uint64_t difference = 0
    cdef uint64_t found
    cdef const uint8_t *at = frame + p.head_length + 8
    cdef uint64_t octets = pattern_words(p, sequence, length)
    cdef uint64_t i
    if length != pattern_length(p, sequence):
        return False
    # No early exit: the loop without branches is the one that compilers make wide.
    for i in range(octets // 8):
        word += step
        memcpy(&found, at + 8 * i, 8)
        difference |= found ^ word
    word += step
    if difference or (octets % 8 and memcmp(at + octets // 8 * 8, &word, octets % 8)):
        return False
    return (memcmp(frame, p.head, PATTERN_HEAD) == 0
            and (p.head_length == PATTERN_HEAD
                 or memcmp(frame + PATTERN_HEAD, p.head + PATTERN_HEAD, p.head_length - PATTERN_HEAD) == 0))


cdef inline uint64_t pattern_sequence(const frame_pattern *p, const uint8_t *frame) noexcept nogil:
    """Return the sequence number that a frame of no less than the shortest length claims."""
    cdef uint64_t sequence
    memcpy(&sequence, frame + p.head_length, 8)
    return sequence
