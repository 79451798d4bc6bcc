"""Random frames with offloads: such as a guest sends, and such as only a hostile one would.

Everything is drawn from one ``random.Random``, which a seed makes, or hypothesis.
"""

from __future__ import annotations

import dataclasses
import struct
from random import Random

from guestwire.virtio.segmentation import (
    MOST_HEADER,
    TCP,
    UDP,
    VIRTIO_NET_HDR_F_NEEDS_CSUM,
    VIRTIO_NET_HDR_GSO_ECN,
    VIRTIO_NET_HDR_GSO_TCPV4,
    VIRTIO_NET_HDR_GSO_TCPV6,
    VIRTIO_NET_HDR_GSO_UDP_L4,
    NetHeader,
    checksum,
    segment,
)

DESTINATION = bytes.fromhex("020000000001")
SOURCE = bytes.fromhex("020000000002")
SIZES = (1, 7, 8, 100, 536, 1220, 1400, 1448, 1460, 1472, 8948)
LONGEST_PACKET = 65535  # IPv4's total length is 16 bits
MOST_SEGMENTS = 45

Sent = tuple[NetHeader, bytes]


def pseudo_header_sum(addresses: bytes, protocol: int, length: int) -> bytes:
    """What a guest leaves in the checksum field: the sum, not its complement."""
    return (checksum(addresses + struct.pack("!HH", protocol, length)) ^ 0xFFFF).to_bytes(2, "big")


def vlan_tags(random: Random) -> bytes:
    count = random.choice((0, 0, 0, 1, 1, 2, 3))
    return b"".join(
        struct.pack("!HH", random.choice((0x8100, 0x88A8)), random.getrandbits(16)) for _ in range(count)
    )


def extension_headers(random: Random, transport: int) -> tuple[int, bytes]:
    """Return the first header's number, and the headers: hop-by-hop, routing and destination options."""
    kinds = random.choices((0, 43, 60), k=random.choice((0, 0, 0, 1, 1, 2, 3)))
    data = b""
    for kind, following in zip(kinds, [*kinds, transport][1:], strict=True):
        units = random.choice((0, 0, 1, 2, 5))
        # Of a routing header no segments are left: its address is the one in the IPv6 header.
        data += struct.pack("!BBBB", following, units, 0 if kind == 43 else random.getrandbits(8), 0)
        data += random.randbytes(units * 8 + 4)
    return (kinds[0] if kinds else transport), data


