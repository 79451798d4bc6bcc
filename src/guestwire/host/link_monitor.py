"""What happens to the network interfaces of the current network namespace, told by rtnetlink as it happens.

The socket is read by an event loop, so nothing here waits. pyroute2 is not used: two structures of
``linux/rtnetlink.h`` and three attributes of ``linux/if_link.h`` are all that is needed.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self

from guestwire.errors import HostError

_RTMGRP_LINK: Final = 1  # RTNLGRP_LINK, as a bit of sockaddr_nl.nl_groups
_RTM_NEWLINK: Final = 16
_RTM_DELLINK: Final = 17
_IFF_UP: Final = 1 << 0
_IFF_LOWER_UP: Final = 1 << 16
_IFLA_IFNAME: Final = 3
_IFLA_MTU: Final = 4
_IFLA_CARRIER: Final = 33

_MESSAGE: Final = struct.Struct("=IHHII")  # struct nlmsghdr: length, type, flags, sequence, port
_INTERFACE: Final = struct.Struct("=BxHiII")  # struct ifinfomsg: family, type, index, flags, change
_ATTRIBUTE: Final = struct.Struct("=HH")  # struct rtattr: length, type
_UNSIGNED: Final = struct.Struct("=I")
_ALIGNMENT: Final = 4
_FROM_KERNEL: Final = 0  # the kernel's own netlink port

_LARGEST_READ: Final = 1 << 16  # a link message with all its statistics takes a few KiB
_READS: Final = 256  # at most so many in a row, that others may have the event loop


@dataclass(frozen=True, slots=True)
class LinkEvent:
    """Something about an interface has changed, or may have.

    Attributes:
        index: its number.
        name: its name now.
        up: whether it is set up.
        carrier: whether its link works.
        mtu: the largest payload of a frame, in bytes.
        gone: whether it has left this network namespace.
    """

    index: int
    name: str
    up: bool
    carrier: bool
    mtu: int
    gone: bool


class LinkMonitor:
    """Events of all interfaces of the network namespace that the calling thread is in, from now on.

    Raises:
        HostError: the kernel has no rtnetlink for us.
    """

    def __init__(self) -> None:
        kind = socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
        try:
            self._socket = socket.socket(socket.AF_NETLINK, kind, socket.NETLINK_ROUTE)
            try:
                self._socket.bind((0, _RTMGRP_LINK))
            except BaseException:
                self._socket.close()
                raise
        except OSError as error:
            raise HostError(
                f"the kernel does not tell of changes of network interfaces: {error.strerror}",
                "let this process use AF_NETLINK (RestrictAddressFamilies= in a systemd unit)",
            ) from error

    def fileno(self) -> int:
        """Return the descriptor that is readable when `read` has something to return."""
        return self._socket.fileno()

    def read(self) -> list[LinkEvent] | None:
        """Return what has happened since the last time, oldest first.

        Returns:
            None if the kernel had to throw events away: everything is to be looked at again.
        """
        events: list[LinkEvent] = []
        for _ in range(_READS):
            try:
                data, (sender, _) = self._socket.recvfrom(_LARGEST_READ)
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno == errno.ENOBUFS:
                    return None
                raise
            if sender == _FROM_KERNEL:
                events += parse(data)
        return events

    def close(self) -> None:
        """Listen no more."""
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def parse(data: bytes) -> Iterator[LinkEvent]:
    """Find the link events in what one read returned.

    Messages of an address family of its own say what a bridge thinks of its port (AF_BRIDGE); above all,
    one that leaves its bridge is not gone.
    """
    for kind, body in _elements(data, _MESSAGE):
        if kind not in {_RTM_NEWLINK, _RTM_DELLINK} or len(body) < _INTERFACE.size:
            continue
        family, _, index, flags, _ = _INTERFACE.unpack_from(body)
        if family != socket.AF_UNSPEC:
            continue
        attributes = dict(_elements(body[_INTERFACE.size :], _ATTRIBUTE))
        carrier = attributes.get(_IFLA_CARRIER)
        yield LinkEvent(
            index=index,
            name=attributes.get(_IFLA_IFNAME, b"").rstrip(b"\0").decode(errors="replace"),
            up=bool(flags & _IFF_UP),
            carrier=bool(carrier[0]) if carrier else bool(flags & _IFF_LOWER_UP),
            mtu=_number(attributes.get(_IFLA_MTU)),
            gone=kind == _RTM_DELLINK,
        )


def _elements(data: bytes, header: struct.Struct) -> Iterator[tuple[int, bytes]]:
    """Split messages or attributes, which both begin with their length and their type."""
    while len(data) >= header.size:
        length, kind = header.unpack_from(data)[:2]
        if length < header.size:
            return
        yield kind, data[header.size : length]
        data = data[-(-length // _ALIGNMENT) * _ALIGNMENT :]


def _number(value: bytes | None) -> int:
    return int(_UNSIGNED.unpack_from(value)[0]) if value is not None and len(value) >= _UNSIGNED.size else 0
