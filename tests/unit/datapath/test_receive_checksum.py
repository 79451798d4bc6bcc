"""Frames with unfinished checksums, as Linux hands them over on a veth pair: completed or marked."""

from __future__ import annotations

import random
import socket
import struct

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scapy.layers.inet import IP, TCP, UDP, IPOption_NOP
from scapy.layers.inet6 import (
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
    IPv6ExtHdrSegmentRouting,
    PadN,
)
from scapy.layers.l2 import Dot1AD, Dot1Q, Ether
from scapy.layers.sctp import SCTP
from scapy.packet import Packet, Raw, raw

from guestwire.datapath.receive_checksum import finish

ETHER = Ether(dst="02:00:00:00:00:02", src="02:00:00:00:00:01")
V4 = IP(src="192.0.2.1", dst="192.0.2.2")
V6 = IPv6(src="2001:db8::1", dst="2001:db8::2")
SEGMENTS = IPv6ExtHdrSegmentRouting(addresses=["2001:db8::2", "2001:db8::9"], segleft=1, lastentry=1)
TCP_ALONE = TCP(sport=1000, dport=2000, seq=7, flags="PA")
TCP_OPTIONS = TCP(sport=1000, dport=2000, seq=7, flags="A", options=[("Timestamp", (1, 2)), ("NOP", None)])
UDP_ALONE = UDP(sport=1000, dport=2000)
FIELD = {TCP: 16, UDP: 6}
NEEDS_CSUM = 1

LAYERS: dict[str, Packet] = {
    "plain": ETHER / V4,
    "options": ETHER / IP(src="192.0.2.1", dst="192.0.2.2", options=[IPOption_NOP()] * 8),
    "dont-fragment": ETHER / IP(src="192.0.2.1", dst="192.0.2.2", flags="DF", tos=0xB8, ttl=3),
    "vlan": ETHER / Dot1Q(vlan=5) / V4,
    "qinq": ETHER / Dot1AD(vlan=7) / Dot1Q(vlan=5) / V4,
    "ipv6": ETHER / V6,
    "ipv6-vlan": ETHER / Dot1Q(vlan=5) / V6,
    "hop-by-hop": ETHER / V6 / IPv6ExtHdrHopByHop(),
    "destination-options": ETHER / V6 / IPv6ExtHdrHopByHop() / IPv6ExtHdrDestOpt(),
    "routing-done": ETHER / V6 / IPv6ExtHdrRouting(addresses=["2001:db8::9"], segleft=0),
    "far-headers": ETHER / V6 / IPv6ExtHdrDestOpt(options=[PadN(optdata=bytes(200))]),
}


