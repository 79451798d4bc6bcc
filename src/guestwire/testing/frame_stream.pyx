# cython: language_level=3
"""A stream of frames that can be verified: which were sent, which have arrived."""

cimport cython
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy

from guestwire.testing.frame_pattern cimport (
    PATTERN_HEAD,
    PATTERN_HEAD_MOST,
    PATTERN_LONGEST,
    PATTERN_TAIL,
    pattern_length,
    pattern_matches,
    pattern_sequence,
    pattern_write,
)

from guestwire.testing.faults import VerificationError

ETHERTYPE = 0x88B5
"""The frames' EtherType: IEEE 802's first one for local experimental use."""


cdef inline bint was_seen(const frame_stream *s, uint64_t sequence) noexcept nogil:
    return s.seen[sequence % STREAM_WINDOW // 8] >> (sequence % 8) & 1


cdef inline void mark_seen(frame_stream *s, uint64_t sequence, bint seen) noexcept nogil:
    cdef uint8_t bit = 1 << (sequence % 8)
    if seen:
        s.seen[sequence % STREAM_WINDOW // 8] |= bit
    else:
        s.seen[sequence % STREAM_WINDOW // 8] &= ~bit


cdef arrival stream_accept(frame_stream *s, const uint8_t *frame, uint32_t length) noexcept nogil:
    """Verify a frame and account for it."""
    cdef uint64_t sequence, skipped
    if length < s.pattern.head_length + PATTERN_TAIL:
        return ARRIVED_CORRUPTED
    sequence = pattern_sequence(&s.pattern, frame)
    if not pattern_matches(&s.pattern, sequence, frame, length):
        return ARRIVED_CORRUPTED
    if sequence < s.expected:
        if s.expected - sequence > STREAM_WINDOW or was_seen(s, sequence):
            return ARRIVED_AGAIN
        # It was counted as lost when the one behind it overtook it.
        s.lost -= 1
        mark_seen(s, sequence, True)
        s.received += 1
        s.received_bytes += length
        return ARRIVED_LATE
    s.lost += sequence - s.expected
    for skipped in range(s.expected, min(sequence, s.expected + STREAM_WINDOW)):
        mark_seen(s, skipped, False)
    mark_seen(s, sequence, True)
    s.expected = sequence + 1
    s.received += 1
    s.received_bytes += length
    return ARRIVED


@cython.final
cdef class FrameStream:
    """Ethernet frames that are numbered, and filled with bytes that follow from the number.

    The same object serves both ends: the sender advances `sent`, the receiver the rest. The frames'
    layout is described in ``frame_pattern.pxd``.

    Args:
        length: bytes of a frame, without its FCS; or the shortest and the longest, between which the
            length varies with the number. At least 16 more than `head`, at most 65,536.
        destination: destination MAC address, 6 bytes.
        source: source MAC address, 6 bytes.
        identifier: tells this stream from others, 16 bits.
        head: 16 to 64 bytes with which all frames begin, instead of what these three make.
        header: the virtio_net_hdr that a sender puts before each frame, 12 bytes; all zero if None.
        whole_every: one frame in so many is written and compared to its last byte, the others up to 16
            bytes behind the head: lost, repeated and cut ones show all the same. A power of two.

    Raises:
        ValueError: an argument is out of its range.
    """

    def __cinit__(self):
        self.stream.seen = <uint8_t *>calloc(STREAM_WINDOW // 8, 1)
        if self.stream.seen == NULL:
            raise MemoryError

    def __init__(self, length=64, *, destination=b"\x02\x00\x00\x00\x00\x02",
                 source=b"\x02\x00\x00\x00\x00\x01", identifier=0, head=None, header=None, whole_every=1):
        shortest, longest = (length, length) if isinstance(length, int) else length
        if len(destination) != 6 or len(source) != 6:
            raise ValueError("a MAC address has 6 bytes")
        cdef bytes begin = bytes(destination) + bytes(source) + ETHERTYPE.to_bytes(2, "big") \
            + identifier.to_bytes(2, "little") if head is None else bytes(head)
        cdef bytes before = bytes(NET_HEADER_MOST) if header is None else bytes(header)
        least = len(begin) + PATTERN_TAIL
        if not PATTERN_HEAD <= len(begin) <= PATTERN_HEAD_MOST:
            raise ValueError(f"a head of {len(begin)} bytes: "
                             f"{PATTERN_HEAD} to {PATTERN_HEAD_MOST} are possible")
        if not least <= shortest <= longest <= PATTERN_LONGEST:
            raise ValueError(f"frames of {shortest} to {longest} bytes: "
                             f"{least} to {PATTERN_LONGEST} are possible")
        if len(before) != NET_HEADER_MOST:
            raise ValueError(f"a virtio_net_hdr of {len(before)} bytes instead of {NET_HEADER_MOST}")
        if whole_every < 1 or whole_every & (whole_every - 1):
            raise ValueError(f"whole_every is {whole_every}, not a power of two")
        memcpy(self.stream.pattern.head, <const uint8_t *>begin, len(begin))
        memcpy(self.stream.header, <const uint8_t *>before, NET_HEADER_MOST)
        self.stream.pattern.head_length = len(begin)
        self.stream.pattern.whole_mask = whole_every - 1
        self.stream.pattern.shortest = shortest
        self.stream.pattern.longest = longest

    def __dealloc__(self):
        free(self.stream.seen)

    @property
    def sent(self):
        """Frames sent, hence the number of the next."""
        return self.stream.sent

    @property
    def received(self):
        """Frames that have arrived unharmed."""
        return self.stream.received

    @property
    def received_bytes(self):
        """Bytes of the frames that have arrived unharmed."""
        return self.stream.received_bytes

    @property
    def lost(self):
        """Numbers that were skipped: frames that a later one overtook and that did not come."""
        return self.stream.lost

    @property
    def longest(self):
        """Bytes of the longest frame."""
        return self.stream.pattern.longest

    def frame(self, sequence):
        """Return a frame by its number."""
        cdef uint64_t number = sequence
        cdef uint32_t length = pattern_length(&self.stream.pattern, number)
        cdef bytearray data = bytearray(length)
        cdef uint8_t[::1] view = data
        pattern_write(&self.stream.pattern, number, &view[0], length)
        return bytes(data)

    def take(self, count):
        """Return the next frames to send, and count them as sent, for a sender other than ours."""
        cdef uint64_t first = self.stream.sent
        self.stream.sent += count
        return [self.frame(first + i) for i in range(count)]

    def accept(self, frame):
        """Verify a frame that arrived in some other way than through a `QueuePair`, and count it.

        Frames that were skipped are counted in `lost`, which is no error here.

        Raises:
            VerificationError: it was changed, it came before, or it came late.
        """
        cdef const uint8_t[::1] view = frame
        cdef uint64_t expected = self.stream.expected
        cdef arrival how
        how = stream_accept(&self.stream, &view[0], len(view)) if len(view) else ARRIVED_CORRUPTED
        if how != ARRIVED:
            raise VerificationError(explain_arrival(self, bytes(frame), how, expected))


def explain_arrival(stream: FrameStream, data: bytes, int how, expected: int) -> str:
    """Return a sentence about a frame that did not arrive as it should."""
    cdef const uint8_t *frame = data
    if len(data) < stream.stream.pattern.head_length + PATTERN_TAIL:
        return f"a frame of {len(data)} bytes arrived instead of number {expected}"
    sequence = pattern_sequence(&stream.stream.pattern, frame)
    if how == ARRIVED_AGAIN:
        return f"frame {sequence} arrived again, expected was number {expected}"
    if how == ARRIVED_LATE:
        return f"frame {sequence} arrived late, expected was number {expected}"
    # A wrong number means that the whole frame differs from the one that carries this number.
    wanted = stream.frame(sequence)
    if len(data) != len(wanted):
        return f"frame {sequence} has {len(data)} bytes instead of {len(wanted)}"
    at = next(i for i in range(len(data)) if data[i] != wanted[i])
    return (f"frame {sequence} of {len(data)} bytes, expected was number {expected}: "
            f"byte {at} is {data[at]:#04x} instead of {wanted[at]:#04x}, "
            f"{sum(a != b for a, b in zip(data, wanted, strict=True))} bytes differ")
