"""The other end of the cable, as the tests inside the lab's machine see it."""

from __future__ import annotations

import socket
from pathlib import Path

from backend.process import wait_until
from guestwire.testing.frame_stream import ETHERTYPE
from guestwire.testing.namespaces import call_inside
from lab.machine import NAMESPACE, NIC, PEER

MIB = 1 << 20
ADDRESS = "192.0.2.1"  # RFC 5737, TEST-NET-1
GUEST_ADDRESS = "192.0.2.2"
PREFIX_LENGTH = 24
SO_RCVBUFFORCE = 33  # asm-generic/socket.h


def peer_socket(ethertype: int = ETHERTYPE, timeout: float = 10.0) -> socket.socket:
    """A raw socket on the peer for frames of one Ethernet type, with room for a burst of them."""

    def make() -> socket.socket:
        peer = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ethertype))
        peer.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 8 * MIB)
        peer.bind((PEER, ethertype))
        peer.settimeout(timeout)
        return peer

    return call_inside(NAMESPACE, make)


def wait_for_carrier() -> None:
    """Wait until frames can pass again: an igb is reset when its XDP program or its mode changes."""
    carrier = Path(f"/sys/class/net/{NIC}/carrier")
    wait_until(lambda: carrier.read_text() == "1\n", 30)
