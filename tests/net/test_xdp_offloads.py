"""Offloads of the xdp port on a veth pair: large frames and unfinished checksums, in both directions."""

from __future__ import annotations

import contextlib
import random
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Dot1Q, Ether
from scapy.packet import Packet, raw

from backend.process import Backend, wait_until
from guestwire.datapath.segmentation import segment
from guestwire.testing import DRIVER_FEATURES, BufferLayout, FakeGuest, FrameStream, SharedMemory, Wire
from guestwire.testing.frame_stream import ETHERTYPE
from guestwire.virtio.features import Feature

pytestmark = pytest.mark.root

MIB = 1 << 20
SO_RCVBUFFORCE = 33  # asm-generic/socket.h
SENDING = (
    Feature.VIRTIO_NET_F_CSUM
    | Feature.VIRTIO_NET_F_HOST_TSO4
    | Feature.VIRTIO_NET_F_HOST_TSO6
    | Feature.VIRTIO_NET_F_HOST_ECN
    | Feature.VIRTIO_NET_F_HOST_USO
)
NOT_MERGEABLE = DRIVER_FEATURES & ~int(Feature.VIRTIO_NET_F_MRG_RXBUF)
ALL_ETHERTYPES = 3
NEEDS_CSUM = 1
GSO_TYPE = {(IP, TCP): 1, (IPv6, TCP): 4, (IP, UDP): 5, (IPv6, UDP): 5}
LARGE = BufferLayout(length=12 + 65557)
GUEST, PEER = "02:00:00:00:00:01", "02:00:00:00:00:02"
ADDRESSES = {
    IP: {"src": "192.0.2.2", "dst": "192.0.2.1"},
    IPv6: {"src": "2001:db8::2", "dst": "2001:db8::1"},
}


@contextlib.contextmanager
def line(
    folder: Path, options: str, *, mtu: int = 1500, ethertype: int = ALL_ETHERTYPES, queues: int = 1
) -> Iterator[tuple[Wire, Backend, socket.socket]]:
    """A wire: guestwire on its near end, a raw socket on its far one, where checksums stay unfinished."""
    with Wire(mtu=mtu, queues=queues, complete_frames=False) as wire:

        def make() -> socket.socket:
            peer = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ethertype))
            peer.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 64 * MIB)
            peer.bind((wire.peer_interface, ethertype))
            peer.settimeout(10)
            return peer

        port = f"xdp:{wire.interface}{options}"
        with Backend(folder, port, namespace=wire.near.name) as backend, wire.far.call(make) as peer:
            yield wire, backend, peer


def pseudo_sum(layers: Packet, length: int) -> int:
    """The sum that a driver leaves in the checksum field for the device to go on with."""
    ip = layers[IPv6] if IPv6 in layers else layers[IP]
    family = socket.AF_INET6 if IPv6 in layers else socket.AF_INET
    protocol = 6 if TCP in layers else 17
    data = socket.inet_pton(family, ip.src) + socket.inet_pton(family, ip.dst)
    data += struct.pack(">IHH", length, 0, protocol)
    total = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def unfinished(
    network: type[Packet], transport: type[Packet], payload: bytes, *, vlan: bool = False
) -> Packet:
    """A frame of a guest that leaves the checksum to us."""
    layers = Ether(src=GUEST, dst=PEER)
    if vlan:
        layers /= Dot1Q(vlan=5)
    layers /= network(**ADDRESSES[network])
    # Their checksums are the kernel's: without a socket for the port, a reset would come back.
    layers /= TCP(sport=5000, dport=9, flags="PA", seq=7) if transport is TCP else UDP(sport=5000, dport=9)
    whole = layers / payload
    size = len(whole[transport])
    whole[transport].chksum = pseudo_sum(whole, size)
    if transport is UDP:
        whole[UDP].len = size
    return whole


def net_header(frame: Packet, gso_size: int = 0) -> bytes:
    network = IPv6 if IPv6 in frame else IP
    transport = TCP if TCP in frame else UDP
    start = len(frame) - len(frame[transport])
    gso_type = GSO_TYPE[network, transport] if gso_size else 0
    hdr_len = start + (20 if transport is TCP else 8)
    return struct.pack(
        "<BBHHHHH", NEEDS_CSUM, gso_type, hdr_len, gso_size, start, 16 if transport is TCP else 6, 0
    )


def receive_from(peer: socket.socket, count: int) -> list[bytes]:
    """The guest's next frames; the peer's kernel may answer, or talk by itself."""
    frames: list[bytes] = []
    source = bytes.fromhex(GUEST.replace(":", ""))
    while len(frames) < count:
        frame, address = peer.recvfrom(65600)
        if frame[6:12] == source and address[2] != socket.PACKET_OUTGOING:  # type: ignore[attr-defined]
            frames.append(frame)
    return frames


