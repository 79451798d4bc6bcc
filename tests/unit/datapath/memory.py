"""A guest's memory and hand-made rings in it, for tests of the compiled core."""

from __future__ import annotations

import os
import struct

from guestwire.datapath.counters import Counters
from guestwire.datapath.port import Port
from guestwire.datapath.queue_pair import QueuePair
from guestwire.datapath.split_ring import SplitRing
from guestwire.datapath.window import Window
from guestwire.metrics import PairCounters, decode

GUEST_BASE = 0x100000
SIZE = 4 << 20
RINGS = 0  # where in the memory the two rings lie, and the buffers
BUFFERS = 1 << 20
NEXT, WRITE = 1, 2


class Ring:
    """The driver's side of a split ring, written by hand."""

    def __init__(
        self,
        window: Window,
        at: int,
        size: int = 64,
        *,
        receive: bool,
        base: int = 0,
        event_index: bool = False,
        kick_fd: int = -1,
        call_fd: int = -1,
    ) -> None:
        self.window, self.size, self.receive = window, size, receive
        self.at = window.translate_guest(GUEST_BASE + at, 0x4000)
        self.index, self.next_descriptor = base, 0
        self.device = SplitRing(
            window,
            size,
            self.at,
            self.at + 0x1000,
            self.at + 0x2000,
            receive=receive,
            base=base,
            event_index=event_index,
            kick_fd=kick_fd,
            call_fd=call_fd,
        )

    def offer(self, *buffers: tuple[int, int]) -> int:
        """Make a chain of (guest address, length) available; return its head."""
        head = self.next_descriptor
        for number, (address, length) in enumerate(buffers):
            slot = self.next_descriptor
            self.next_descriptor = (slot + 1) % self.size
            flags = (WRITE if self.receive else 0) | (NEXT if number + 1 < len(buffers) else 0)
            descriptor = struct.pack("<QIHH", address, length, flags, self.next_descriptor)
            self.window.write(self.at + 16 * slot, descriptor)
        entry = self.at + 0x1000 + 4 + 2 * (self.index % self.size)
        self.window.write(entry, struct.pack("<H", head))
        self.index = (self.index + 1) & 0xFFFF
        self.window.write(self.at + 0x1002, struct.pack("<H", self.index))
        return head

    def want_no_calls(self) -> None:
        """Set VIRTQ_AVAIL_F_NO_INTERRUPT."""
        self.window.write(self.at + 0x1000, struct.pack("<H", 1))

    def want_calls(self) -> None:
        """Clear VIRTQ_AVAIL_F_NO_INTERRUPT."""
        self.window.write(self.at + 0x1000, struct.pack("<H", 0))

    def want_call_after(self, used_event: int) -> None:
        """Set used_event: the driver wants to be called for that used element (EVENT_IDX)."""
        self.window.write(self.at + 0x1004 + 2 * self.size, struct.pack("<H", used_event))

    def used(self) -> list[tuple[int, int]]:
        """All used elements so far, as (head, length)."""
        (index,) = struct.unpack("<H", self.window.read(self.at + 0x2002, 2))
        return [
            struct.unpack("<II", self.window.read(self.at + 0x2004 + 8 * (i % self.size), 8))
            for i in range(index)
        ]


class Machine:
    """A guest's memory, both rings of a queue pair, and the pair itself on a port."""

    def __init__(
        self,
        port: Port,
        *,
        mergeable: bool = False,
        header_size: int = 12,
        offloads: int = 0,
        event_index: bool = False,
        coalesce_us: int = 0,
        coalesce_packets: int = 64,
    ) -> None:
        self.fd = os.memfd_create("guest")
        os.ftruncate(self.fd, SIZE)
        self.window = Window([(GUEST_BASE, 0x7F0000000000, SIZE, self.fd, 0)], bounce_frames=8)
        self.rx = Ring(self.window, 0, receive=True, event_index=event_index)
        self.tx = Ring(self.window, 0x4000, receive=False, event_index=event_index)
        counter_fd = os.memfd_create("counters")
        self.counters = Counters(counter_fd, 1)
        os.close(counter_fd)
        self.pair = QueuePair(
            self.window,
            port,
            self.rx.device,
            self.tx.device,
            counters=self.counters,
            mergeable=mergeable,
            header_size=header_size,
            offloads=offloads,
            coalesce_us=coalesce_us,
            coalesce_packets=coalesce_packets,
        )
        self.pair.enable(rx=True, tx=True)

    def counted(self) -> PairCounters:
        return decode(self.counters.read())[0]

    def write(self, address: int, data: bytes) -> None:
        self.window.write(self.window.translate_guest(address, len(data)), data)

    def read(self, address: int, length: int) -> bytes:
        return self.window.read(self.window.translate_guest(address, length), length)

    def run(self) -> None:
        """Let the worker do all that there is to do."""
        while self.pair.step():
            pass

    def close(self) -> None:
        os.close(self.fd)
        self.window.close()
