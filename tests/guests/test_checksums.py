"""What watches checksums sees a wrong one."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw

from backend.process import wait_until
from guests import checksums
from guests.networks import GUEST_IPV6, PEER_IPV6
from guestwire.testing import Wire

pytestmark = pytest.mark.root

BROADCAST = "ff:ff:ff:ff:ff:ff"
V4 = Ether(dst=BROADCAST) / IP(src=Wire.guest_address, dst=Wire.peer_address)
V6 = Ether(dst=BROADCAST) / IPv6(src=GUEST_IPV6, dst=PEER_IPV6)
BAD_IP = Ether(dst=BROADCAST) / IP(src=Wire.guest_address, dst=Wire.peer_address, chksum=1)
LOAD = Raw(b"payload")


def seen(wire: Wire, folder: Path, frame: Packet) -> checksums.Watch:
    """What is said of a frame that arrives at the far end."""
    sender = wire.near.call(lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW))
    with sender, checksums.Watch(wire.far, wire.peer_interface, folder) as watch:
        sender.bind((wire.interface, 0))
        sender.send(bytes(frame))
        wait_until(lambda: watch.frames_seen)
    return watch


@pytest.mark.parametrize(
    ("frame", "good"),
    [
        pytest.param(V4 / TCP() / LOAD, True, id="tcp"),
        pytest.param(V4 / UDP() / LOAD, True, id="udp"),
        pytest.param(V6 / TCP() / LOAD, True, id="tcp6"),
        pytest.param(V4 / TCP(chksum=1) / LOAD, False, id="tcp-bad"),
        pytest.param(V4 / UDP(chksum=1) / LOAD, False, id="udp-bad"),
        pytest.param(V6 / TCP(chksum=1) / LOAD, False, id="tcp6-bad"),
        pytest.param(BAD_IP / TCP() / LOAD, False, id="ip-bad"),
    ],
)
def test_tcpdump_tells_right_from_wrong(tmp_path: Path, frame: Packet, good: bool) -> None:
    with Wire() as wire:
        watch = seen(wire, tmp_path, frame)
    assert bool(watch.bad) != good, watch.bad
    if good:
        assert watch.good == 1


def test_a_kernel_counts_what_it_finds_wrong(tmp_path: Path) -> None:
    with Wire() as wire:
        listing = ["sh", "-c", checksums.COUNTERS]
        assert checksums.errors(wire.far.run(listing).stdout) == {}
        destination = wire.far.run(["cat", f"/sys/class/net/{wire.peer_interface}/address"]).stdout.strip()
        frame = Ether(dst=destination) / IP(src=Wire.guest_address, dst=Wire.peer_address) / TCP(chksum=1)
        seen(wire, tmp_path, frame)
        assert checksums.errors(wire.far.run(listing).stdout) == {"TcpInCsumErrors": 1}
