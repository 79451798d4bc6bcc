"""A driver that knows at any time which chains, and which bytes, are whose."""

from __future__ import annotations

import struct

from unit.datapath.memory import NEXT, WRITE, Ring
from unit.datapath.xdp_machine import BUFFER_SPACING, XdpMachine

Chain = list[tuple[int, int, int]]
"""The (descriptor, guest address, length) of each buffer."""


class Driver:
    """The guest's driver of one ring: which chain is whose."""

    def __init__(self, guest: XdpMachine, ring: Ring, memory: int) -> None:
        self.guest, self.ring, self.memory = guest, ring, memory
        self.free = list(range(ring.size))
        self.out: dict[int, Chain] = {}  # by head
        self.next_used = 0
        size = ring.size * BUFFER_SPACING
        self.shadow = bytearray(guest.read(memory, size))

    def offer(self, layout: list[tuple[int, int]], data: bytes = b"") -> int:
        """Offer a chain of (offset, length) with these bytes in it."""
        slots = [self.free.pop() for _ in layout]
        chain = [
            (slot, self.memory + slot * BUFFER_SPACING + offset, length)
            for slot, (offset, length) in zip(slots, layout, strict=True)
        ]
        for i, (slot, address, length) in enumerate(chain):
            self.store(address, data[:length])
            data = data[length:]
            last = i + 1 == len(chain)
            flags = (WRITE if self.ring.receive else 0) | (0 if last else NEXT)
            descriptor = struct.pack("<QIHH", address, length, flags, 0 if last else slots[i + 1])
            self.guest.window.write(self.ring.at + 16 * slot, descriptor)
        head = slots[0]
        self.out[head] = chain
        entry = self.ring.at + 0x1004 + 2 * (self.ring.index % self.ring.size)
        self.guest.window.write(entry, struct.pack("<H", head))
        self.ring.index = self.ring.index + 1 & 0xFFFF
        self.guest.window.write(self.ring.at + 0x1002, struct.pack("<H", self.ring.index))
        return head

    def store(self, address: int, data: bytes) -> None:
        self.guest.write(address, data)
        at = address - self.memory
        self.shadow[at : at + len(data)] = data

    def take_used(self) -> list[tuple[int, Chain, int]]:
        """Take back what is used, as (head, chain, length); only what is out may be."""
        (index,) = struct.unpack("<H", self.guest.window.read(self.ring.at + 0x2002, 2))
        taken = []
        while self.next_used != index:
            at = self.ring.at + 0x2004 + 8 * (self.next_used % self.ring.size)
            head, length = struct.unpack("<II", self.guest.window.read(at, 8))
            assert head in self.out, f"chain {head} was returned and is not out"
            chain = self.out.pop(head)
            assert length <= sum(n for _, _, n in chain)
            self.free += [slot for slot, _, _ in chain]
            taken.append((head, chain, length))
            self.next_used = self.next_used + 1 & 0xFFFF
        return taken

    def read(self, chain: Chain) -> bytes:
        """Return what a returned chain holds; from now on it must not change."""
        data = b""
        for _, address, length in chain:
            piece = self.guest.read(address, length)
            at = address - self.memory
            self.shadow[at : at + length] = piece
            data += piece
        return data

    def check_untouched(self) -> None:
        """Nothing but the buffers that the device has may have changed."""
        found = bytearray(self.guest.read(self.memory, len(self.shadow)))
        for chain in self.out.values() if self.ring.receive else ():
            for _, address, length in chain:
                at = address - self.memory
                found[at : at + length] = self.shadow[at : at + length]
        assert found == self.shadow, "bytes changed outside the buffers"

    def check_offered_again(self) -> None:
        """After the port is closed the next one finds exactly the chains that are still out."""
        base = self.ring.device.base
        count = self.ring.index - base & 0xFFFF
        entries = [
            struct.unpack("<H", self.guest.window.read(self.ring.at + 0x1004 + 2 * (i % self.ring.size), 2))[
                0
            ]
            for i in range(base, base + count)
        ]
        assert sorted(entries) == sorted(self.out)
