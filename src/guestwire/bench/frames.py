"""The frames that the driver sends, and the buffers that they need."""

from __future__ import annotations

import struct

from guestwire.bench.plan import Case
from guestwire.testing import BufferLayout, FrameStream
from guestwire.virtio.features import Feature
from guestwire.virtio.segmentation import (
    VIRTIO_NET_HDR_F_NEEDS_CSUM,
    VIRTIO_NET_HDR_GSO_TCPV4,
    NetHeader,
)

WHOLE_EVERY = 64
"""Of so many frames one is compared to its last byte; an ordinary driver would look at none."""

ETHERNET, IPV4, TCP = 14, 20, 20
HEADERS = ETHERNET + IPV4 + TCP
SEGMENT = 1460
"""Bytes of a TCP segment at MTU 1,500."""

PAGE = 4096
LARGE_BUFFERS = 64
"""Transmit buffers for large frames: 4 MiB."""

SENDING = Feature.VIRTIO_NET_F_CSUM | Feature.VIRTIO_NET_F_HOST_TSO4
RETURNING = Feature.VIRTIO_NET_F_GUEST_CSUM | Feature.VIRTIO_NET_F_GUEST_TSO4 | Feature.VIRTIO_NET_F_MRG_RXBUF


def offloads_needed(case: Case) -> Feature:
    """Return the features without which the case's frames cannot cross."""
    if not case.is_large:
        return Feature(0)
    return SENDING | (RETURNING if case.kind.returning else Feature(0))


def stream(case: Case, pair: int) -> FrameStream:
    """Return the frames of a queue pair."""
    if not case.is_large:
        return FrameStream(case.frame_bytes, identifier=pair, whole_every=WHOLE_EVERY)
    header = NetHeader(
        flags=VIRTIO_NET_HDR_F_NEEDS_CSUM,
        gso_type=VIRTIO_NET_HDR_GSO_TCPV4,
        hdr_len=HEADERS,
        gso_size=SEGMENT,
        csum_start=ETHERNET + IPV4,
        csum_offset=16,
    )
    head = tcp_headers(case.frame_bytes, source_port=40000 + pair)
    return FrameStream(case.frame_bytes, head=head, header=header.pack(), whole_every=WHOLE_EVERY)


def tcp_headers(frame_bytes: int, source_port: int) -> bytes:
    """Return Ethernet, IPv4 and TCP headers of a frame whose TCP checksum is left to the device.

    The addresses are for documentation (RFC 5737): nobody answers.
    """
    length = frame_bytes - ETHERNET
    source, destination = bytes((192, 0, 2, 1)), bytes((192, 0, 2, 2))
    ethernet = b"\x02\x00\x00\x00\x00\x02" + b"\x02\x00\x00\x00\x00\x01" + b"\x08\x00"
    # Version and header length, TOS, length, identification, fragment offset, TTL, protocol, checksum.
    ip = struct.pack("!BBHHHBBH", 0x45, 0, length, 0, 0x4000, 64, 6, 0) + source + destination
    ip = ip[:10] + struct.pack("!H", 0xFFFF - _sum(ip)) + ip[12:]
    pseudo = _sum(source + destination + struct.pack("!HH", 6, length - IPV4))
    # Ports, sequence number, acknowledgement, header length, flags (ACK), window, checksum, urgent pointer.
    tcp = struct.pack("!HHIIBBHHH", source_port, 5001, 1, 1, 0x50, 0x10, 0xFFFF, pseudo, 0)
    return ethernet + ip + tcp


def _sum(data: bytes) -> int:
    """Return the ones' complement sum of 16-bit words (RFC 1071)."""
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def layouts(case: Case) -> tuple[BufferLayout, BufferLayout]:
    """Return how receive and transmit buffers lie: as Linux' driver has them."""
    if case.is_large:
        # Mergeable buffers of a page each; what is sent is in one piece.
        return BufferLayout(PAGE), BufferLayout(case.frame_bytes + 12)
    buffer = BufferLayout(max(2048, case.frame_bytes + 12))
    return buffer, buffer


def transmit_buffers(case: Case) -> int | None:
    """Return how many transmit buffers a ring gets; None for as many as it has entries."""
    return min(LARGE_BUFFERS, case.ring_size) if case.is_large else None


def memory_bytes(case: Case) -> int:
    """Return how much guest memory the case needs, in whole 2 MiB."""
    receive, transmit = (layout.share(12) for layout in layouts(case))
    buffers = transmit_buffers(case) or case.ring_size
    ring = 64 * case.ring_size + 4 * PAGE
    needed = case.queue_pairs * (case.ring_size * receive + buffers * transmit + 2 * ring)
    return -(-needed * 9 // 8 // (2 << 20)) * (2 << 20) + (4 << 20)
