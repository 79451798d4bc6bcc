"""A guest on the xdp port, with a socket whose kernel side is the test's."""

from __future__ import annotations

import os
from typing import Literal

from guestwire.datapath.counters import Counters
from guestwire.datapath.queue_pair import QueuePair
from guestwire.datapath.split_ring import SplitRing
from guestwire.datapath.window import Window
from guestwire.datapath.xdp import XdpPort
from guestwire.metrics import PairCounters, decode
from guestwire.ports import geometry
from guestwire.testing.fake_xdp_socket import FakeXdpSocket, SentFrame, scatter_pages
from unit.datapath.memory import BUFFERS, GUEST_BASE, SIZE, Ring

MTU = 1500
LARGE = 2048  # a buffer that the largest frame fits in, whatever the mode
SEND = GUEST_BASE + BUFFERS
RECEIVE = GUEST_BASE + 2 * BUFFERS
BUFFER_SPACING = 4096
DRIVER = "virtio_net"  # may write 1,536 bytes at this MTU

STAND_IN_FRAMES = 32

Mode = Literal["zero-copy", "direct", "bounce"]
MODES: tuple[Mode, ...] = ("zero-copy", "direct", "bounce")


class XdpMachine:
    """A guest's memory with both rings of a queue pair, attached to an xdp port.

    Args:
        mode: of the port. piece: bytes that a device sees in one piece, in zero-copy mode.
        mergeable, header_size: as the guest negotiated.
        size: entries of each of the guest's rings. socket_ring: of each of the socket's.
        bounce_frames: how many the port has.
        most_pieces, reserve, copy_headers, source, finish_checksums, merge: of the port.
        mtu: of the interface. offloads: features that the guest accepted.
        stand_ins: how many the port has, of STAND_IN_FRAMES frames each.

    Attributes:
        others: their sockets.
    """

    def __init__(
        self,
        mode: Mode = "direct",
        *,
        piece: int = 2 << 20,
        mergeable: bool = False,
        header_size: int = 12,
        size: int = 64,
        socket_ring: int = 128,
        bounce_frames: int = 192,
        most_pieces: int = 1,
        reserve: int = 0,
        copy_headers: bool = False,
        source: bytes | None = None,
        mtu: int = MTU,
        offloads: int = 0,
        finish_checksums: bool = False,
        merge: bool = False,
        stand_ins: int = 0,
    ) -> None:
        self.stand_ins = stand_ins
        self.mode = mode
        self.mergeable, self.header_size = mergeable, header_size
        self.socket_ring, self.bounce_frames = socket_ring, bounce_frames
        self.most_pieces, self.reserve, self.copy_headers = most_pieces, reserve, copy_headers
        self.source = source
        self.mtu, self.offloads, self.finish_checksums, self.merge = mtu, offloads, finish_checksums, merge
        fd = os.memfd_create("guest")
        os.ftruncate(fd, SIZE)
        self.window = Window(
            [(GUEST_BASE, 0x7F0000000000, SIZE, fd, 0)], bounce_frames=bounce_frames * (1 + stand_ins)
        )
        os.close(fd)
        if mode == "zero-copy":
            scatter_pages(self.window, piece)
        self.rx = Ring(self.window, 0, size, receive=True)
        self.tx = Ring(self.window, 0x4000, size, receive=False)
        counter_fd = os.memfd_create("counters")
        self.counters = Counters(counter_fd, 1)
        os.close(counter_fd)
        self.attach()

    def attach(self) -> None:
        """Put the rings on a new socket, from where they are."""
        self.geometry = (
            geometry.zero_copy_mode(self.mtu, DRIVER, trust_mtu=True)
            if self.mode == "zero-copy"
            else geometry.copy_mode(self.mtu, mergeable=self.mergeable, in_place=self.mode == "direct")
        )
        assert self.geometry is not None
        self.socket = FakeXdpSocket(
            self.window,
            guest_memory=self.mode != "bounce",
            zero_copy=self.mode == "zero-copy",
            chunk=self.geometry.chunk,
            headroom=self.geometry.headroom,
            ring_size=self.socket_ring,
        )
        self.others = [
            FakeXdpSocket(self.window, guest_memory=False, ring_size=STAND_IN_FRAMES)
            for _ in range(self.stand_ins)
        ]
        share = self.bounce_frames * geometry.FRAME_BYTES
        self.port = XdpPort(
            self.socket,
            bounce_offset=self.window.bounce_offset,
            bounce_frames=self.bounce_frames,
            room_needed=self.geometry.room_needed,
            longest_frame=self.geometry.longest_frame,
            most_pieces=self.most_pieces,
            reserve=self.reserve,
            copy_headers=self.copy_headers,
            source=self.source,
            several_buffers=self.geometry.several_buffers,
            finish_checksums=self.finish_checksums,
            merge=self.merge,
            stand_ins=[
                (socket, self.window.bounce_offset + number * share, STAND_IN_FRAMES)
                for number, socket in enumerate(self.others, 1)
            ],
        )
        self.pair = QueuePair(
            self.window,
            self.port,
            self.rx.device,
            self.tx.device,
            counters=self.counters,
            mergeable=self.mergeable,
            header_size=self.header_size,
            offloads=self.offloads,
        )
        self.pair.enable(rx=True, tx=True)

    def detach(self) -> None:
        """Close the port as `guestwire` does, and start the rings anew where they were left."""
        self.pair.finish()
        self.port.close()
        self.pair.settle()

    def reattach(self) -> None:
        """Continue on a new socket, from the base that the device side of each ring tells."""
        for ring in (self.rx, self.tx):
            ring.device = SplitRing(
                self.window,
                ring.size,
                ring.at,
                ring.at + 0x1000,
                ring.at + 0x2000,
                receive=ring.receive,
                base=ring.device.base,
            )
        self.attach()

    # --- the guest -----------------------------------------------------------------------------------

    def write(self, address: int, data: bytes) -> None:
        self.window.write(self.window.translate_guest(address, len(data)), data)

    def read(self, address: int, length: int) -> bytes:
        return self.window.read(self.window.translate_guest(address, length), length)

    def offer_receive(self, number: int, length: int = LARGE) -> int:
        """Offer the receive buffer of this number; return the chain's head."""
        return self.rx.offer((receive_address(number), length))

    def offer_frame(self, number: int, frame: bytes, *, offset: int = 0, header: bytes = b"") -> int:
        """Send a frame from one buffer, `offset` bytes into the one of this number; return its head."""
        address = SEND + BUFFER_SPACING * number + offset
        self.write(address, header.ljust(self.header_size, b"\0") + frame)
        return self.tx.offer((address, self.header_size + len(frame)))

    # --- the worker ----------------------------------------------------------------------------------

    def run(self) -> None:
        """Let the worker do all that there is to do."""
        while self.pair.step():
            pass

    def counted(self) -> PairCounters:
        return decode(self.counters.read())[0]

    # --- the kernel ----------------------------------------------------------------------------------

    def send_all(self) -> list[SentFrame]:
        """Send what is in the tx ring, complete it, and let the guest see that."""
        frames = self.socket.take_frames()
        self.socket.complete([address for frame in frames for address in frame.addresses])
        self.run()
        return frames

    def close(self) -> None:
        self.port.close()
        self.window.close()


def receive_address(number: int) -> int:
    """Return where the receive buffer of this number lies in the guest."""
    return RECEIVE + BUFFER_SPACING * number