@pytest.mark.parametrize("mode", ["direct", "direct,payload=in-place", "bounce"])
def test_large_frames_leave_as_segments(tmp_path: Path, mode: str) -> None:
    with (
        line(tmp_path, f",mode={mode}") as (_, backend, peer),
        SharedMemory(64 * MIB) as memory,
        FakeGuest(
            backend.socket,
            memory=memory,
            features=DRIVER_FEATURES | SENDING,
            required=SENDING,
            transmit_layout=LARGE,
        ) as guest,
    ):
        randomness = random.Random(4)
        for network, transport in GSO_TYPE:
            for length in (1, 1400, 1401, 20000, 65400):
                frame = unfinished(network, transport, randomness.randbytes(length))
                header = net_header(frame, 1400)
                guest.pair.send(raw(frame), header=header)
                expected = segment(header[:10], raw(frame))
                # The peer's socket shows a VLAN tag only beside the frame, so there is none here.
                assert receive_from(peer, len(expected)) == expected
        counted = backend.guest()["counters"]["tx"]
        assert counted["gso_frames"] == counted["frames"] == 20
        assert counted["segments"] == counted["checksums"]
        assert counted["drops"] == {}
        assert counted["direct_frames"] == (20 if "in-place" in mode else 0)
        guest.pair.drain()


@pytest.mark.parametrize("payload", ["auto", "in-place"])
def test_many_large_frames_at_once(tmp_path: Path, payload: str) -> None:
    """More segments than rings and bounce frames have room for, in order and whole."""
    with (
        line(tmp_path, f",mode=direct,payload={payload}") as (_, backend, peer),
        SharedMemory(64 * MIB) as memory,
        FakeGuest(
            backend.socket, memory=memory, features=DRIVER_FEATURES | SENDING, transmit_layout=LARGE
        ) as guest,
    ):
        expected = []
        for number in range(40):
            frame = unfinished(IP, TCP, random.Random(number).randbytes(65000))
            header = net_header(frame, 1000)
            guest.pair.send(raw(frame), header=header)
            expected += segment(header[:10], raw(frame))
        assert receive_from(peer, len(expected)) == expected
        guest.pair.drain()
        assert backend.guest()["counters"]["tx"]["segments"] == 40 * 65


@pytest.mark.parametrize("mode", ["direct", "bounce"])
@pytest.mark.parametrize(
    ("features", "length"),
    [(DRIVER_FEATURES, 1530), (DRIVER_FEATURES, 2048), (DRIVER_FEATURES, 9100), (NOT_MERGEABLE, 9100)],
)
def test_jumbo_frames(tmp_path: Path, mode: str, features: Feature, length: int) -> None:
    with (
        line(tmp_path, f",mode={mode}", mtu=9000, ethertype=ETHERTYPE) as (_, backend, peer),
        SharedMemory(64 * MIB) as memory,
        FakeGuest(
            backend.socket,
            memory=memory,
            features=features,
            receive_layout=BufferLayout(length=length),
            transmit_layout=BufferLayout(length=9100),
            verify_sent=True,
        ) as guest,
    ):
        arriving, leaving = FrameStream((60, 9014)), FrameStream((60, 9014), identifier=1)
        guest.frontend.get_features()
        for _ in range(50):
            for frame in arriving.take(16):
                peer.send(frame)
            assert guest.pair.receive_stream(arriving, 16)[1:3] == (16, 0)
            guest.pair.send_stream(leaving, 16)
            for _ in range(16):
                leaving.accept(peer.recv(65536))
        counted = backend.guest()["counters"]
        assert counted["rx"]["drops"] == counted["tx"]["drops"] == {}
        assert counted["rx"]["frames"] == counted["tx"]["frames"] == 800
        if mode == "direct":
            assert counted["tx"]["direct_frames"] == 800
            copied = counted["rx"]["copied_frames"]
            if features & Feature.VIRTIO_NET_F_MRG_RXBUF:
                assert set(copied) == {"several_buffers"}
                assert copied["several_buffers"] + counted["rx"]["direct_frames"] == 800
            else:
                assert copied == {"buffer_too_small": 800}


def test_a_frame_larger_than_the_guest_can_take_is_dropped_and_counted(tmp_path: Path) -> None:
    with (
        line(tmp_path, ",mode=direct", mtu=9000, ethertype=ETHERTYPE) as (_, backend, peer),
        FakeGuest(backend.socket, features=NOT_MERGEABLE, receive_layout=BufferLayout(length=2048)) as guest,
    ):
        guest.frontend.get_features()
        small, large = FrameStream((60, 1514)), FrameStream((3000, 9014), identifier=1)
        for _ in range(20):
            for frame in large.take(3):
                peer.send(frame)
            for frame in small.take(5):
                peer.send(frame)
            assert guest.pair.receive_stream(small, 5)[1:3] == (5, 0)
        counted = backend.guest()["counters"]["rx"]
        assert (counted["frames"], counted["drops"]) == (100, {"too_long": 60})


