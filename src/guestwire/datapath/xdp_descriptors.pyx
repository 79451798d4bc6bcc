# cython: language_level=3
"""Pieces that become descriptors, and copies of them; see xdp_descriptors.pxd."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy, memmove

from guestwire.datapath.frames cimport piece

cdef uint32_t split_pieces(xdp_port *x, uint32_t count) noexcept nogil:
    """Cut those of the `count` pieces that are longer than a chunk, which no descriptor may be.

    Returns their number then; there is room for MOST_SPLITS more than a chain has.
    """
    cdef uint32_t i = 0
    while i < count:
        if x.pieces[i].length > x.chunk:
            memmove(&x.pieces[i + 1], &x.pieces[i], (count - i) * sizeof(piece))
            count += 1
            x.pieces[i].length = x.chunk
            x.pieces[i + 1].data += x.chunk
            x.pieces[i + 1].length -= x.chunk
        i += 1
    return count


cdef uint32_t gather(xdp_port *x, uint32_t first, uint8_t *to, uint32_t length) noexcept nogil:
    """Copy the next `length` bytes of the pieces from `first` on, which become that much shorter.

    Returns the first piece of which something remains.
    """
    cdef uint32_t part
    while length:
        part = min(x.pieces[first].length, length)
        memcpy(to, x.pieces[first].data, part)
        to += part
        length -= part
        x.pieces[first].data += part
        x.pieces[first].length -= part
        if x.pieces[first].length == 0:
            first += 1
    return first


cdef uint32_t put_copied(
    xdp_port *x, uint32_t first, uint32_t count, uint32_t filled, uint32_t length
) noexcept nogil:
    """Send bounce frames with the `filled` bytes that are in the first of them, and `length` bytes copied.

    They are the next of the pieces from `first` on, of which there are `count` in all; what remains of these
    is to follow as part of the same frame. The caller made sure that there is space. Returns the first piece
    of which something remains.
    """
    cdef uint32_t frame, part
    cdef uint64_t address
    cdef uint8_t *to
    x.base.pair.counters.tx.copied_bytes += length
    while True:
        x.free_count -= 1
        frame = x.free_frames[x.free_count]
        x.frames_out[frame] = 1
        address = frame_address(x, frame)
        part = min(length, x.chunk - filled)
        to = x.base.pair.window.base + x.umem + address
        first = gather(x, first, to + filled, part)
        length -= part
        put_descriptor(x, address, filled + part, length != 0 or first < count)
        if length == 0:
            return first
        filled = 0