def ones_sum(data: bytes) -> int:
    total = sum(struct.unpack(f">{len(data) // 2}H", data[: len(data) // 2 * 2]))
    total += data[-1] << 8 if len(data) % 2 else 0
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def pseudo_sum(source: bytes, destination: bytes, protocol: int, length: int) -> int:
    return ones_sum(source + destination + struct.pack(">HH", protocol, length))


def finished(packet: Packet) -> bytes:
    """The frame with all checksums in it, as scapy computes them."""
    return raw(packet)


def locate(frame: bytes, kind: type[Packet]) -> tuple[int, int]:
    """Where the transport header begins, and where its checksum is."""
    parsed = Ether(frame)
    start = frame.rindex(raw(parsed[kind]))
    return start, start + FIELD[kind]


def unfinished(frame: bytes, kind: type[Packet]) -> bytes:
    """The frame as Linux hands it over: the folded sum of the pseudo-header where the checksum belongs."""
    parsed = Ether(frame)
    network = parsed[IPv6] if IPv6 in parsed else parsed[IP]
    family = socket.AF_INET6 if IPv6 in parsed else socket.AF_INET
    start, at = locate(frame, kind)
    value = pseudo_sum(
        socket.inet_pton(family, network.src),
        socket.inet_pton(family, network.dst),
        6 if kind is TCP else 17,
        len(frame) - start,
    )
    return frame[:at] + struct.pack(">H", value) + frame[at + 2 :]


def marked(start: int, offset: int) -> bytes:
    return struct.pack("<BBHHHHH", NEEDS_CSUM, 0, 0, 0, start, offset, 0)


@pytest.mark.parametrize("size", [0, 1, 2, 1399, 1400])
@pytest.mark.parametrize("transport", [TCP_ALONE, TCP_OPTIONS, UDP_ALONE], ids=["tcp", "options", "udp"])
@pytest.mark.parametrize("below", LAYERS.values(), ids=LAYERS.keys())
def test_completed_or_marked(below: Packet, transport: Packet, size: int) -> None:
    whole = finished(below / transport / Raw(random.Random(size).randbytes(size)))
    kind = type(transport)
    frame = unfinished(whole, kind)
    start, at = locate(whole, kind)
    assert finish(whole) is None
    assert finish(whole, may_mark=True) is None
    assert finish(frame) == (bytes(12), whole)
    assert finish(frame, may_mark=True) == (marked(start, at - start), frame)


def test_a_marked_frame_is_completed_to_the_same() -> None:
    """What a receiver of a mark does: the sum from csum_start to the end, field included, complemented."""
    whole = finished(LAYERS["vlan"] / TCP_ALONE / Raw(b"payload"))
    header, frame = finish(unfinished(whole, TCP), may_mark=True) or (b"", b"")
    start, offset = struct.unpack_from("<HH", header, 6)
    value = 0xFFFF - ones_sum(frame[start:])
    assert frame[: start + offset] + struct.pack(">H", value) + frame[start + offset + 2 :] == whole


def test_a_finished_frame_that_looks_unfinished_stays_as_it_is() -> None:
    """One in 65,536: the pseudo-header's sum is the right checksum. Completing must not change it."""
    frame = unfinished(finished(ETHER / V4 / UDP_ALONE / Raw(bytes(100))), UDP)
    start, at = locate(frame, UDP)
    pseudo = int.from_bytes(frame[at : at + 2], "big")
    # With this word at the end, the segment's sum is that of a finished one.
    rest = ones_sum(frame[start:at] + frame[at + 2 : -2])
    word = (0xFFFF * 2 - pseudo - pseudo - rest) % 0xFFFF
    frame = frame[:-2] + struct.pack(">H", word)
    assert ones_sum(struct.pack(">H", pseudo) + frame[start:]) == 0xFFFF
    assert finish(frame) == (bytes(12), frame)


def test_zero_becomes_its_other_form_for_udp() -> None:
    """0 means that there is no checksum (RFC 768); Linux' TCP stores it as it is."""
    for transport, wanted in ((UDP_ALONE, 0xFFFF), (TCP_ALONE, 0)):
        kind = type(transport)
        frame = unfinished(finished(ETHER / V4 / transport / Raw(bytes(100))), kind)
        start, at = locate(frame, kind)
        frame = frame[:-2] + struct.pack(">H", 0xFFFF - ones_sum(frame[start:-2]))
        _, after = finish(frame) or (b"", b"")
        assert int.from_bytes(after[at : at + 2], "big") == wanted
        assert after[:at] + after[at + 2 :] == frame[:at] + frame[at + 2 :]


def test_sctp() -> None:
    whole = finished(ETHER / V4 / SCTP(sport=1, dport=2, tag=3) / Raw(b"chunks of data"))
    frame = whole[:42] + bytes(4) + whole[46:]
    assert finish(whole) is None
    for may_mark in (False, True):
        assert finish(frame, may_mark=may_mark) == (bytes(12), whole)
        assert finish(frame, may_mark=may_mark, cuts=(50, 51)) == (bytes(12), whole)


def test_padding_is_no_part_of_the_checksum() -> None:
    whole = finished(ETHER / V4 / UDP_ALONE / Raw(b"odd"))
    frame = unfinished(whole, UDP)
    padding = b"\xff" * (60 - len(frame))
    for may_mark in (False, True):
        assert finish(frame + padding, may_mark=may_mark) == (bytes(12), whole + padding)


def test_source_routes_end_at_the_last_segment() -> None:
    below = ETHER / IPv6(src="2001:db8::1", dst="2001:db8::9") / SEGMENTS
    whole = finished(below / TCP_ALONE / Raw(b"payload"))
    start = len(whole) - 27
    base = whole[: start + 16] + bytes(2) + whole[start + 18 :]
    source, final = (socket.inet_pton(socket.AF_INET6, text) for text in ("2001:db8::1", "2001:db8::2"))
    pseudo = pseudo_sum(source, final, 6, 27)
    frame = base[: start + 16] + struct.pack(">H", pseudo) + base[start + 18 :]
    value = 0xFFFF - ones_sum(frame[start:])
    expected = base[: start + 16] + struct.pack(">H", value) + base[start + 18 :]
    assert finish(frame) == (bytes(12), expected)
    assert finish(frame, may_mark=True) == (marked(start, 16), frame)
    assert finish(unfinished(whole, TCP)) is None


FRAGMENTS: dict[str, Packet] = {
    "first": ETHER / IP(src="192.0.2.1", dst="192.0.2.2", flags="MF"),
    "later": ETHER / IP(src="192.0.2.1", dst="192.0.2.2", frag=8),
    "ipv6": ETHER / V6 / IPv6ExtHdrFragment(m=1),
}


@pytest.mark.parametrize("below", FRAGMENTS.values(), ids=FRAGMENTS.keys())
def test_fragments_are_left_alone(below: Packet) -> None:
    """What looks like a UDP header in one need not be one, and no segment is there as a whole."""
    family, network = (socket.AF_INET6, V6) if IPv6 in below else (socket.AF_INET, V4)
    addresses = [socket.inet_pton(family, text) for text in (network.src, network.dst)]
    udp = raw(UDP(sport=1, dport=2, len=72, chksum=pseudo_sum(*addresses, 17, 72)) / Raw(bytes(64)))
    frame = raw(below / udp)
    assert frame.endswith(udp)
    last = 14 + 40 if IPv6 in below else 14 + 9
    assert finish(frame[:last] + b"\x11" + frame[last + 1 :]) is None


def forged(network: bytes, start: int, end: int, *, size: int = 100) -> bytes:
    """A frame of UDP whose checksum field is what it would be if the datagram were from `start` to `end`."""
    v6 = network[0] >> 4 == 6 or len(network) == 40
    addresses = network[8:40] if v6 else network[12:20]
    frame = bytearray(bytes(12) + (b"\x86\xdd" if v6 else b"\x08\0") + network)
    frame += bytes(size - len(frame))
    value = ones_sum(addresses + struct.pack(">HH", 17, (end - start) & 0xFFFF))
    frame[start + 6 : start + 8] = struct.pack(">H", value)
    return bytes(frame)


def ipv4(first: int, total: int) -> bytes:
    return struct.pack(">BBHHHBBH8s", first, 0, total, 0, 0, 64, 17, 0, b"\xc0\0\2\1\xc0\0\2\2")


def ipv6(first: int, payload: int) -> bytes:
    return struct.pack(">BBHHBB32s", first, 0, 0, payload, 17, 64, bytes(range(32)))


LIES = {
    "ipv4-version": forged(ipv4(0x55, 86), 34, 100),
    "ipv4-short-header": forged(ipv4(0x44, 86), 30, 100),
    "ipv4-longer-than-the-frame": forged(ipv4(0x45, 87), 34, 101),
    "ipv4-ends-in-the-udp-header": forged(ipv4(0x45, 27), 34, 41),
    "ipv4-ends-in-its-own-header": forged(ipv4(0x45, 19), 34, 33),
    "ipv6-version": forged(ipv6(0x50, 46), 54, 100),
    "ipv6-longer-than-the-frame": forged(ipv6(0x60, 47), 54, 101),
    "ipv6-ends-in-the-udp-header": forged(ipv6(0x60, 7), 54, 61),
    "ipv6-jumbogram": forged(ipv6(0x60, 0), 54, 54),
}


@pytest.mark.parametrize("frame", LIES.values(), ids=LIES.keys())
def test_headers_that_lie(frame: bytes) -> None:
    assert finish(frame, may_mark=True) is None


def test_headers_that_are_just_true() -> None:
    """The frames of `LIES`, had they told the truth."""
    for frame in (forged(ipv4(0x45, 86), 34, 100), forged(ipv6(0x60, 46), 54, 100)):
        assert finish(frame) is not None


def test_headers_beyond_all_measure() -> None:
    long = IPv6ExtHdrDestOpt(options=[PadN(optdata=bytes(250))] * 3)
    for below in (ETHER / V6 / long, ETHER / V6 / long / IPv6ExtHdrDestOpt()):
        assert finish(unfinished(finished(below / UDP_ALONE), UDP)) is None


def test_a_source_route_beyond_all_measure() -> None:
    """The last segment's address begins before the end of what is looked at, and ends behind it."""
    padding = [PadN(optdata=bytes(250)), PadN(optdata=bytes(184))]
    below = ETHER / IPv6(src="2001:db8::1", dst="2001:db8::9") / IPv6ExtHdrDestOpt(options=padding) / SEGMENTS
    whole = finished(below / TCP_ALONE)
    at = whole.index(socket.inet_pton(socket.AF_INET6, "2001:db8::2"))
    assert at < 512 < at + 16
    assert finish(whole) is None


def test_more_tags_than_the_first_look_sees() -> None:
    below = ETHER
    for number in range(40):
        below /= Dot1Q(vlan=number)
    whole = finished(below / V4 / UDP_ALONE)
    assert finish(unfinished(whole, UDP)) == (bytes(12), whole)


def test_nothing_but_tags() -> None:
    for ending in (b"", b"\x08\0" + ipv4(0x45, 28) + bytes(8)):
        assert finish(bytes(12) + b"\x81\0\0\5" * 300 + ending) is None


def test_a_source_route_that_is_known_only_in_part() -> None:
    """The first look ends in the middle of the last segment's address."""
    padded = IPv6ExtHdrDestOpt(options=[PadN(optdata=bytes(52))])
    whole = finished(ETHER / IPv6(src="2001:db8::1", dst="2001:db8::9") / padded / SEGMENTS / TCP_ALONE)
    start = len(whole) - 20
    source, final = (socket.inet_pton(socket.AF_INET6, text) for text in ("2001:db8::1", "2001:db8::2"))
    assert whole.index(final) < 128 < whole.index(final) + 16
    pseudo = struct.pack(">H", pseudo_sum(source, final, 6, 20))
    frame = whole[: start + 16] + pseudo + whole[start + 18 :]
    assert finish(frame, may_mark=True) == (marked(start, 16), frame)


def test_other_frames_are_left_alone() -> None:
    assert finish(raw(Ether(type=0x88B5) / Raw(bytes(100)))) is None


def test_udp_without_a_checksum() -> None:
    whole = finished(ETHER / V4 / UDP(sport=1, dport=2, chksum=0) / Raw(b"payload"))
    assert finish(whole) is None


@pytest.mark.parametrize("kind", [TCP_OPTIONS, UDP_ALONE], ids=["tcp", "udp"])
@settings(deadline=None)
@given(cuts=st.lists(st.integers(min_value=100, max_value=3000), min_size=1, max_size=4, unique=True))
def test_pieces(kind: Packet, cuts: list[int]) -> None:
    """A frame over several buffers, cut at odd and at even places."""
    whole = finished(LAYERS["qinq"] / kind / Raw(random.Random(1).randbytes(3000)))
    frame = unfinished(whole, type(kind))
    assert finish(frame, cuts=sorted(cuts)) == (bytes(12), whole)
    assert finish(whole, cuts=sorted(cuts)) is None


@settings(deadline=None)
@given(
    below=st.sampled_from(sorted(LAYERS)),
    transport=st.sampled_from([TCP_ALONE, TCP_OPTIONS, UDP_ALONE, SCTP()]),
    size=st.integers(0, 60),
    data=st.data(),
)
def test_damaged_frames(below: str, transport: Packet, size: int, data: st.DataObject) -> None:
    """Whatever the bytes, at most the checksum changes; a sanitizer sees what else is read."""
    whole = bytearray(finished(LAYERS[below] / transport / Raw(bytes(size))))
    for _ in range(data.draw(st.integers(0, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    frame = bytes(whole[: data.draw(st.integers(0, len(whole)))])
    cuts = sorted(data.draw(st.lists(st.integers(0, len(frame)), max_size=2)))
    result = finish(frame, cuts=cuts)
    if result is not None:
        header, after = result
        assert header == bytes(12)
        changed = [i for i, (a, b) in enumerate(zip(frame, after, strict=True)) if a != b]
        assert not changed or changed[-1] - changed[0] < 4


@settings(deadline=None)
@given(st.binary(max_size=200), st.sampled_from([b"\x08\x00", b"\x86\xdd", b"\x81\x00"]))
@example(b"", b"")
def test_any_bytes(rest: bytes, ethertype: bytes) -> None:
    frame = bytes(12) + ethertype + rest
    result = finish(frame, may_mark=True)
    if result is not None and result[0] != bytes(12):
        start, offset = struct.unpack_from("<HH", result[0], 6)
        assert start + offset + 2 <= len(frame)
        assert result[1] == frame
