"""Frames with offloads, turned into frames as they are on a wire: what a reader of the RFCs expects.

The checksums are scapy's: it computes those that are left out when it builds a packet.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6, IPv6ExtHdrDestOpt, IPv6ExtHdrFragment, IPv6ExtHdrHopByHop
from scapy.layers.l2 import Dot1AD, Dot1Q, Ether
from scapy.layers.vxlan import VXLAN
from scapy.packet import Packet

from guestwire.datapath import segmentation
from guestwire.virtio.segmentation import (
    VIRTIO_NET_HDR_F_NEEDS_CSUM,
    VIRTIO_NET_HDR_GSO_ECN,
    VIRTIO_NET_HDR_GSO_TCPV4,
    VIRTIO_NET_HDR_GSO_TCPV6,
    VIRTIO_NET_HDR_GSO_UDP_L4,
    NetHeader,
)

ETHER = Ether(dst="02:00:00:00:00:01", src="02:00:00:00:00:02")
IP4 = IP(src="192.0.2.1", dst="192.0.2.2", id=0xFFFE)
IP6 = IPv6(src="2001:db8::1", dst="2001:db8::2")
PAYLOAD = bytes(range(256)) * 20
OFFSETS = {TCP: 16, UDP: 6}


def segment(header: NetHeader, frame: bytes, lengths: list[int] | None = None) -> list[bytes]:
    return segmentation.segment(header.pack(), frame, lengths)


def ask(packet: Packet, gso_type: int = 0, gso_size: int = 0) -> tuple[NetHeader, bytes]:
    """Return a packet as a guest sends it, with the checksum of its last layer to be computed."""
    frame = bytes(packet)
    transport: Packet = packet.lastlayer()
    while transport.__class__ not in OFFSETS:
        assert transport.underlayer is not None
        transport = transport.underlayer
    offset = OFFSETS[transport.__class__]
    start = len(frame) - len(transport)
    complete = int.from_bytes(frame[start + offset : start + offset + 2], "big")
    # What the complete checksum does not say about the segment, it says about the pseudo-header.
    empty = frame[start : start + offset] + bytes(2) + frame[start + offset + 2 :]
    partial = (segmentation.checksum(empty) - complete) % 0xFFFF
    frame = frame[: start + offset] + partial.to_bytes(2, "big") + frame[start + offset + 2 :]
    return NetHeader(VIRTIO_NET_HDR_F_NEEDS_CSUM, gso_type, 0, gso_size, start, offset), frame


def test_tcp_over_ipv4() -> None:
    def packet(number: int, seq: int, flags: str, data: bytes) -> Packet:
        options = [("NOP", None), ("NOP", None), ("Timestamp", (1, 2))]
        tcp = TCP(sport=1, dport=2, seq=seq, ack=7, window=9, flags=flags, options=options)
        return ETHER / IP(src="192.0.2.1", dst="192.0.2.2", id=number) / tcp / data

    sent = ask(packet(0xFFFE, 0xFFFFFFFF, "CEAPF", PAYLOAD), VIRTIO_NET_HDR_GSO_TCPV4, 2000)
    assert segment(*sent) == [
        bytes(packet(0xFFFE, 0xFFFFFFFF, "CEA", PAYLOAD[:2000])),
        bytes(packet(0xFFFF, 1999, "EA", PAYLOAD[2000:4000])),
        bytes(packet(0, 3999, "EAPF", PAYLOAD[4000:])),
    ]


def test_tcp_over_ipv6_behind_extension_headers() -> None:
    def packet(seq: int, flags: str, data: bytes) -> Packet:
        extensions = IPv6ExtHdrHopByHop() / IPv6ExtHdrDestOpt()
        return ETHER / IP6 / extensions / TCP(seq=seq, flags=flags) / data

    assert segment(*ask(packet(5, "PA", PAYLOAD), VIRTIO_NET_HDR_GSO_TCPV6, 3000)) == [
        bytes(packet(5, "A", PAYLOAD[:3000])),
        bytes(packet(3005, "PA", PAYLOAD[3000:])),
    ]


@pytest.mark.parametrize(
    "network", [lambda number: IP(src="192.0.2.1", dst="192.0.2.2", id=number), lambda _: IP6]
)
def test_udp_in_two_vlans(network: Callable[[int], Packet]) -> None:
    def packet(number: int, data: bytes) -> Packet:
        return ETHER / Dot1AD(vlan=5) / Dot1Q(vlan=6) / network(number) / UDP(sport=4, dport=5) / data

    assert segment(*ask(packet(7, PAYLOAD), VIRTIO_NET_HDR_GSO_UDP_L4, 4000)) == [
        bytes(packet(7, PAYLOAD[:4000])),
        bytes(packet(8, PAYLOAD[4000:])),
    ]


def test_a_checksum_of_zero_is_sent_as_ones_where_zero_says_that_there_is_none() -> None:
    def first_checksum(make: type[Packet], gso_type: int) -> int:
        header, frame = ask(ETHER / IP4 / make() / PAYLOAD, gso_type, 1000)
        at = header.csum_start + header.csum_offset
        value = int.from_bytes(segment(header, frame)[0][at : at + 2], "big")
        value = (int.from_bytes(frame[at : at + 2], "big") + value) % 0xFFFF
        (first, *_) = segment(header, frame[:at] + value.to_bytes(2, "big") + frame[at + 2 :])
        return int.from_bytes(first[at : at + 2], "big")

    assert first_checksum(UDP, VIRTIO_NET_HDR_GSO_UDP_L4) == 0xFFFF
    assert first_checksum(TCP, VIRTIO_NET_HDR_GSO_TCPV4) == 0


@pytest.mark.parametrize("size", [len(PAYLOAD), 0xFFFF])
def test_a_large_frame_of_one_segment_is_only_completed(size: int) -> None:
    packet = ETHER / IP4 / TCP(flags="CPF") / PAYLOAD
    assert segment(*ask(packet, VIRTIO_NET_HDR_GSO_TCPV4, size)) == [bytes(packet)]


def test_a_large_frame_without_payload_is_only_completed() -> None:
    packet = ETHER / IP6 / TCP(flags="S")
    assert segment(*ask(packet, VIRTIO_NET_HDR_GSO_TCPV6, 1)) == [bytes(packet)]


def test_a_byte_a_segment() -> None:
    segments = segment(*ask(ETHER / IP4 / UDP() / PAYLOAD, VIRTIO_NET_HDR_GSO_UDP_L4, 1))
    assert len(segments) == len(PAYLOAD)
    assert b"".join(data[42:] for data in segments) == PAYLOAD


@pytest.mark.parametrize(
    "packet", [ETHER / IP4 / UDP() / b"odd", ETHER / IP6 / TCP() / PAYLOAD, ETHER / IP4 / TCP()]
)
def test_a_checksum_alone(packet: Packet) -> None:
    assert segment(*ask(packet)) == [bytes(packet)]


@pytest.mark.parametrize("network", [IP4, IP6])
def test_a_checksum_inside_a_tunnel(network: Packet) -> None:
    outer = IP6 / UDP(dport=4789, sport=50000) / VXLAN(vni=9)
    packet = ETHER / outer / Ether() / network / TCP() / PAYLOAD
    header, frame = ask(packet)
    (wire,) = segment(header, frame)
    assert wire[header.csum_start :] == bytes(packet)[header.csum_start :]
    assert wire[: header.csum_start] == frame[: header.csum_start]


def test_nothing_asked_nothing_done() -> None:
    frame = bytes(ETHER / IP4 / TCP(chksum=0) / PAYLOAD)
    assert segment(NetHeader(), frame) == [frame]


@pytest.mark.parametrize("lengths", [[1] * 60, [53, 1, 3000], [54, 4096], [7, 4096, 1]])
def test_headers_and_payload_in_any_pieces(lengths: list[int]) -> None:
    header, frame = ask(ETHER / IP4 / TCP() / PAYLOAD, VIRTIO_NET_HDR_GSO_TCPV4, 1448)
    assert segment(header, frame, [*lengths, len(frame) - sum(lengths)]) == segment(header, frame)


TCP4 = ask(ETHER / IP4 / TCP() / PAYLOAD, VIRTIO_NET_HDR_GSO_TCPV4, 1448)
TCP6 = ask(ETHER / IP6 / TCP() / PAYLOAD, VIRTIO_NET_HDR_GSO_TCPV6, 1448)
UDP4 = ask(ETHER / IP4 / UDP() / PAYLOAD, VIRTIO_NET_HDR_GSO_UDP_L4, 1448)
WRONG_REQUESTS = [
    (TCP4, {"gso_size": 0}),
    (TCP4, {"flags": 0}),
    (TCP4, {"gso_type": VIRTIO_NET_HDR_GSO_TCPV6}),
    (TCP4, {"gso_type": VIRTIO_NET_HDR_GSO_UDP_L4}),
    (TCP4, {"gso_type": 3}),
    (TCP6, {"gso_type": VIRTIO_NET_HDR_GSO_TCPV4}),
    (UDP4, {"gso_type": VIRTIO_NET_HDR_GSO_TCPV4}),
    (UDP4, {"gso_type": VIRTIO_NET_HDR_GSO_UDP_L4 | VIRTIO_NET_HDR_GSO_ECN}),
    (TCP4, {"csum_start": 33}),
    (TCP4, {"csum_offset": 6}),
    (UDP4, {"csum_offset": 16}),
    (TCP4, {"csum_start": 0xFFFF, "csum_offset": 0xFFFF}),
]
WRONG_HEADERS = [
    (TCP4, 14, 0x55),  # version 5
    (TCP4, 14, 0x44),  # an IPv4 header of 16 bytes
    (TCP4, 17, 0),  # total length
    (TCP4, 20, 0x20),  # more fragments
    (TCP4, 21, 1),  # fragment offset
    (TCP4, 23, 1),  # ICMP
    (TCP4, 46, 0x40),  # a TCP header of 16 bytes
    (TCP4, 12, 9),  # not IP
    (TCP6, 14, 0x50),  # version 5
    (TCP6, 19, 0),  # payload length
    (TCP6, 20, 44),  # a fragment header
    (TCP6, 20, 60),  # what is a TCP header would be an option header
    (UDP4, 39, 0),  # the length of UDP
]


@pytest.mark.parametrize(("sent", "change"), WRONG_REQUESTS)
def test_a_request_that_does_not_fit_the_frame_is_refused(
    sent: tuple[NetHeader, bytes], change: dict[str, int]
) -> None:
    header, frame = sent
    assert len(segment(header, frame)) == 4
    with pytest.raises(ValueError, match="not what its header says"):
        segment(dataclasses.replace(header, **change), frame)


@pytest.mark.parametrize(("sent", "at", "value"), WRONG_HEADERS)
def test_headers_that_contradict_themselves_are_refused(
    sent: tuple[NetHeader, bytes], at: int, value: int
) -> None:
    header, frame = sent
    with pytest.raises(ValueError, match="not what its header says"):
        segment(header, frame[:at] + bytes([value]) + frame[at + 1 :])


@pytest.mark.parametrize("sent", [TCP4, TCP6, UDP4])
def test_a_frame_that_ends_anywhere_in_its_headers_is_refused(sent: tuple[NetHeader, bytes]) -> None:
    header, frame = sent
    for length in range(14, 100):
        with pytest.raises(ValueError, match="not what its header says"):
            segment(header, frame[:length])


def test_a_fragment_header_is_refused() -> None:
    packet = ETHER / IP6 / IPv6ExtHdrFragment() / TCP() / PAYLOAD
    with pytest.raises(ValueError, match="not what its header says"):
        segment(*ask(packet, VIRTIO_NET_HDR_GSO_TCPV6, 1000))


def test_headers_longer_than_our_room_for_them_are_refused() -> None:
    # 14 of Ethernet, 40 of IPv6, 20 of TCP; 438 are left of 512.
    for units, works in ((54, True), (55, False)):
        options = bytes([6, units - 1]) + bytes(8 * units - 2)
        packet = ETHER / IPv6(src=IP6.src, dst=IP6.dst, nh=60) / (options + bytes(TCP(chksum=0)) + PAYLOAD)
        start = 54 + 8 * units
        header = NetHeader(
            VIRTIO_NET_HDR_F_NEEDS_CSUM, VIRTIO_NET_HDR_GSO_TCPV6, 0, 1000, start, OFFSETS[TCP]
        )
        if works:
            assert len(segment(header, bytes(packet))) == 6
        else:
            with pytest.raises(ValueError, match="not what its header says"):
                segment(header, bytes(packet))


@pytest.mark.parametrize("field", [511, 600])
def test_a_checksum_field_behind_our_room_for_headers_is_refused(field: int) -> None:
    with pytest.raises(ValueError, match="not what its header says"):
        segment(NetHeader(VIRTIO_NET_HDR_F_NEEDS_CSUM, 0, 0, 0, 14, field - 14), bytes(2000))
    assert segment(NetHeader(VIRTIO_NET_HDR_F_NEEDS_CSUM, 0, 0, 0, 14, 510 - 14), bytes(2000))