KERNELS_OWN = [(socket.AF_INET, socket.SOCK_DGRAM), (socket.AF_INET, socket.SOCK_STREAM)]


@pytest.mark.parametrize("accepted", [True, False], ids=["marked", "completed"])
@pytest.mark.parametrize("mode", ["direct", "bounce"])
@pytest.mark.parametrize("kind", [socket.SOCK_DGRAM, socket.SOCK_STREAM])
def test_unfinished_checksums_of_the_peers_kernel(
    tmp_path: Path, mode: str, kind: socket.SocketKind, *, accepted: bool
) -> None:
    """What the peer's kernel sends is marked for a guest that takes it so, and completed for another."""
    features = DRIVER_FEATURES | (Feature.VIRTIO_NET_F_GUEST_CSUM if accepted else Feature(0))
    with (
        line(tmp_path, f",mode={mode}") as (wire, backend, _),
        FakeGuest(backend.socket, features=features, strict=False) as guest,
    ):
        guest.frontend.get_features()
        assert bool(guest.features & Feature.VIRTIO_NET_F_GUEST_CSUM) == accepted
        neighbour = ["ip", "neigh", "add", wire.guest_address, "lladdr", GUEST, "dev", wire.peer_interface]
        assert wire.far.run(neighbour).returncode == 0

        def send() -> None:
            with socket.socket(socket.AF_INET, kind) as sender:
                sender.setblocking(False)
                with contextlib.suppress(BlockingIOError):
                    sender.connect((wire.guest_address, 7))
                    sender.send(b"hello, guest")

        wire.far.call(send)
        transport = UDP if kind is socket.SOCK_DGRAM else TCP
        while True:
            received = guest.pair.receive()
            assert received is not None
            packet = Ether(received.data)
            if transport in packet and packet[IP].src == wire.peer_address:
                break
        flags, start, offset = struct.unpack_from("<B5xHH", received.header)
        field = packet[transport].chksum
        del packet[transport].chksum
        finished = Ether(raw(packet))[transport].chksum
        if accepted:
            assert (flags, start, offset) == (NEEDS_CSUM, 34, 6 if transport is UDP else 16)
            assert field == pseudo_sum(packet, len(packet[transport]))
        else:
            assert flags == 0
            assert field == finished
        assert backend.guest()["counters"]["rx"]["checksums"] >= 1


def test_an_mtu_that_is_raised_while_the_guest_runs(tmp_path: Path) -> None:
    with (
        line(tmp_path, ",mode=direct", ethertype=ETHERTYPE) as (wire, backend, peer),
        FakeGuest(backend.socket, receive_layout=BufferLayout(length=1536)) as guest,
    ):
        guest.frontend.get_features()
        for namespace, interface in ((wire.near, wire.interface), (wire.far, wire.peer_interface)):
            assert namespace.run(["ip", "link", "set", interface, "mtu", "9000"]).returncode == 0
        wait_until(lambda: "is 9000 now, was 1500" in backend.text())
        arriving = FrameStream((60, 9014))
        for _ in range(20):
            for frame in arriving.take(10):
                peer.send(frame)
            assert guest.pair.receive_stream(arriving, 10)[1:3] == (10, 0)
        assert backend.guest()["counters"]["rx"]["drops"] == {}


def test_segments_are_merged_for_a_guest_that_takes_large_frames(tmp_path: Path) -> None:
    features = (
        DRIVER_FEATURES
        | Feature.VIRTIO_NET_F_GUEST_CSUM
        | Feature.VIRTIO_NET_F_GUEST_TSO4
        | Feature.VIRTIO_NET_F_GUEST_TSO6
    )
    with (
        line(tmp_path, ",mode=direct,gro=yes") as (_, backend, peer),
        FakeGuest(backend.socket, features=features) as guest,
    ):
        guest.frontend.get_features()
        assert guest.features & Feature.VIRTIO_NET_F_GUEST_TSO4
        for number in range(500):
            frame = unfinished((IP, IPv6)[number % 2], TCP, random.Random(number).randbytes(20000))
            sent = segment(net_header(frame, 1400)[:10], raw(frame))
            for one in sent:
                peer.send(one)
            taken: list[bytes] = []
            while len(taken) < len(sent):
                received = guest.pair.receive()
                assert received is not None
                # The peer's kernel may talk by itself.
                if received.data[6:12] == sent[0][6:12]:
                    merged = bool(received.header[1])
                    taken += segment(received.header[:10], received.data) if merged else [received.data]
            assert taken == sent
            # What arrives in one burst is not for us to say.
            counted = backend.guest()["counters"]["rx"]
            if number >= 20 and counted["gso_frames"]:
                break
        assert counted["segments"] > counted["gso_frames"] > 0
