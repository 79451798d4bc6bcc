"""The oracle: frames with offloads turned into frames as they are on a wire, slow and obvious.

This is the reference that the compiled segmentation is held against, so it is written to be compared with
the specifications (virtio 1.3, 5.1.6.2; RFC 791, 8200, 9293 and 768), and with what Linux does where they
leave a choice. It takes and gives whole frames, and computes each checksum over all that it covers.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Self

MOST_HEADER = 512
"""The bytes that headers in front of a payload may have; the project's own limit."""

VIRTIO_NET_HDR_F_NEEDS_CSUM = 1
VIRTIO_NET_HDR_GSO_NONE = 0
VIRTIO_NET_HDR_GSO_TCPV4 = 1
VIRTIO_NET_HDR_GSO_TCPV6 = 4
VIRTIO_NET_HDR_GSO_UDP_L4 = 5
VIRTIO_NET_HDR_GSO_ECN = 0x80

IPV4, IPV6 = 0x0800, 0x86DD
VLAN_TAGS = (0x8100, 0x88A8)
TCP, UDP = 6, 17
EXTENSION_HEADERS = (0, 43, 60)
"""Hop-by-hop options, routing and destination options: behind these Linux segments."""

FIN, PSH, CWR = 0x01, 0x08, 0x80


@dataclass(frozen=True)
class NetHeader:
    """A virtio_net_hdr (5.1.6), without num_buffers, which says nothing about a frame that is sent."""

    flags: int = 0
    gso_type: int = VIRTIO_NET_HDR_GSO_NONE
    hdr_len: int = 0
    gso_size: int = 0
    csum_start: int = 0
    csum_offset: int = 0

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Read it from its first 10 bytes."""
        return cls(*struct.unpack_from("<BBHHHH", data))

    def pack(self) -> bytes:
        """Return the 12 bytes of it in front of a frame."""
        return struct.pack(
            "<BBHHHHH",
            self.flags,
            self.gso_type,
            self.hdr_len,
            self.gso_size,
            self.csum_start,
            self.csum_offset,
            0,
        )

    @property
    def needs_checksum(self) -> bool:
        """Whether the checksum is incomplete."""
        return bool(self.flags & VIRTIO_NET_HDR_F_NEEDS_CSUM)


@dataclass(frozen=True)
class Layout:
    """Where the headers of a large frame lie, in bytes from its beginning.

    Attributes:
        network: the IP header.
        transport: the TCP or UDP header.
        payload: what is behind them.
        version: 4 or 6, of IP.
        protocol: ``TCP`` or ``UDP``.
    """

    network: int
    transport: int
    payload: int
    version: int
    protocol: int


def checksum(data: bytes) -> int:
    """Return the Internet checksum of some bytes (RFC 1071)."""
    padded = data + bytes(len(data) % 2)
    total: int = sum(struct.unpack(f"!{len(padded) // 2}H", padded))
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return total ^ 0xFFFF


def segment(header: NetHeader, frame: bytes) -> list[bytes]:
    """Turn a frame with offloads into frames as they are on a wire.

    Raises:
        ValueError: the frame is not what the header says; the message says in what.
    """
    if len(frame) < 14:
        raise ValueError("no Ethernet header")
    if header.gso_type == VIRTIO_NET_HDR_GSO_NONE:
        return [complete_checksum(header, frame)]
    if not header.needs_checksum or header.gso_size == 0:
        raise ValueError("segmentation without a checksum to compute, or without a size")
    layout = find_headers(frame)
    check(header, layout)
    payload = frame[layout.payload :]
    parts = [payload[at : at + header.gso_size] for at in range(0, len(payload), header.gso_size)]
    if len(parts) <= 1:
        # Linux takes it for one of the others, and changes nothing but the checksum.
        return [complete_checksum(header, frame)]
    return [_segment(frame, layout, parts, number) for number in range(len(parts))]


def complete_checksum(header: NetHeader, frame: bytes) -> bytes:
    """Return a frame with its checksum computed, if the header asks for that."""
    if not header.needs_checksum:
        return frame
    start, field = header.csum_start, header.csum_start + header.csum_offset
    if field + 2 > min(len(frame), MOST_HEADER):
        raise ValueError("the checksum field is not in the frame's headers")
    # Never 0, which would say of a UDP datagram that it has none.
    value = checksum(frame[start:]) or 0xFFFF
    return frame[:field] + value.to_bytes(2, "big") + frame[field + 2 :]


def find_headers(frame: bytes) -> Layout:
    """Find the headers of a TCP or UDP packet that is the whole frame.

    Raises:
        ValueError: there is none, or a length in them is wrong.
    """
    headers = frame[:MOST_HEADER]
    try:
        ethertype, at = _u16(headers, 12), 14
        while ethertype in VLAN_TAGS:
            ethertype, at = _u16(headers, at + 2), at + 4
        if ethertype == IPV4:
            version, protocol, transport = 4, *_ipv4(headers, at, len(frame))
        elif ethertype == IPV6:
            version, protocol, transport = 6, *_ipv6(headers, at, len(frame))
        else:
            raise ValueError(f"neither IPv4 nor IPv6: {ethertype:#06x}")
        payload = transport + _transport_header(headers, transport, protocol, len(frame))
    except IndexError:
        raise ValueError("the headers are incomplete, or too long") from None
    if payload > len(headers):
        raise ValueError("the headers are incomplete, or too long")
    return Layout(at, transport, payload, version, protocol)


def _u16(data: bytes, at: int) -> int:
    return data[at] << 8 | data[at + 1]


def _ipv4(headers: bytes, at: int, length: int) -> tuple[int, int]:
    """Return the protocol behind an IPv4 header, and where it begins (RFC 791)."""
    size = (headers[at] & 0xF) * 4
    if headers[at] >> 4 != 4 or size < 20:
        raise ValueError("no IPv4 header")
    if _u16(headers, at + 2) != length - at:
        raise ValueError("the total length of IPv4 is not that of the frame")
    if _u16(headers, at + 6) & 0x3FFF:
        raise ValueError("a fragment")
    return headers[at + 9], at + size


def _ipv6(headers: bytes, at: int, length: int) -> tuple[int, int]:
    """Return the protocol behind IPv6 and its extension headers, and where it begins (RFC 8200)."""
    if headers[at] >> 4 != 6:
        raise ValueError("no IPv6 header")
    if _u16(headers, at + 4) != length - at - 40:
        raise ValueError("the payload length of IPv6 is not that of the frame")
    protocol, at = headers[at + 6], at + 40
    while protocol in EXTENSION_HEADERS:
        protocol, at = headers[at], at + (headers[at + 1] + 1) * 8
    return protocol, at


def _transport_header(headers: bytes, at: int, protocol: int, length: int) -> int:
    """Return the size of a TCP or UDP header (RFC 9293 and 768)."""
    if protocol == TCP:
        size = (headers[at + 12] >> 4) * 4
        if size < 20:
            raise ValueError("a TCP header of less than 20 bytes")
        return size
    if protocol == UDP:
        if _u16(headers, at + 4) != length - at:
            raise ValueError("the length of UDP is not that of the frame")
        return 8
    raise ValueError(f"neither TCP nor UDP: protocol {protocol}")


def check(header: NetHeader, layout: Layout) -> None:
    """Make sure that the frame is what the header says.

    Raises:
        ValueError: it is another.
    """
    ecn = header.gso_type & VIRTIO_NET_HDR_GSO_ECN
    wanted = {
        (4, TCP): VIRTIO_NET_HDR_GSO_TCPV4 | ecn,
        (6, TCP): VIRTIO_NET_HDR_GSO_TCPV6 | ecn,
        (4, UDP): VIRTIO_NET_HDR_GSO_UDP_L4,
        (6, UDP): VIRTIO_NET_HDR_GSO_UDP_L4,
    }
    if header.gso_type != wanted[layout.version, layout.protocol]:
        raise ValueError(f"gso_type {header.gso_type:#x} for another protocol")
    if header.csum_start != layout.transport:
        raise ValueError("csum_start is not where the transport header begins")
    if header.csum_offset != (16 if layout.protocol == TCP else 6):
        raise ValueError("csum_offset is not where the checksum is")


def _segment(frame: bytes, layout: Layout, parts: list[bytes], number: int) -> bytes:
    """Make the frame for one part of the payload."""
    headers = bytearray(frame[: layout.payload])
    payload = parts[number]
    total = layout.payload + len(payload)
    ip, transport = memoryview(headers)[layout.network :], memoryview(headers)[layout.transport :]

    if layout.version == 4:
        identification = _u16(frame, layout.network + 4) + number
        struct.pack_into("!HH", ip, 2, total - layout.network, identification & 0xFFFF)
        struct.pack_into("!H", ip, 10, 0)
        struct.pack_into("!H", ip, 10, checksum(bytes(ip[: layout.transport - layout.network])))
    else:
        struct.pack_into("!H", ip, 4, total - layout.network - 40)

    if layout.protocol == TCP:
        (sequence,) = struct.unpack_from("!I", frame, layout.transport + 4)
        sequence += number * len(parts[0])
        struct.pack_into("!I", transport, 4, sequence & 0xFFFFFFFF)
        if number > 0:
            transport[13] &= ~CWR & 0xFF
        if number < len(parts) - 1:
            transport[13] &= ~(FIN | PSH) & 0xFF
    else:
        struct.pack_into("!H", transport, 4, total - layout.transport)

    field = 16 if layout.protocol == TCP else 6
    # The field holds the sum of the pseudo-header, with the length of the large packet in it.
    change = (total - layout.transport) - (len(frame) - layout.transport)
    partial = (_u16(frame, layout.transport + field) + change) % 0xFFFF
    struct.pack_into("!H", transport, field, partial)
    value = checksum(bytes(transport) + payload)
    if value == 0 and layout.protocol == UDP:
        value = 0xFFFF
    struct.pack_into("!H", transport, field, value)
    return bytes(headers) + payload
