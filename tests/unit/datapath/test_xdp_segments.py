"""Frames with offloads on the xdp port: what is sent for them, from where; when their chains come back."""

from __future__ import annotations

import contextlib
import random
import socket
import struct
from collections.abc import Callable, Iterator

import pytest
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.l2 import Ether
from scapy.packet import raw

from guestwire.datapath.segmentation import segment
from guestwire.virtio.features import Feature
from unit.datapath.memory import SIZE
from unit.datapath.xdp_machine import MODES, SEND, Mode, XdpMachine

Make = Callable[..., XdpMachine]

NEEDS_CSUM, TCPV4, UDP_L4 = 1, 1, 5
OFFLOADS = (
    Feature.VIRTIO_NET_F_CSUM
    | Feature.VIRTIO_NET_F_HOST_TSO4
    | Feature.VIRTIO_NET_F_HOST_TSO6
    | Feature.VIRTIO_NET_F_HOST_USO
)
GUEST_MAC = bytes.fromhex("020000000001")
MSS = 1446
HEADERS = 54  # Ethernet, IPv4, TCP


@pytest.fixture
def machine() -> Iterator[Make]:
    with contextlib.ExitStack() as made:

        def make(mode: Mode = "direct", **options: object) -> XdpMachine:
            options = {"offloads": OFFLOADS, "most_pieces": 17 if mode == "direct" else 1, **options}
            return made.enter_context(contextlib.closing(XdpMachine(mode, **options)))  # type: ignore[arg-type]

        yield make


def partial(pseudo_header: bytes) -> int:
    """The sum that a guest leaves in a checksum field for us to finish."""
    total = sum(struct.unpack(f">{len(pseudo_header) // 2}H", pseudo_header))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def unfinished(protocol: int, length: int) -> int:
    addresses = socket.inet_aton("192.0.2.1") + socket.inet_aton("192.0.2.2")
    return partial(addresses + struct.pack(">HH", protocol, length))


def tcp(length: int) -> bytes:
    """A TCP segment of `length` bytes of payload, as a guest hands it over."""
    return raw(
        Ether(dst="02:00:00:00:00:02", src="02:00:00:00:00:01")
        / IP(src="192.0.2.1", dst="192.0.2.2", id=9, len=40 + length)
        / TCP(sport=1, dport=2, seq=1 << 31, flags="PA", chksum=unfinished(6, 20 + length))
    ) + random.Random(length).randbytes(length)


def udp(length: int) -> bytes:
    return raw(
        Ether(dst="02:00:00:00:00:02", src="02:00:00:00:00:01")
        / IP(src="192.0.2.1", dst="192.0.2.2", proto=17, len=28 + length)
        / UDP(sport=1, dport=2, len=8 + length, chksum=unfinished(17, 8 + length))
    ) + random.Random(length).randbytes(length)


def header(gso_type: int = 0, gso_size: int = 0, *, start: int = 34, offset: int = 16) -> bytes:
    return struct.pack("<BBHHHHH", NEEDS_CSUM, gso_type, HEADERS, gso_size, start, offset, 0)


TSO = header(TCPV4, MSS)


def offer(guest: XdpMachine, frame: bytes, net_header: bytes, lengths: list[int] | None = None) -> int:
    """Send a frame from buffers of these lengths and one of the rest; return its head."""
    address, buffers = SEND, []
    data = net_header + frame
    for length in (*(lengths or []), len(data)):
        piece, data = data[:length], data[length:]
        if piece:
            guest.write(address, piece)
            buffers.append((address, len(piece)))
            address += len(piece) + 3
    return guest.tx.offer(*buffers)


