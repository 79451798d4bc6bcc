"""The driver's side of a split virtqueue as plain memory, for hostile drivers.

`RawRing` writes whatever it is told to, also what no driver should: that is its purpose.  For a
driver that obeys the rules, and a fast one, see `guestwire.testing.driver`.

The layouts are those of virtio 1.3, 2.7.5 (descriptor table), 2.7.6 (available ring) and 2.7.8
(used ring).  All fields are little-endian, and so are the machines that guestwire runs on.
"""

from __future__ import annotations

import struct

NEXT = 1
"""VIRTQ_DESC_F_NEXT: the buffer goes on at the descriptor that ``next`` names."""
WRITE = 2
"""VIRTQ_DESC_F_WRITE: the device writes, otherwise it reads."""
INDIRECT = 4
"""VIRTQ_DESC_F_INDIRECT: the descriptor refers to a table of descriptors."""

_DESCRIPTOR = struct.Struct("<QIHH")
_USED_ELEMENT = struct.Struct("<II")


def pack_descriptor(address: int, length: int, flags: int = 0, next_index: int = 0) -> bytes:
    """Return the 16 bytes of a struct virtq_desc, for an indirect table.

    Args:
        address: guest address of the buffer.
        length: its bytes.
        flags: `NEXT`, `WRITE`, `INDIRECT`, or any other 16 bits.
        next_index: where the chain goes on.
    """
    return _DESCRIPTOR.pack(address, length, flags, next_index)


def descriptor_table_size(size: int) -> int:
    """Return the bytes of the descriptor table of a ring of a size; it is aligned to 16 bytes."""
    return 16 * size


def available_ring_size(size: int) -> int:
    """Return the bytes of the available ring, used_event included; it is aligned to 2 bytes."""
    return 6 + 2 * size


def used_ring_size(size: int) -> int:
    """Return the bytes of the used ring, avail_event included; it is aligned to 4 bytes."""
    return 6 + 8 * size


class RawRing:
    """The three parts of a split virtqueue, to be written to and read from at will.

    Nothing is checked, and there are no barriers: a device that polls concurrently may see writes
    in another order.  Each 16-bit field is written by one store, so it is never seen half written.

    Args:
        size: the queue size.
        descriptor_table: `descriptor_table_size` writable bytes.
        available_ring: `available_ring_size` writable bytes.
        used_ring: `used_ring_size` writable bytes.
    """

    def __init__(
        self,
        size: int,
        descriptor_table: memoryview,
        available_ring: memoryview,
        used_ring: memoryview,
    ) -> None:
        self.size = size
        self.descriptor_table = descriptor_table
        self.available_ring = available_ring
        self.used_ring = used_ring
        # Views of native 16-bit items: `struct` would write them byte by byte.
        self._available = available_ring.cast("H")
        self._used = used_ring.cast("H")

    def release(self) -> None:
        """Let go of the memory, so that a mapping behind it can be closed."""
        for view in (self._available, self._used):
            view.release()
        for part in (self.descriptor_table, self.available_ring, self.used_ring):
            part.release()

    def describe(self, index: int, address: int, length: int, flags: int = 0, next_index: int = 0) -> None:
        """Write an entry of the descriptor table; the arguments are `pack_descriptor`'s."""
        _DESCRIPTOR.pack_into(self.descriptor_table, 16 * index, address, length, flags, next_index)

    def offer(self, head: int) -> None:
        """Write a head to the available ring's next entry and advance the available index."""
        index = self.available_index
        self.set_entry(index, head)
        self.available_index = index + 1

    def set_entry(self, position: int, head: int) -> None:
        """Write a head, any 16 bits, to the available ring, at a position modulo the queue size."""
        self._available[2 + position % self.size] = head

    def used_element(self, position: int) -> tuple[int, int]:
        """Return the used ring's id and len at a position modulo the queue size."""
        element = _USED_ELEMENT.unpack_from(self.used_ring, 4 + 8 * (position % self.size))
        return element[0], element[1]

    @property
    def available_index(self) -> int:
        """The available ring's idx; what is written to it is taken modulo 2^16."""
        return self._available[1]

    @available_index.setter
    def available_index(self, value: int) -> None:
        self._available[1] = value & 0xFFFF

    @property
    def available_flags(self) -> int:
        """The available ring's flags: 1 asks not to be notified, without VIRTIO_F_EVENT_IDX."""
        return self._available[0]

    @available_flags.setter
    def available_flags(self, value: int) -> None:
        self._available[0] = value

    @property
    def used_event(self) -> int:
        """With VIRTIO_F_EVENT_IDX: the used ring entry that the driver wants a notification for."""
        return self._available[2 + self.size]

    @used_event.setter
    def used_event(self, value: int) -> None:
        self._available[2 + self.size] = value & 0xFFFF

    @property
    def used_index(self) -> int:
        """The used ring's idx."""
        return self._used[1]

    def reset_used_index(self, value: int) -> None:
        """Write the used ring's idx, which is the device's to write while the ring runs."""
        self._used[1] = value & 0xFFFF

    @property
    def used_flags(self) -> int:
        """The used ring's flags: 1 asks not to be notified, without VIRTIO_F_EVENT_IDX."""
        return self._used[0]

    @property
    def avail_event(self) -> int:
        """With VIRTIO_F_EVENT_IDX: the available entry that the device wants a notification for."""
        return self._used[2 + 4 * self.size]