def transport_header(random: Random, protocol: int, length: int) -> bytes:
    """A TCP or UDP header before `length` bytes, with an empty checksum field."""
    ports = random.randbytes(4)
    if protocol == UDP:
        return ports + struct.pack("!HH", 8 + length, 0)
    options = random.randbytes(4 * random.choice((0, 0, 3, 3, 5, 10)))
    sequence = random.choice((random.getrandbits(32), 0xFFFFFFFF - random.getrandbits(8)))
    # A quarter of the flags is what TCP sends; the rest is anything.
    flags = random.choice((0x10, 0x18, 0x19, 0x90, 0x98, random.getrandbits(8), random.getrandbits(8)))
    offset = (5 + len(options) // 4) << 4 | random.choice((0, 0, random.getrandbits(4)))
    fixed = struct.pack("!IIBBH", sequence, random.getrandbits(32), offset, flags, random.getrandbits(16))
    return ports + fixed + bytes(2) + random.randbytes(2) + options


def ip_header(random: Random, version: int, protocol: int, length: int) -> tuple[bytes, bytes]:
    """An IP header before `length` bytes, and its addresses."""
    if version == 4:
        options = random.randbytes(4 * random.choice((0, 0, 0, 1, 3, 10)))
        addresses = random.randbytes(8)
        first = 0x45 + len(options) // 4
        total = 20 + len(options) + length
        start = struct.pack("!BBHHH", first, random.getrandbits(8), total, random.getrandbits(16),
                            random.choice((0, 0x4000)))  # fmt: skip
        start += struct.pack("!BB", random.getrandbits(8), protocol)
        value = checksum(start + addresses + options)
        return start + value.to_bytes(2, "big") + addresses + options, addresses
    first, extensions = extension_headers(random, protocol)
    addresses = random.randbytes(32)
    words = 6 << 28 | random.getrandbits(28)
    start = struct.pack("!IHBB", words, len(extensions) + length, first, random.getrandbits(8))
    return start + addresses + extensions, addresses


def payload_length(random: Random) -> tuple[int, int]:
    """Return the bytes of a payload and the gso_size to cut it by; most are not long."""
    size = random.choice((*SIZES, random.randint(1, 3000), random.randint(1, 40000)))
    most = min(MOST_SEGMENTS * size, LONGEST_PACKET - 250)
    length = random.choice(
        (
            random.randint(0, min(most, 3 * size)),
            random.randint(0, min(most, 3000)),
            min(most, size * random.randint(1, 5)),
            random.randint(0, most) if random.random() < 0.1 else min(size + 1, most),
        )
    )
    return length, size


def payload(random: Random, length: int) -> bytes:
    kind = random.random()
    if kind < 0.05:
        return bytes(length)
    if kind < 0.1:
        return b"\xff" * length
    return random.randbytes(length)


def large_frame(random: Random) -> Sent:
    """Make a frame for which a guest asks segmentation."""
    version, protocol = random.choice((4, 6)), random.choice((TCP, TCP, UDP))
    length, size = payload_length(random)
    data = payload(random, length)
    header = transport_header(random, protocol, length)
    ip, addresses = ip_header(random, version, protocol, len(header) + length)
    tags = vlan_tags(random)
    ethertype = b"\x08\x00" if version == 4 else b"\x86\xdd"
    link = DESTINATION + SOURCE + tags + ethertype
    offset = 16 if protocol == TCP else 6
    partial = pseudo_header_sum(addresses, protocol, len(header) + length)
    if random.random() < 0.1:
        partial = random.randbytes(2)
    header = header[:offset] + partial + header[offset + 2 :]
    start = len(link) + len(ip)
    if protocol == UDP:
        gso_type = VIRTIO_NET_HDR_GSO_UDP_L4
    else:
        gso_type = VIRTIO_NET_HDR_GSO_TCPV4 if version == 4 else VIRTIO_NET_HDR_GSO_TCPV6
        gso_type |= random.choice((0, VIRTIO_NET_HDR_GSO_ECN))
    frame = link + ip + header + data
    hint = random.choice((start + len(header), start + len(header), 0, random.randint(0, len(frame))))
    sent = NetHeader(VIRTIO_NET_HDR_F_NEEDS_CSUM, gso_type, hint, size, start, offset), frame
    return force_zero(random, *sent) if random.random() < 0.05 else sent


def force_zero(random: Random, header: NetHeader, frame: bytes) -> Sent:
    """Change what is in the checksum field so that one segment's checksum becomes zero."""
    at = header.csum_start + header.csum_offset
    segments = segment(header, frame)
    # The complement of a sum, added to that sum, is all ones, and its complement is zero.
    rest = int.from_bytes(random.choice(segments)[at : at + 2], "big")
    partial = (int.from_bytes(frame[at : at + 2], "big") + rest) % 0xFFFF
    return header, frame[:at] + partial.to_bytes(2, "big") + frame[at + 2 :]


def single_frame(random: Random) -> Sent:
    """Make a frame whose checksum alone is to be completed, anywhere: as inside a tunnel."""
    frame = DESTINATION + SOURCE + vlan_tags(random) + random.choice((b"\x08\x00", b"\x86\xdd"))
    frame += payload(random, random.randint(80, random.choice((150, 1500, 60000))))
    offset = random.choice((6, 16, 6, 16, random.randint(0, 24)))
    last = min(len(frame), MOST_HEADER) - offset - 2
    start = random.choice((14, 34, 34, 54, last, random.randint(0, last)))
    return NetHeader(VIRTIO_NET_HDR_F_NEEDS_CSUM, 0, 0, 0, start, offset), frame


def mutate(random: Random, header: NetHeader, frame: bytes) -> Sent:
    """Make a frame wrong in some place, or hardly: the headers, the virtio_net_hdr, or the length."""
    changed = bytearray(frame)
    for _ in range(random.choice((1, 1, 2, 4))):
        kind = random.randrange(4)
        if kind == 0:
            changed[random.randrange(min(len(changed), 120))] = random.choice((0, 255, random.getrandbits(8)))
        elif kind == 1:
            changed[random.randrange(12, min(len(changed), 60))] ^= 1 << random.randrange(8)
        elif kind == 2:
            del changed[random.randint(14, len(changed)) :]
            changed += random.randbytes(max(14 - len(changed), 0))
        else:
            field = random.choice(dataclasses.fields(header)).name
            near = getattr(header, field) + random.choice((-2, -1, 1, 2))
            most = 0xFF if field in {"flags", "gso_type"} else 0xFFFF
            value = random.choice((near & most, random.randint(0, most), 0, most))
            header = dataclasses.replace(header, **{field: value})
    return header, bytes(changed)


def cut(random: Random, length: int) -> list[int]:
    """Cut a frame into the pieces of a chain, in any layout."""
    kind = random.randrange(4)
    if kind == 0:
        return [length]
    if kind == 1:
        # A header of its own, then pages: what Linux guests do.
        first = random.randint(1, min(length, 150))
        rest = length - first
        return [first, *[4096] * (rest // 4096), *([rest % 4096] if rest % 4096 else [])]
    marks = sorted({random.randint(1, length) for _ in range(random.choice((1, 3, 30)))} | {length})
    if kind == 2:
        # Headers in tiny pieces.
        marks = sorted(set(marks) | set(range(1, min(length, random.randint(2, 100)), random.randint(1, 3))))
    return [end - begin for begin, end in zip([0, *marks[:-1]], marks, strict=True)]
