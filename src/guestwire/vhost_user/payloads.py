"""The payloads of vhost-user messages as they lie on the wire.

Each class is one kind of payload that the specification describes, and knows its own bytes; which
request carries which is the table in `guestwire.vhost_user.messages`.

Source: QEMU, docs/interop/vhost-user.rst, "Payload".  All numbers are in the machine's native byte
order, and so are they here.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import ClassVar, Protocol, Self

from guestwire.vhost_user.constants import (
    MAX_CONFIG_SIZE,
    MAX_MEMORY_TABLE_REGIONS,
    RING_INDEX_MASK,
    RING_NO_FD,
)


class MalformedMessageError(ValueError):
    """The bytes are not a message; whoever reads them knows whose fault that is."""


class Payload(Protocol):
    """What follows a header: one of the classes below."""

    def encode(self) -> bytes:
        """Return the bytes of this payload."""

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Read this kind of payload from all of `data`, or raise MalformedMessageError."""


def _unpack(layout: struct.Struct, data: bytes) -> tuple[int, ...]:
    if len(data) != layout.size:
        raise MalformedMessageError(f"payload of {len(data)} bytes instead of {layout.size}")
    return layout.unpack(data)


@dataclass(frozen=True, slots=True)
class Empty:
    """No payload: the request says it all."""

    def encode(self) -> bytes:
        """Return no bytes."""
        return b""

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Accept no bytes."""
        if data:
            raise MalformedMessageError(f"payload of {len(data)} bytes instead of none")
        return cls()


@dataclass(frozen=True, slots=True)
class U64:
    """A single 64-bit integer: feature bits, a count, a status, an MTU, an acknowledgement."""

    value: int

    _LAYOUT: ClassVar[struct.Struct] = struct.Struct("=Q")

    def encode(self) -> bytes:
        """Return 8 bytes."""
        return self._LAYOUT.pack(self.value)

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Read 8 bytes."""
        return cls(*_unpack(cls._LAYOUT, data))


@dataclass(frozen=True, slots=True)
class RingState:
    """A vring state description.

    Attributes:
        index: which ring.
        num: its size, its base, or whether it is enabled, as the request says.
    """

    index: int
    num: int

    _LAYOUT: ClassVar[struct.Struct] = struct.Struct("=II")

    def encode(self) -> bytes:
        """Return 8 bytes."""
        return self._LAYOUT.pack(self.index, self.num)

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Read 8 bytes."""
        return cls(*_unpack(cls._LAYOUT, data))


@dataclass(frozen=True, slots=True)
class RingAddress:
    """A vring address description: where a ring's three areas lie.

    Attributes:
        index: which ring.
        flags: `RingAddressFlag` bits.
        descriptor: user address of the descriptor table (packed: descriptor ring).
        used: user address of the used ring (packed: device event suppression area).
        available: user address of the available ring (packed: driver event suppression area).
        log: guest address at which writes to the used ring are logged, if the flags say so.
    """

    index: int
    flags: int
    descriptor: int
    used: int
    available: int
    log: int

    _LAYOUT: ClassVar[struct.Struct] = struct.Struct("=IIQQQQ")

    def encode(self) -> bytes:
        """Return 40 bytes."""
        return self._LAYOUT.pack(self.index, self.flags, self.descriptor, self.used, self.available, self.log)

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Read 40 bytes."""
        return cls(*_unpack(cls._LAYOUT, data))


