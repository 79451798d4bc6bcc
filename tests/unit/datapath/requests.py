"""Frames with offloads, as a guest sends them."""

from __future__ import annotations

import struct
from random import Random

from guestwire.virtio.segmentation import (
    TCP,
    UDP,
    VIRTIO_NET_HDR_F_NEEDS_CSUM,
    VIRTIO_NET_HDR_GSO_TCPV4,
    VIRTIO_NET_HDR_GSO_TCPV6,
    VIRTIO_NET_HDR_GSO_UDP_L4,
    NetHeader,
)
from model.large_frames import DESTINATION, SOURCE, pseudo_header_sum


def tcp(length: int, gso_size: int = 0, *, version: int = 4) -> tuple[NetHeader, bytes]:
    """A TCP segment of `length` bytes of payload that asks for its checksum, and for more if `gso_size`."""
    header = bytes.fromhex("00010002 00000010 00000020 5018 1000 0000 0000".replace(" ", ""))
    gso_type = VIRTIO_NET_HDR_GSO_TCPV4 if version == 4 else VIRTIO_NET_HDR_GSO_TCPV6
    return _request(TCP, header, 16, length, gso_size, version, gso_type)


def udp(length: int, gso_size: int = 0, *, version: int = 4) -> tuple[NetHeader, bytes]:
    """The same for a UDP datagram."""
    header = struct.pack("!HHHH", 1, 2, 8 + length, 0)
    return _request(UDP, header, 6, length, gso_size, version, VIRTIO_NET_HDR_GSO_UDP_L4)


def in_a_tunnel() -> tuple[NetHeader, bytes]:
    """A TCP segment in VXLAN that asks for its own checksum, as some drivers do."""
    header, inner = tcp(100)
    vxlan = struct.pack("!BxxxI", 8, 9 << 8) + inner
    _, outer = udp(len(vxlan))
    frame = outer[: -len(vxlan)] + vxlan
    start = len(frame) - len(inner) + header.csum_start
    return NetHeader(VIRTIO_NET_HDR_F_NEEDS_CSUM, csum_start=start, csum_offset=16), frame


def _request(
    protocol: int, transport: bytes, offset: int, length: int, gso_size: int, version: int, gso_type: int
) -> tuple[NetHeader, bytes]:
    size = len(transport) + length
    addresses = bytes(range(8 if version == 4 else 32))
    partial = pseudo_header_sum(addresses, protocol, size)
    transport = transport[:offset] + partial + transport[offset + 2 :]
    if version == 4:
        # The checksum of the IPv4 header is left out: segmentation computes it, nothing else needs it.
        network = (
            b"\x08\x00" + struct.pack("!BBHIBBH", 0x45, 0, 20 + size, 7 << 16, 64, protocol, 0) + addresses
        )
    else:
        network = b"\x86\xdd" + struct.pack("!IHBB", 6 << 28, size, protocol, 64) + addresses
    start = 12 + len(network)
    frame = DESTINATION + SOURCE + network + transport + Random(length).randbytes(length)
    header = NetHeader(
        VIRTIO_NET_HDR_F_NEEDS_CSUM,
        gso_type if gso_size else 0,
        start + len(transport),
        gso_size,
        start,
        offset,
    )
    return header, frame
