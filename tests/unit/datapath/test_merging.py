"""TCP segments that arrive one after the other become one frame, from which segmentation makes them again."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.inet import IP, TCP, IPOption_NOP
from scapy.layers.inet6 import IPv6, IPv6ExtHdrHopByHop
from scapy.layers.l2 import Dot1AD, Dot1Q, Ether
from scapy.packet import Packet, Raw, raw

from guestwire.datapath.merging import merge
from guestwire.datapath.receive_checksum import finish
from guestwire.datapath.segmentation import segment
from guestwire.virtio.features import Feature

ALL = int(
    Feature.VIRTIO_NET_F_GUEST_CSUM
    | Feature.VIRTIO_NET_F_GUEST_TSO4
    | Feature.VIRTIO_NET_F_GUEST_TSO6
    | Feature.VIRTIO_NET_F_GUEST_ECN
)
NEEDS_CSUM, TCPV4, TCPV6, ECN = 1, 1, 4, 0x80
PLAIN = bytes(12)
STAMPS = [("NOP", None), ("NOP", None), ("Timestamp", (7, 8))]
ETHER = Ether(dst="02:00:00:00:00:02", src="02:00:00:00:00:01")
BELOW: dict[str, Packet] = {
    "ipv4": ETHER / IP(src="192.0.2.1", dst="192.0.2.2", flags="DF", id=0xFFFE),
    "ipv4-vlan": ETHER / Dot1Q(vlan=5) / IP(src="192.0.2.1", dst="192.0.2.2", tos=2),
    "ipv6": ETHER / IPv6(src="2001:db8::1", dst="2001:db8::2", fl=7, tc=2),
    "ipv6-qinq": ETHER / Dot1AD(vlan=7) / Dot1Q(vlan=5) / IPv6(src="2001:db8::1", dst="2001:db8::2"),
}


Change = Callable[[Packet], None]
"""What is done to one of a flow's packets before its lengths and checksums are computed."""


def stream(
    below: Packet, sizes: list[int], *, seed: int = 1, changes: dict[int, Change] | None = None
) -> list[bytes]:
    """Segments of one flow, of these sizes: sequence number and IPv4 identification count up."""
    generator = random.Random(seed)
    frames, sequence = [], 0xFFFFFC00
    for number, size in enumerate(sizes):
        packet = below / TCP(sport=1, dport=2, seq=sequence, ack=9, flags="A", window=77, options=STAMPS)
        packet /= Raw(generator.randbytes(size))
        if IP in packet:
            packet[IP].id = (packet[IP].id + number) % 65536
        if changes and number in changes:
            changes[number](packet)
        frames.append(raw(packet))
        sequence = (sequence + size) % 2**32
    return frames


def unfinished(frame: bytes) -> bytes:
    """The same frame with only the sum of the pseudo-header in its checksum field."""
    packet = Ether(frame)
    packet[TCP].chksum = pseudo_sum(packet, len(raw(packet[TCP])))
    return raw(packet)


def pseudo_sum(packet: Packet, size: int) -> int:
    """The sum of the pseudo-header of `size` bytes of TCP."""
    network = packet[IPv6] if IPv6 in packet else packet[IP]
    start, end = (12, 20) if isinstance(network, IP) else (8, 40)
    addresses = raw(network)[start:end]
    total = sum(struct.unpack(f">{len(addresses) // 2}H", addresses)) + 6 + size
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def taken_apart(results: list[tuple[bytes, bytes]]) -> list[bytes]:
    return [wire for header, frame in results for wire in segment(header, frame)]


