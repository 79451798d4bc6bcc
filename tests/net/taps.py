"""What is at the host's end of a TAP interface: the machine's own network stack, and its view of headers."""

from __future__ import annotations

import contextlib
import json
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.l2 import Ether
from scapy.packet import Packet

from backend.house import status
from backend.process import Backend
from guestwire.testing import DRIVER_FEATURES, FakeGuest
from guestwire.testing.namespaces import Namespace
from guestwire.virtio.features import Feature

MIB = 1 << 20
SOL_PACKET, PACKET_VNET_HDR = 263, 15  # linux/socket.h, linux/if_packet.h
ETH_P_ALL = 3
NEEDS_CSUM, DATA_VALID = 1, 2
TCPV4, TCPV6, UDP_L4 = 1, 4, 5

GUEST_MAC, HOST_MAC = "02:00:00:00:00:02", "02:00:00:00:00:01"
GUEST_ADDRESS, HOST_ADDRESS = "192.0.2.2", "192.0.2.1"  # RFC 5737, TEST-NET-1

CHECKSUM = Feature.VIRTIO_NET_F_CSUM | Feature.VIRTIO_NET_F_GUEST_CSUM
SENDS = Feature.VIRTIO_NET_F_HOST_TSO4 | Feature.VIRTIO_NET_F_HOST_TSO6 | Feature.VIRTIO_NET_F_HOST_USO
ACCEPTS = (
    Feature.VIRTIO_NET_F_GUEST_TSO4
    | Feature.VIRTIO_NET_F_GUEST_TSO6
    | Feature.VIRTIO_NET_F_GUEST_USO4
    | Feature.VIRTIO_NET_F_GUEST_USO6
)
OFFLOADS = CHECKSUM | SENDS | ACCEPTS
MERGEABLE = DRIVER_FEATURES
NOT_MERGEABLE = DRIVER_FEATURES & ~Feature.VIRTIO_NET_F_MRG_RXBUF


@dataclass(frozen=True)
class Header:
    """A virtio_net_hdr without num_buffers (virtio 1.3, 5.1.6)."""

    flags: int = 0
    gso_type: int = 0
    header_length: int = 0
    gso_size: int = 0
    checksum_start: int = 0
    checksum_offset: int = 0

    def encode(self, size: int = 10) -> bytes:
        fields = (self.flags, self.gso_type, self.header_length, self.gso_size)
        return struct.pack("<BBHHHH", *fields, self.checksum_start, self.checksum_offset).ljust(size, b"\0")

    @classmethod
    def decode(cls, data: bytes) -> Header:
        return cls(*struct.unpack_from("<BBHHHH", data))


def segmented(
    transport: type[Packet], length: int, gso_size: int = 1448, *, to_guest: bool
) -> tuple[Header, bytes]:
    """A frame of TCP or UDP over IPv4 that is to be segmented: its header and its bytes."""
    ends = (HOST_MAC, GUEST_MAC, HOST_ADDRESS, GUEST_ADDRESS)
    source_mac, mac, source, address = ends if to_guest else (ends[1], ends[0], ends[3], ends[2])
    head = (
        TCP(sport=1000, dport=2000, seq=7, ack=1, flags="A", window=65535)
        if transport is TCP
        else UDP(sport=1000, dport=2000)
    )
    payload = bytes(i * 7 % 251 for i in range(length))
    frame = bytes(Ether(src=source_mac, dst=mac) / IP(src=source, dst=address) / head / payload)
    start, offset = 34, 16 if transport is TCP else 6
    header = Header(
        NEEDS_CSUM, TCPV4 if transport is TCP else UDP_L4, start + len(head), gso_size, start, offset
    )
    return header, unfinished(frame, start, offset)


def unfinished(frame: bytes, start: int, offset: int) -> bytes:
    """A frame whose checksum is only that of the pseudo-header, as VIRTIO_NET_HDR_F_NEEDS_CSUM says."""
    length = len(frame) - start
    pseudo = frame[26:34] + bytes([0, frame[23]]) + (length & 0xFFFF).to_bytes(2)
    total = sum(struct.unpack(f"!{len(pseudo) // 2}H", pseudo))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    at = start + offset
    return frame[:at] + total.to_bytes(2) + frame[at + 2 :]


def require_finished(frame: bytes) -> None:
    """Make sure that the checksums of an IPv4 frame are those that scapy computes."""
    packet = Ether(frame)
    again = packet.copy()
    for layer in (again[IP], again[IP].payload):
        del layer.chksum
    assert bytes(Ether(bytes(again))) == frame


class HostEnd:
    """A raw socket on an interface that sends and receives frames with the kernel's virtio_net_hdr.

    Frames that it sends go out through the interface, as if the host's network stack sent them: what they
    ask for is done by the kernel if the interface cannot.
    """

    def __init__(self, namespace: Namespace, interface: str, ethertype: int = 0x0800) -> None:
        def make() -> socket.socket:
            raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ethertype))
            raw.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 * MIB)
            raw.bind((interface, ethertype))
            raw.settimeout(10)
            return raw

        self._socket = namespace.call(make)

    def send(self, header: Header, frame: bytes) -> None:
        self._socket.send(header.encode() + frame)

    def receive(self) -> tuple[Header, bytes]:
        data, address = self._socket.recvfrom(1 << 17)
        # Frames that go out are shown as well.
        while address[2] == socket.PACKET_OUTGOING:
            data, address = self._socket.recvfrom(1 << 17)
        return Header.decode(data), data[10:]

    def silent(self, seconds: float) -> bool:
        """Whether nothing comes for some time."""
        self._socket.settimeout(seconds)
        try:
            self.receive()
        except TimeoutError:
            return True
        else:
            return False
        finally:
            self._socket.settimeout(10)

    def close(self) -> None:
        self._socket.close()


@dataclass
class Line:
    """guestwire on a TAP interface in a namespace of its own."""

    namespace: Namespace
    backend: Backend
    host: HostEnd

    def state(self) -> Any:
        """The guest in `guestwire status --json`, asked without the command line, which is slow."""
        return msgspec.to_builtins(status(self.backend)["guest"])

    def counters(self) -> Any:
        return self.state()["counters"]

    def read_frames(self) -> int:
        """How many frames guestwire has read from the interface, whatever became of them."""
        answer = self.namespace.run(["ip", "-json", "-stats", "link", "show", "tap0"]).stdout
        count: int = json.loads(answer)[0]["stats64"]["tx"]["packets"]
        return count


@contextlib.contextmanager
def line(
    folder: Path, options: str = "", arguments: tuple[str, ...] = (), ethertype: int = 0x0800
) -> Iterator[Line]:
    """Have guestwire make an interface `tap0`."""
    with (
        Namespace("tap") as namespace,
        Backend(folder, f"tap:tap0{options}", arguments, namespace=namespace.name) as backend,
        contextlib.closing(HostEnd(namespace, "tap0", ethertype)) as host,
    ):
        yield Line(namespace, backend, host)


def ip(namespace: Namespace, command: str) -> None:
    done = namespace.run(["ip", *command.split()])
    assert done.returncode == 0, done.stdout


def ready(guest: FakeGuest) -> None:
    """Requests are followed in order: when this one is answered, the rings run."""
    guest.frontend.get_features()