def sent(guest: XdpMachine) -> list[bytes]:
    """Everything that leaves, as long as sending frees the room for more."""
    frames = []
    while more := guest.send_all():
        frames += [frame.data for frame in more]
    return frames


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("length", [1, MSS, MSS + 1, 65000])
def test_a_large_frame_leaves_as_segments(machine: Make, mode: Mode, length: int) -> None:
    guest = machine(mode)
    frame = tcp(length)
    head = offer(guest, frame, TSO)
    guest.run()
    expected = segment(TSO, frame)
    assert len(expected) == -(-length // MSS)
    assert sent(guest) == expected
    assert guest.tx.used() == [(head, 0)]
    assert guest.port.held[2] == 0
    counted = guest.counted()["tx"]
    assert (counted["frames"], counted["bytes"], counted["gso_frames"]) == (1, len(frame), 1)
    assert counted["segments"] == counted["checksums"] == len(expected)
    assert counted["drops"] == {}
    if mode == "direct":
        assert (counted["direct_frames"], counted["copied_bytes"]) == (1, 0)
    else:
        reason = "bounce_mode" if mode == "bounce" else "segmentation"
        assert counted["copied_frames"] == {reason: 1}
        assert counted["copied_bytes"] == length


def test_the_payload_stays_where_it_is(machine: Make) -> None:
    guest = machine("direct")
    frame = tcp(3 * MSS)
    offer(guest, frame, TSO, [12, 40, 100, 2000])
    guest.run()
    frames = guest.socket.take_frames()
    assert [one.data for one in frames] == segment(TSO, frame)
    bounce = guest.window.bounce_offset
    for one in frames:
        first, *rest = one.addresses
        assert first >= bounce
        assert one.lengths[0] == HEADERS
        assert all(address & (1 << 48) - 1 < bounce for address in rest)
    # 12, 40, 100 and 2,000 bytes: the headers end in the third piece.
    assert [len(one.lengths) - 1 for one in frames] == [2, 2, 1]


def test_a_chain_comes_back_when_all_its_segments_have_left(machine: Make) -> None:
    guest = machine("direct")
    head = offer(guest, tcp(5 * MSS), TSO)
    guest.run()
    frames = guest.socket.take_frames()
    addresses = [address for frame in frames for address in frame.addresses]
    random.Random(5).shuffle(addresses)
    for address in addresses[:-1]:
        guest.socket.complete([address])
        guest.run()
    # What is missing may be a header, which is ours.
    bounce = addresses[-1] >= guest.window.bounce_offset
    assert guest.tx.used() == ([(head, 0)] if bounce else [])
    guest.socket.complete(addresses[-1:])
    guest.run()
    assert guest.tx.used() == [(head, 0)]
    assert guest.port.held == (0, 0, 0)


@pytest.mark.parametrize("mode", MODES)
def test_more_segments_than_there_is_room_for(machine: Make, mode: Mode) -> None:
    guest = machine(mode, socket_ring=32, bounce_frames=96)
    frame = tcp(3000)
    tiny = header(TCPV4, 7)
    heads = [offer(guest, frame, tiny), guest.offer_frame(40, b"after" * 20)]
    guest.run()
    assert guest.tx.used() == []
    assert sent(guest) == [*segment(tiny, frame), b"after" * 20]
    assert [head for head, _ in guest.tx.used()] == heads
    assert guest.counted()["tx"]["segments"] == -(-3000 // 7)


def test_a_frame_that_is_half_sent_when_the_port_is_closed_is_counted_and_given_back(machine: Make) -> None:
    guest = machine("direct", socket_ring=32, bounce_frames=96)
    head = offer(guest, tcp(60000), TSO)
    after = guest.offer_frame(40, b"after" * 20)
    guest.run()
    guest.socket.take_tx()
    guest.detach()
    assert guest.tx.used() == [(head, 0)]
    assert guest.counted()["tx"]["drops"] == {"unsent": 1}
    assert (guest.tx.device.base, guest.tx.device.in_flight) == (1, 1)
    guest.reattach()
    guest.run()
    assert sent(guest) == [b"after" * 20]
    assert [one for one, _ in guest.tx.used()] == [head, after]


def test_datagrams(machine: Make) -> None:
    guest = machine("direct")
    net_header = header(UDP_L4, 1000, offset=6)
    frame = udp(4500)
    head = offer(guest, frame, net_header)
    guest.run()
    assert sent(guest) == segment(net_header, frame)
    assert guest.tx.used() == [(head, 0)]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("length", [0, 40, 1000])
def test_a_checksum_is_finished(machine: Make, mode: Mode, length: int) -> None:
    guest = machine(mode)
    frame = tcp(length)
    head = offer(guest, frame, header())
    guest.run()
    (expected,) = segment(header(), frame)
    assert sent(guest) == [expected]
    assert guest.tx.used() == [(head, 0)]
    counted = guest.counted()["tx"]
    assert (counted["checksums"], counted["segments"], counted["gso_frames"]) == (1, 0, 0)
    assert counted["direct_frames"] == (mode == "direct" and length == 1000)
    if mode != "bounce":
        assert counted["copied_frames"] == ({} if counted["direct_frames"] else {"checksum": 1})


@pytest.mark.parametrize(
    ("offloads", "net_header", "reason"),
    [
        (Feature(0), header(), "not_negotiated"),
        (Feature.VIRTIO_NET_F_CSUM, TSO, "not_negotiated"),
        (OFFLOADS, header(TCPV4 | 0x80, MSS), "not_negotiated"),
        (OFFLOADS, header(3, MSS), "not_negotiated"),
        (OFFLOADS, header(TCPV4, 0), "bad_offload"),
        (OFFLOADS, b"\0" + TSO[1:], "bad_offload"),
        (OFFLOADS, header(start=3000), "bad_offload"),
        (OFFLOADS, header(TCPV4, MSS, start=38), "bad_offload"),
        (OFFLOADS, header(TCPV4, 1500), "too_long"),
    ],
)
def test_what_cannot_be_done_is_dropped_and_counted(
    machine: Make, offloads: Feature, net_header: bytes, reason: str
) -> None:
    guest = machine("direct", offloads=offloads)
    bad = offer(guest, tcp(2000) if reason != "bad_offload" or net_header[1] else tcp(100), net_header)
    good = guest.offer_frame(40, b"after" * 20)
    guest.run()
    assert sent(guest) == [b"after" * 20]
    assert [head for head, _ in guest.tx.used()] == [bad, good]
    assert guest.counted()["tx"]["drops"] == {reason: 1}


@pytest.mark.parametrize("source", [GUEST_MAC, bytes.fromhex("020000000009")])
def test_the_source_address_of_segments_is_checked(machine: Make, source: bytes) -> None:
    guest = machine("direct", copy_headers=True, source=source)
    frame = tcp(3000)
    head = offer(guest, frame, TSO)
    guest.run()
    assert sent(guest) == (segment(TSO, frame) if source == GUEST_MAC else [])
    assert guest.tx.used() == [(head, 0)]
    assert guest.counted()["tx"]["drops"] == ({} if source == GUEST_MAC else {"source_address": 1})


@pytest.mark.parametrize("mode", ["direct", "bounce"])
def test_a_jumbo_frame_leaves_in_several_pieces(machine: Make, mode: Mode) -> None:
    guest = machine(mode, mtu=9000, mergeable=True)
    plain = random.Random(1).randbytes(9014)
    large = tcp(30000)
    net_header = header(TCPV4, 8960)
    offer(guest, plain, bytes(12))
    guest.run()
    (one,) = guest.send_all()
    assert one.data == plain
    assert max(one.lengths) <= 4096
    offer(guest, large, net_header)
    guest.run()
    assert sent(guest) == segment(net_header, large)
    counted = guest.counted()["tx"]
    assert counted["direct_frames"] == (2 if mode == "direct" else 0)


def test_random_frames(machine: Make) -> None:
    randomness = random.Random(7)
    guest = machine("direct", mtu=2000)
    for _ in range(300):
        length = randomness.randrange(1, 65000)
        frame, size = tcp(length), randomness.randrange(400, 1900)
        net_header = header(TCPV4, size)
        cuts = [randomness.randrange(1, 9000) for _ in range(randomness.randrange(6))]
        offer(guest, frame, net_header, cuts)
        guest.run()
        assert sent(guest) == segment(net_header, frame), (length, size, cuts)
    assert guest.port.held == (0, 0, 0)
    assert SIZE > 1 << 18


@pytest.mark.parametrize("mode", MODES)
def test_a_ring_that_is_disabled_in_the_middle_of_a_frame(machine: Make, mode: Mode) -> None:
    """What was begun is finished, what follows is dropped, and every chain comes back once."""
    guest = machine(mode, socket_ring=32, bounce_frames=96)
    whole = tcp(60000)
    heads = [offer(guest, whole, TSO), guest.offer_frame(40, b"dropped" * 20)]
    guest.run()
    assert guest.tx.used() == []
    guest.pair.enable(rx=True, tx=False)
    guest.run()
    assert sent(guest) == segment(TSO, whole)
    guest.run()
    assert sorted(guest.tx.used()) == [(head, 0) for head in heads]
    assert guest.counted()["tx"]["drops"] == {"ring_disabled": 1}
    guest.pair.enable(rx=True, tx=True)
    last = guest.offer_frame(41, b"after" * 20)
    guest.run()
    assert sent(guest) == [b"after" * 20]
    assert guest.tx.used()[2:] == [(last, 0)]
    assert (guest.tx.device.base, guest.tx.device.in_flight) == (3, 0)


def test_no_checksum_is_written_over_a_source_address_that_was_checked(machine: Make) -> None:
    guest = machine("direct", copy_headers=True, source=GUEST_MAC)
    head = offer(guest, tcp(100), header(start=6, offset=0))
    guest.run()
    assert sent(guest) == []
    assert guest.tx.used() == [(head, 0)]
    assert guest.counted()["tx"]["drops"] == {"bad_offload": 1}


def test_segments_that_are_sent_are_progress(machine: Make) -> None:
    guest = machine("direct", socket_ring=32, bounce_frames=96)
    offer(guest, tcp(60000), header(TCPV4, 100))
    assert guest.pair.step() > 0
    while guest.pair.step():
        pass
    (first, *_) = guest.socket.take_frames()
    guest.socket.complete(first.addresses)
    # Neither a frame nor a buffer is through, but a segment can follow: no time to sleep.
    assert guest.pair.step() > 0


def test_sending_leaves_receiving_its_share_of_bounce_frames(machine: Make) -> None:
    guest = machine("bounce", size=256, socket_ring=256)
    low = guest.bounce_frames
    for number in range(60):
        guest.offer_receive(number)
    guest.run()
    for number in range(120):
        if number < 40:
            offer(guest, tcp(60000), TSO)
        guest.pair.step()
        frames = guest.socket.take_frames(8)
        guest.socket.complete([address for frame in frames for address in frame.addresses])
        for address in guest.socket.take_fill(8):
            guest.socket.deliver(address, bytes(60))
        while guest.rx.index - len(guest.rx.used()) < 60:
            guest.offer_receive(guest.rx.index % 60)
        low = min(low, guest.port.held[1])
    assert low >= 32
    assert guest.counted()["rx"]["frames"] > 900
