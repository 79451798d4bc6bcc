"""How the driver's buffers are laid out in memory and described to the device.

"The device MUST NOT make assumptions about the particular arrangement of descriptors" (virtio 1.3,
2.7.4.1).  A `BufferLayout` makes one arrangement; a backend should be tried with many.
"""

from __future__ import annotations

from dataclasses import dataclass

CACHE_LINE = 64


def round_up(value: int, unit: int) -> int:
    """Return the first multiple of a unit that is not below a value."""
    return -(-value // unit) * unit


@dataclass(frozen=True)
class BufferLayout:
    """The layout of all buffers of one ring.

    Behind each buffer at least 64 bytes belong to nobody, so that writing past its end shows.

    Attributes:
        length: bytes of a buffer: room for virtio_net_hdr and frame.
        header_apart: whether the header has a descriptor, and a place in memory, of its own.
        piece_length: if given, header and frame are cut into pieces of so many bytes, each with a
            descriptor and a place of its own; a piece may end in the middle of the header.
        indirect: whether the descriptors of a buffer are in an indirect table.
        spacing: bytes from the start of one buffer to the start of the next; as close as the
            layout allows if None.
        offset: bytes by which the buffers are shifted, to choose their alignment.
    """

    length: int = 2048
    header_apart: bool = False
    piece_length: int | None = None
    indirect: bool = False
    spacing: int | None = None
    offset: int = 0

    def lengths(self, header_size: int) -> list[int]:
        """Return the lengths of a buffer's pieces in order."""
        if self.piece_length is not None:
            whole, rest = divmod(self.length, self.piece_length)
            return [self.piece_length] * whole + ([rest] if rest else [])
        if self.header_apart:
            return [header_size, self.length - header_size]
        return [self.length]

    def pieces(self, header_size: int) -> list[tuple[int, int]]:
        """Return the offset in a buffer's share of memory, and the length, of each piece."""
        pieces = []
        offset = self.offset
        for length in self.lengths(header_size):
            pieces.append((offset, length))
            offset = round_up(offset + length, CACHE_LINE) + CACHE_LINE
        return pieces

    def share(self, header_size: int) -> int:
        """Return the bytes of memory from the start of one buffer to the start of the next."""
        if self.spacing is not None:
            return self.spacing
        offset, length = self.pieces(header_size)[-1]
        return round_up(offset + length, CACHE_LINE) + CACHE_LINE