@pytest.mark.parametrize("sizes", [[1000] * 5, [1448, 1448, 1], [7, 3], [1000] * 2], ids=str)
@pytest.mark.parametrize("below", BELOW.values(), ids=BELOW.keys())
def test_one_flow(below: Packet, sizes: list[int]) -> None:
    frames = stream(below, sizes, changes={len(sizes) - 1: set_flags("PA")})
    ((header, frame),) = merge(frames, offloads=ALL)
    flags, kind, length, size, start, offset, buffers = struct.unpack("<BBHHHHH", header)
    assert flags == NEEDS_CSUM
    assert kind == (TCPV6 if IPv6 in below else TCPV4)
    assert size == sizes[0]
    assert offset == 16
    assert length == start + 32 == len(raw(below)) + 32
    assert buffers == 0
    assert frame[length:] == b"".join(frame[length:] for frame in frames)
    parsed = Ether(frame)
    assert parsed[TCP].flags == "PA"
    assert parsed[TCP].chksum == pseudo_sum(parsed, 32 + sum(sizes))
    assert parsed[TCP].seq == Ether(frames[0])[TCP].seq
    assert segment(header, frame) == frames


def set_flags(text: str) -> Change:
    return lambda packet: setattr(packet[TCP], "flags", text)


def set_tcp(name: str, value: object) -> Change:
    return lambda packet: setattr(packet[TCP], name, value)


def set_ip(name: str, value: object) -> Change:
    return lambda packet: setattr(packet[IP], name, value)


# A change of the third of five segments, and how many segments are in each frame that comes out.
BREAKS: dict[str, tuple[Change, list[int]]] = {
    "push": (set_flags("PA"), [3, 2]),
    "fin": (set_flags("FA"), [3, 2]),
    "syn": (set_flags("SA"), [2, 1, 2]),
    "reset": (set_flags("RA"), [2, 1, 2]),
    "urgent": (set_flags("UA"), [2, 1, 2]),
    "no-ack": (set_flags(""), [2, 1, 2]),
    "ece": (set_flags("EA"), [2, 1, 2]),
    "cwr": (set_flags("CA"), [2, 3]),
    "ack-number": (set_tcp("ack", 10), [2, 1, 2]),
    "window": (set_tcp("window", 78), [2, 1, 2]),
    "urgent-pointer": (set_tcp("urgptr", 1), [2, 1, 2]),
    "sequence": (set_tcp("seq", 5), [2, 1, 2]),
    "ports": (set_tcp("dport", 3), [2, 1, 2]),
    "timestamp": (set_tcp("options", [("NOP", None), ("NOP", None), ("Timestamp", (7, 9))]), [2, 1, 2]),
    "options": (set_tcp("options", []), [2, 1, 2]),
    "reserved": (set_tcp("reserved", 1), [2, 1, 2]),
    "bad-checksum": (set_tcp("chksum", 5), [2, 1, 2]),
    "ttl": (set_ip("ttl", 9), [2, 1, 2]),
    "tos": (set_ip("tos", 3), [2, 1, 2]),
    "dont-fragment": (set_ip("flags", 0), [2, 1, 2]),
    "identification": (set_ip("id", 5), [2, 1, 2]),
    "address": (set_ip("dst", "192.0.2.3"), [2, 1, 2]),
    "ip-checksum": (set_ip("chksum", 5), [2, 1, 2]),
    "fragment": (set_ip("frag", 1), [2, 1, 2]),
    "mac": (lambda packet: setattr(packet[Ether], "src", "02:00:00:00:00:03"), [2, 1, 2]),
    "ip-options": (set_ip("options", [IPOption_NOP()] * 4), [2, 1, 2]),
    "longer": (lambda packet: packet[TCP].add_payload(Raw(b"x")), [2, 1, 2]),
    "shorter": (lambda packet: setattr(packet[Raw], "load", packet[Raw].load[:-1]), [3, 2]),
}


@pytest.mark.parametrize(("change", "counts"), BREAKS.values(), ids=BREAKS.keys())
def test_what_ends_a_frame(change: Change, counts: list[int]) -> None:
    frames = stream(BELOW["ipv4"], [100] * 5, changes={2: change})
    results = merge(frames, offloads=ALL)
    assert [len(segment(header, frame)) for header, frame in results] == counts
    assert taken_apart(results) == frames


