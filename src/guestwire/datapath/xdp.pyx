# cython: language_level=3
"""The xdp port: guest buffers on the rings of an AF_XDP socket. See xdp_receive and xdp_transmit."""

from libc.stdint cimport uint8_t, uint32_t
from libc.stdlib cimport calloc, free

from guestwire.datapath.ring cimport burst
from guestwire.datapath.xdp_post cimport xdp_rx_post
from guestwire.datapath.xdp_receive cimport xdp_rx_poll
from guestwire.datapath.xdp_socket cimport XdpSocket
from guestwire.datapath.xdp_stand_in cimport stand_in_close, stand_in_open
from guestwire.datapath.xdp_transmit cimport xdp_drain, xdp_tx_poll, xdp_tx_submit


cdef class XdpPort(Port):
    """Guest buffers on the rings of an AF_XDP socket.

    Args:
        socket: the socket, bound; closed by this port.
        bounce_offset, bounce_frames: this pair's share of the window's bounce frames.
        room_needed: bytes behind the virtio_net_hdr that a guest's buffer must have to be posted itself:
            all that the kernel or the NIC may write.
        longest_frame: bytes of the longest frame that the interface sends or receives.
        most_pieces: descriptors that a sent frame may have, 1 to 17.
        reserve: how many buffers the kernel must have at any time, for drivers that misbehave with fewer.
        copy_headers: send a frame's first 128 bytes from our own memory.
        several_buffers: frames may be longer than a chunk; the socket is bound for that. `room_needed` is
            then all that the kernel writes into one buffer.
        finish_checksums: the interface hands over frames whose checksum is unfinished.
        in_place_from: bytes, headers included, that a segment of a frame with offloads must have for its
            payload to be sent from the guest's pages. A shorter one is copied behind its headers.
        merge: put segments of one flow together that arrive in one burst.
        busy_poll: call the kernel in each pass that finds nothing: it then polls the queue
            (`guestwire.host.busy_polling`).
        source: the only address, of 6 bytes, that the guest may send from; needs `copy_headers`. None: any.
        stand_ins: sockets on queues of pairs that are not at work, whose frames this pair gets: for each the
            socket, bound in copy mode and closed by this port, and its own share of the window's bounce
            frames, as ``(socket, bounce_offset, bounce_frames)``. Its fill ring has room for all of them.
    """

    def __cinit__(self):
        cdef xdp_port *x = <xdp_port *>calloc(1, sizeof(xdp_port))
        if x == NULL:
            raise MemoryError
        self.port = &x.base
        x.base.rx_post = xdp_rx_post
        x.base.rx_poll = xdp_rx_poll
        x.base.tx_submit = xdp_tx_submit
        x.base.tx_poll = xdp_tx_poll
        x.base.drain = xdp_drain

    def __init__(self, XdpSocket socket, *, bounce_offset, bounce_frames, room_needed, longest_frame,
                 most_pieces, reserve=0, copy_headers=False, source=None, several_buffers=False,
                 finish_checksums=False, merge=False, in_place_from=0, busy_poll=False, stand_ins=()):
        cdef xdp_port *x = <xdp_port *>self.port
        cdef uint32_t i
        if not 1 <= most_pieces <= MOST_PIECES:
            raise ValueError(f"a frame of up to {most_pieces} descriptors: 1 to {MOST_PIECES} are possible")
        if source is not None and (len(source) != sizeof(x.source) or not copy_headers):
            raise ValueError("a source has 6 bytes, and is checked in a copied header")
        self.socket = socket
        x.base.fd = socket.fd
        x.fill, x.completion = &socket.fill, &socket.completion
        x.rx, x.tx = &socket.rx, &socket.tx
        x.guest_memory, x.zero_copy, x.chunk = socket.guest_memory, socket.zero_copy, socket.chunk
        x.umem = socket.umem_offset
        x.bounce = bounce_offset - x.umem
        x.before_frame = KERNEL_HEADROOM + socket.headroom
        x.room_needed, x.longest_frame = room_needed, longest_frame
        x.most_pieces, x.reserve, x.in_place_from = most_pieces, reserve, in_place_from
        x.copy_headers, x.check_source = copy_headers, source is not None
        x.several_buffers, x.finish_checksums, x.merge = several_buffers, finish_checksums, merge
        x.busy_poll = busy_poll
        x.merger.unfinished = finish_checksums
        for i, octet in enumerate(source or b""):
            x.source[i] = octet
        x.abandoned_head = NO_HEAD
        x.posted_mask = socket.fill.size - 1
        x.posted = <posted_buffer *>calloc(socket.fill.size, sizeof(posted_buffer))
        x.pieces_left = <uint32_t *>calloc(1 << 16, sizeof(uint32_t))
        x.frames_out = <uint8_t *>calloc(bounce_frames, 1)
        x.free_frames = <uint32_t *>calloc(bounce_frames, sizeof(uint32_t))
        x.scratch = <burst *>calloc(1, sizeof(burst))
        if (x.posted == NULL or x.pieces_left == NULL or x.frames_out == NULL or x.free_frames == NULL
                or x.scratch == NULL):
            raise MemoryError
        for i in range(bounce_frames):
            x.free_frames[i] = i
        x.free_count = x.frame_count = bounce_frames
        x.base.wants_buffers = True
        self._open(stand_ins)

    def _open(self, stand_ins):
        cdef xdp_port *x = <xdp_port *>self.port
        cdef XdpSocket socket
        self.stand_ins = tuple(socket for socket, _, _ in stand_ins)
        x.stand_ins = <stand_in *>calloc(len(stand_ins) + 1, sizeof(stand_in))
        x.stand_in_fds = <int *>calloc(len(stand_ins) + 1, sizeof(int))
        if x.stand_ins == NULL or x.stand_in_fds == NULL:
            raise MemoryError
        for socket, offset, frames in stand_ins:
            if frames > socket.fill.size:
                raise ValueError(f"{frames} bounce frames for a fill ring of {socket.fill.size} entries")
            x.stand_in_fds[x.stand_in_count] = socket.fd
            stand_in_open(&x.stand_ins[x.stand_in_count], socket, offset, frames)
            x.stand_in_count += 1
        x.base.more_fds, x.base.more_fd_count = x.stand_in_fds, x.stand_in_count

    @property
    def held(self):
        """What the kernel has: ``(guest chains posted, spare bounce frames posted, descriptors to send)``."""
        cdef xdp_port *x = <xdp_port *>self.port
        return x.chains_posted, x.spare_posted, x.descriptors_out

    def close(self):
        """Close the sockets, when no worker has the pair any more; `settle` then returns what remains."""
        cdef xdp_port *x = <xdp_port *>self.port
        cdef XdpSocket socket
        if not x.closed and x.base.pair != NULL:
            stand_in_close(x)
        x.closed = True
        self.socket.close()
        for socket in self.stand_ins:
            socket.close()

    def __dealloc__(self):
        cdef xdp_port *x = <xdp_port *>self.port
        if x != NULL:
            free(x.posted)
            free(x.pieces_left)
            free(x.frames_out)
            free(x.free_frames)
            free(x.scratch)
            free(x.stand_ins)
            free(x.stand_in_fds)
            free(x)
