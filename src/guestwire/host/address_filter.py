"""Makes a NIC accept frames for the guest's address, which is not the interface's own.

The wish is a membership of an AF_PACKET socket (packet(7)): the kernel counts memberships of all programs,
and takes this one back when the socket is closed, however the process ends.
"""

from __future__ import annotations

import socket
import struct

from guestwire.errors import HostError
from guestwire.host.privileges import Capability, permission_error

_SOL_PACKET = 263
_PACKET_ADD_MEMBERSHIP = 1
_PACKET_MR_PROMISC = 1
_PACKET_MR_ALLMULTI = 2
_PACKET_MR_UNICAST = 3


class AddressFilter:
    """Lets more frames through an interface's address filter, until it is closed.

    Args:
        name, index: which interface.
        mac: the one address to let through, of 6 bytes, with all multicast; None lets everything through.

    Raises:
        HostError: the kernel or the driver refuses.
    """

    def __init__(self, name: str, index: int, mac: bytes | None = None) -> None:
        try:
            # Protocol 0: the socket receives nothing.
            self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        except PermissionError as error:
            raise permission_error(
                f"taking frames for guests from {name}", {Capability.CAP_NET_RAW}
            ) from error
        try:
            if mac is None:
                self._join(index, _PACKET_MR_PROMISC)
            else:
                self._join(index, _PACKET_MR_UNICAST, mac)
                self._join(index, _PACKET_MR_ALLMULTI)
        except OSError as error:
            self._socket.close()
            raise HostError(
                f"interface {name} does not let frames for guests through: {error.strerror}",
                f"ip link set dev {name} promisc on",
            ) from error

    def _join(self, index: int, kind: int, address: bytes = b"") -> None:
        # struct packet_mreq: interface, type, length of the address, address
        request = struct.pack("iHH8s", index, kind, len(address), address)
        self._socket.setsockopt(_SOL_PACKET, _PACKET_ADD_MEMBERSHIP, request)

    def close(self) -> None:
        """Take the wish back. Closing twice is harmless."""
        self._socket.close()