@pytest.mark.parametrize(
    ("lacking", "below"),
    [
        (Feature.VIRTIO_NET_F_GUEST_TSO4, "ipv4"),
        (Feature.VIRTIO_NET_F_GUEST_TSO6, "ipv6"),
        (Feature.VIRTIO_NET_F_GUEST_CSUM, "ipv6"),
    ],
)
def test_only_what_the_guest_accepts(lacking: Feature, below: str) -> None:
    frames = stream(BELOW[below], [100] * 5)
    assert merge(frames, offloads=ALL & ~lacking) == [(PLAIN, frame) for frame in frames]


def test_congestion_window_reduced() -> None:
    frames = stream(BELOW["ipv4"], [100] * 4, changes={0: set_flags("CA")})
    ((header, frame),) = merge(frames, offloads=ALL)
    assert header[1] == TCPV4 | ECN
    assert segment(header, frame) == frames
    without = merge(frames, offloads=ALL & ~Feature.VIRTIO_NET_F_GUEST_ECN)
    assert [header[1] for header, _ in without] == [0, TCPV4]
    assert taken_apart(without) == frames


def test_acknowledgements_alone_stay_alone() -> None:
    frames = stream(BELOW["ipv4"], [0] * 3)
    assert merge(frames, offloads=ALL) == [(PLAIN, frame) for frame in frames]


def test_extension_headers() -> None:
    frames = stream(BELOW["ipv6"] / IPv6ExtHdrHopByHop(), [100] * 3)
    assert merge(frames, offloads=ALL) == [(PLAIN, frame) for frame in frames]


def test_padding() -> None:
    frames = [frame + bytes(3) for frame in stream(ETHER / IP(src="192.0.2.1", dst="192.0.2.2"), [3] * 3)]
    assert merge(frames, offloads=ALL) == [(PLAIN, frame) for frame in frames]


@pytest.mark.parametrize("below", ["ipv4", "ipv6"])
def test_no_datagram_is_too_long(below: str) -> None:
    frames = stream(BELOW[below], [1448] * 60)
    results = merge(frames, offloads=ALL)
    assert [len(segment(*result)) for result in results] == [45, 15]
    assert all(len(frame) - 14 <= 65535 for _, frame in results)
    assert taken_apart(results) == frames


@pytest.mark.parametrize("below", BELOW.values(), ids=BELOW.keys())
def test_unfinished_checksums(below: Packet) -> None:
    """What a veth pair hands over: merged only where that is known to be good."""
    frames = stream(below, [1000, 1000, 500])
    handed_over = [unfinished(frame) for frame in frames]
    assert [finish(frame) for frame in handed_over] == [(PLAIN, frame) for frame in frames]
    ((header, frame),) = merge(handed_over, offloads=ALL, unfinished=True)
    assert segment(header, frame) == frames
    assert merge([handed_over[0], *frames[1:]], offloads=ALL, unfinished=True) == [(header, frame)]
    assert merge(handed_over, offloads=ALL) == [(PLAIN, frame) for frame in handed_over]


def test_a_first_frame_with_a_bad_checksum() -> None:
    frames = stream(BELOW["ipv4"], [100] * 4, changes={0: set_tcp("chksum", 5)})
    results = merge(frames, offloads=ALL)
    assert [len(segment(*result)) for result in results] == [1, 3]
    assert taken_apart(results) == frames


@pytest.mark.parametrize("flags", ["SA", "RA", "UA", "P", "PA", "FA", ""])
def test_flows_of_nothing_but(flags: str) -> None:
    """Segments that are all alike, and none of which may be merged."""
    frames = stream(BELOW["ipv4"], [100] * 3, changes=dict.fromkeys(range(3), set_flags(flags)))
    assert merge(frames, offloads=ALL) == [(PLAIN, frame) for frame in frames]


@pytest.mark.parametrize("change", [set_ip("flags", "MF"), set_ip("frag", 5)], ids=["first", "later"])
def test_fragments(change: Change) -> None:
    frames = stream(BELOW["ipv4"], [100] * 3, changes=dict.fromkeys(range(3), change))
    assert merge(frames, offloads=ALL) == [(PLAIN, frame) for frame in frames]


