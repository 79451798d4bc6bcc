"""A guest's announcement of itself, sent on its behalf: the gratuitous RARP of VHOST_USER_SEND_RARP."""

from __future__ import annotations

import socket

from guestwire.errors import HostError

_ETHERTYPE_RARP = 0x8035
_BROADCAST = b"\xff" * 6
_SHORTEST_FRAME = 60
_REVERSE_REQUEST = b"\x00\x01\x08\x00\x06\x04\x00\x03"  # Ethernet, IPv4, lengths, operation 3 (RFC 903)


def rarp_frame(mac: bytes) -> bytes:
    """Return the 60-byte broadcast frame by which switches learn where `mac` now is."""
    frame = _BROADCAST + mac + _ETHERTYPE_RARP.to_bytes(2) + _REVERSE_REQUEST
    frame += mac + bytes(4) + mac + bytes(4)
    return frame.ljust(_SHORTEST_FRAME, b"\0")


def send_rarp(interface: str, mac: bytes) -> None:
    """Send it on an interface of the current network namespace.

    Raises:
        HostError: the kernel refuses.
    """
    try:
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as packet:
            packet.bind((interface, 0))
            packet.send(rarp_frame(mac))
    except OSError as error:
        raise HostError(
            f"cannot announce the guest on {interface}: {error.strerror}",
            f"ip link show dev {interface}",
        ) from error