@dataclass(frozen=True, slots=True)
class RingDescriptor:
    """The payload of SET_VRING_KICK, _CALL and _ERR: a ring, and whether a descriptor came along.

    Attributes:
        index: which ring, below 256.
        has_descriptor: an eventfd is in the ancillary data; otherwise the ring is polled.
    """

    index: int
    has_descriptor: bool = True

    def encode(self) -> bytes:
        """Return 8 bytes."""
        return U64(self.index | (0 if self.has_descriptor else RING_NO_FD)).encode()

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Read 8 bytes."""
        value = U64.decode(data).value
        unknown = value & ~(RING_INDEX_MASK | RING_NO_FD)
        if unknown:
            raise MalformedMessageError(f"unknown bits {unknown:#x} beside the ring index")
        return cls(value & RING_INDEX_MASK, not value & RING_NO_FD)


@dataclass(frozen=True, slots=True)
class Region:
    """A memory region description: what SET_MEM_TABLE, ADD_MEM_REG and REM_MEM_REG speak of.

    Attributes:
        guest_address: where the guest's drivers see it.
        size: bytes.
        user_address: where the frontend has mapped it; rings are named by such addresses.
        mmap_offset: where it begins in its file.
    """

    guest_address: int
    size: int
    user_address: int
    mmap_offset: int

    LAYOUT: ClassVar[struct.Struct] = struct.Struct("=QQQQ")

    def encode(self) -> bytes:
        """Return 32 bytes."""
        return self.LAYOUT.pack(self.guest_address, self.size, self.user_address, self.mmap_offset)


@dataclass(frozen=True, slots=True)
class MemoryTable:
    """A memory regions description: the whole table, at most eight regions."""

    regions: tuple[Region, ...]

    _LAYOUT: ClassVar[struct.Struct] = struct.Struct("=II")

    def encode(self) -> bytes:
        """Return 8 bytes and 32 more for each region."""
        count = self._LAYOUT.pack(len(self.regions), 0)
        return count + b"".join(region.encode() for region in self.regions)

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Read 8 bytes, the regions they announce, and room for more that a frontend may leave.

        User-Mode Linux always sends room for two regions, whatever their number.
        """
        if len(data) < cls._LAYOUT.size:
            raise MalformedMessageError(
                f"payload of {len(data)} bytes, too short to tell the number of regions"
            )
        count, _padding = cls._LAYOUT.unpack_from(data)
        if count > MAX_MEMORY_TABLE_REGIONS:
            raise MalformedMessageError(f"{count} regions, a table has at most {MAX_MEMORY_TABLE_REGIONS}")
        room, rest = divmod(len(data) - cls._LAYOUT.size, Region.LAYOUT.size)
        if rest or not count <= room <= MAX_MEMORY_TABLE_REGIONS:
            raise MalformedMessageError(f"payload of {len(data)} bytes for {count} regions")
        fields = Region.LAYOUT.iter_unpack(data[cls._LAYOUT.size :])
        return cls(tuple(Region(*next(fields)) for _ in range(count)))


@dataclass(frozen=True, slots=True)
class SingleRegion:
    """A single memory region description: the region to add or to remove."""

    region: Region

    _LAYOUT: ClassVar[struct.Struct] = struct.Struct("=QQQQQ")

    def encode(self) -> bytes:
        """Return 40 bytes, the first 8 of them padding."""
        return bytes(8) + self.region.encode()

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Read 40 bytes."""
        _padding, *fields = _unpack(cls._LAYOUT, data)
        return cls(Region(*fields))


@dataclass(frozen=True, slots=True)
class Config:
    """A part of the virtio device config space.

    Attributes:
        offset: where in the space it begins.
        flags: a `ConfigFlag`.
        data: the bytes; in a GET_CONFIG request only their number counts.
    """

    offset: int
    flags: int
    data: bytes

    _LAYOUT: ClassVar[struct.Struct] = struct.Struct("=III")

    def encode(self) -> bytes:
        """Return 12 bytes and the data."""
        return self._LAYOUT.pack(self.offset, len(self.data), self.flags) + self.data

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Read 12 bytes and the data, at most a whole configuration space."""
        if len(data) < cls._LAYOUT.size:
            raise MalformedMessageError(
                f"payload of {len(data)} bytes, its head alone has {cls._LAYOUT.size}"
            )
        offset, size, flags = cls._LAYOUT.unpack_from(data)
        if size != len(data) - cls._LAYOUT.size:
            raise MalformedMessageError(
                f"{size} bytes of configuration announced, {len(data) - cls._LAYOUT.size} sent"
            )
        if offset + size > MAX_CONFIG_SIZE:
            raise MalformedMessageError(
                f"bytes {offset} to {offset + size} of a configuration space of {MAX_CONFIG_SIZE}"
            )
        return cls(offset, flags, data[cls._LAYOUT.size :])


@dataclass(frozen=True, slots=True)
class Announcement:
    """The payload of SEND_RARP: the guest's MAC address in the first 6 bytes of 8."""

    mac: bytes

    _LAYOUT: ClassVar[struct.Struct] = struct.Struct("=6s2x")

    def encode(self) -> bytes:
        """Return 8 bytes."""
        return self._LAYOUT.pack(self.mac)

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Read 8 bytes."""
        if len(data) != cls._LAYOUT.size:
            raise MalformedMessageError(f"payload of {len(data)} bytes instead of 8")
        return cls(*cls._LAYOUT.unpack(data))