@pytest.mark.parametrize("words", [0, 4, 15])
def test_tcp_headers_that_lie(words: int) -> None:
    """Too short to be one, or longer than the frame; what would be payload then is contiguous."""

    def lie(number: int) -> Change:
        def change(packet: Packet) -> None:
            packet[TCP].dataofs, packet[TCP].seq = words, number * (52 - 4 * words) % 2**32

        return change

    frames = stream(BELOW["ipv4"], [20] * 3, changes={number: lie(number) for number in range(3)})
    assert merge(frames, offloads=ALL) == [(PLAIN, frame) for frame in frames]


@pytest.mark.parametrize(
    "change",
    [
        lambda packet: setattr(packet[IPv6], "hlim", 9),
        lambda packet: setattr(packet[IPv6], "fl", 9),
        lambda packet: setattr(packet[IPv6], "tc", 9),
        lambda packet: setattr(packet[IPv6], "src", "2001:db8::9"),
        lambda packet: setattr(packet[IPv6], "version", 5),
    ],
    ids=["hop-limit", "flow-label", "traffic-class", "address", "version"],
)
def test_what_ends_an_ipv6_frame(change: Change) -> None:
    frames = stream(BELOW["ipv6"], [100] * 5, changes={2: change})
    results = merge(frames, offloads=ALL)
    assert [header[0] for header, _ in results] == [NEEDS_CSUM, 0, NEEDS_CSUM]
    assert taken_apart(results) == frames


FLOW = st.fixed_dictionaries(
    {
        "below": st.sampled_from(sorted(BELOW)),
        "sizes": st.lists(st.sampled_from([1, 2, 99, 100, 100, 100]), min_size=1, max_size=12),
        "flags": st.dictionaries(st.integers(0, 11), st.sampled_from(["PA", "FA", "CA", "EA"]), max_size=2),
    }
)


@settings(deadline=None)
@given(st.lists(FLOW, min_size=1, max_size=3), st.lists(st.tuples(st.integers(0, 2), st.integers(1, 4))))
def test_any_mixture(flows: list[dict[str, Any]], turns: list[tuple[int, int]]) -> None:
    """Segmentation gives back all frames in their order, whichever way the flows take turns."""
    queues = [
        stream(
            BELOW[flow["below"]],
            flow["sizes"],
            seed=seed,
            changes={number: set_flags(flags) for number, flags in flow["flags"].items()},
        )
        for seed, flow in enumerate(flows)
    ]
    arrived = []
    for turn, count in turns:
        queue = queues[turn % len(queues)]
        arrived += queue[:count]
        del queue[:count]
    for queue in queues:
        arrived += queue
    assert taken_apart(merge(arrived, offloads=ALL)) == arrived


@settings(deadline=None)
@given(st.sampled_from(sorted(BELOW)), st.data())
def test_damaged_frames(below: str, data: st.DataObject) -> None:
    """Whatever is damaged, every frame that arrived comes out, as it was; a sanitizer sees what is read."""
    frames = stream(BELOW[below], [50] * 4)
    for _ in range(data.draw(st.integers(1, 4))):
        number = data.draw(st.integers(0, 3))
        damaged = bytearray(frames[number])
        if damaged:
            damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
        frames[number] = bytes(damaged[: data.draw(st.just(len(damaged)) | st.integers(0, len(damaged)))])
    again = []
    for header, frame in merge(frames, offloads=ALL):
        again += [frame] if header == PLAIN else segment(header, frame)
    assert again == frames


@settings(deadline=None)
@given(
    st.lists(st.binary(max_size=140), min_size=1, max_size=4),
    st.sampled_from([b"\x08\0\x45", b"\x86\xdd\x60"]),
)
def test_any_bytes(ends: list[bytes], start: bytes) -> None:
    """Bytes that are no TCP go on as they are."""
    frames = [bytes(12) + start + end for end in ends]
    assert merge(frames, offloads=ALL) == [(PLAIN, frame) for frame in frames]
