"""The configuration space of a network device: struct virtio_net_config.

Source: Virtual I/O Device (VIRTIO) Version 1.3, section 5.1.4.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntFlag
from typing import ClassVar, Self

MTU_RANGE = range(68, 65536)
"""The values that the mtu field may have."""

QUEUE_PAIR_RANGE = range(1, 0x8000 + 1)
"""The values that the max_virtqueue_pairs field may have, if VIRTIO_NET_F_MQ is offered."""


class NetStatus(IntFlag):
    """The status field, if VIRTIO_NET_F_STATUS is offered."""

    LINK_UP = 1
    ANNOUNCE = 2


@dataclass(frozen=True, slots=True)
class NetConfig:
    """What a driver may read about its network device.

    Attributes:
        mac: 6 bytes, valid with VIRTIO_NET_F_MAC.
        status: whether the link is up, valid with VIRTIO_NET_F_STATUS.
        max_queue_pairs: queue pairs that can be configured, valid with VIRTIO_NET_F_MQ.
        mtu: bytes of the largest frame behind its Ethernet header, valid with VIRTIO_NET_F_MTU.

    The fields behind these belong to features that are not offered, and are zero.
    """

    mac: bytes = bytes(6)
    status: NetStatus = NetStatus.LINK_UP
    max_queue_pairs: int = 1
    mtu: int = 1500

    _LAYOUT: ClassVar[struct.Struct] = struct.Struct("<6sHHH16x")

    def encode(self) -> bytes:
        """Return the 28 bytes of the structure, little-endian."""
        return self._LAYOUT.pack(self.mac, self.status, self.max_queue_pairs, self.mtu)

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Read the structure from its first bytes, as many as there are."""
        mac, status, pairs, mtu = cls._LAYOUT.unpack(data[: cls._LAYOUT.size].ljust(28, b"\0"))
        return cls(mac, NetStatus(status), pairs, mtu)

    def read(self, offset: int, size: int) -> bytes:
        """Return `size` bytes from `offset`; there are zeros behind the end of the structure.

        A frontend may read more than the structure of its day: the space grows with the standard.
        """
        return self.encode()[offset : offset + size].ljust(size, b"\0")

    def written(self, offset: int, data: bytes) -> Self:
        """Return the configuration after `data` was written at `offset`."""
        space = bytearray(self.read(0, max(self._LAYOUT.size, offset + len(data))))
        space[offset : offset + len(data)] = data
        return self.decode(bytes(space))
