"""Whether a default route leaves by an interface, asked of the kernel so that a large table costs little.

A router can have a million routes. The kernel passes over those of other interfaces by itself (a strict dump
with RTA_OIF, rtnetlink(7)); of the rest only the fixed part of each message is looked at, as far as the first
default route, which of IPv4 is the first in its table. pyroute2 would make objects of all of them.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Generator, Iterable, Iterator
from typing import Final

_SOL_NETLINK: Final = 270
_NETLINK_GET_STRICT_CHK: Final = 12

_NLMSG_ERROR: Final = 2
_NLMSG_DONE: Final = 3
_RTM_NEWROUTE: Final = 24
_RTM_GETROUTE: Final = 26
_NLM_F_REQUEST: Final = 0x1
_NLM_F_DUMP_INTR: Final = 0x10
_NLM_F_DUMP: Final = 0x300
_RTN_UNICAST: Final = 1
_RTA_OIF: Final = 4

_MESSAGE: Final = struct.Struct("=IHHII")  # struct nlmsghdr: length, type, flags, sequence, port
_ROUTE: Final = struct.Struct("=8BI")  # struct rtmsg: family, dst_len, ..., type, flags
_ATTRIBUTE: Final = struct.Struct("=HHI")  # struct rtattr with 32 bits: length, type, value
_ERROR: Final = struct.Struct("=i")
_DESTINATION_LENGTH: Final = _MESSAGE.size + 1
_ALIGNMENT: Final = 4

_LARGEST_READ: Final = 1 << 16
_ATTEMPTS: Final = 5  # while others change the table

# The interface is no more, or the kernel has no such addresses.
_NO_ROUTES: Final = (errno.ENODEV, errno.EAFNOSUPPORT, errno.EOPNOTSUPP)


def default_route_leaves_by(interface_indices: Iterable[int]) -> bool:
    """Whether a default route of the current network namespace, in any table, leaves by one of them.

    Raises:
        OSError: the kernel does not say.
    """
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as asking:
        asking.setsockopt(_SOL_NETLINK, _NETLINK_GET_STRICT_CHK, 1)
        for index in interface_indices:
            for family in (socket.AF_INET, socket.AF_INET6):
                if any(length == 0 for length in _destination_lengths(asking, family, index)):
                    return True
    return False


def _destination_lengths(asking: socket.socket, family: int, index: int) -> Iterator[int]:
    """The prefix lengths of an interface's routes of one family, some of them repeatedly."""
    route = _ROUTE.pack(family, 0, 0, 0, 0, 0, 0, _RTN_UNICAST, 0)
    body = route + _ATTRIBUTE.pack(_ATTRIBUTE.size, _RTA_OIF, index)
    flags = _NLM_F_REQUEST | _NLM_F_DUMP
    for _ in range(_ATTEMPTS):
        asking.send(_MESSAGE.pack(_MESSAGE.size + len(body), _RTM_GETROUTE, flags, 0, 0) + body)
        interrupted = yield from _answer(asking)
        if not interrupted:
            return


def _answer(asking: socket.socket) -> Generator[int, None, bool]:
    """Read one dump to its end; return whether the table changed meanwhile, so that some may be missing."""
    interrupted = False
    while True:
        data = asking.recv(_LARGEST_READ)
        at = 0
        while at < len(data):
            length, kind, flags, _, _ = _MESSAGE.unpack_from(data, at)
            interrupted = interrupted or bool(flags & _NLM_F_DUMP_INTR)
            if kind == _RTM_NEWROUTE:
                yield data[at + _DESTINATION_LENGTH]
            elif kind in {_NLMSG_DONE, _NLMSG_ERROR}:
                (error,) = _ERROR.unpack_from(data, at + _MESSAGE.size)
                if error and -error not in _NO_ROUTES:
                    raise OSError(-error, os.strerror(-error))
                return interrupted
            at += -(-length // _ALIGNMENT) * _ALIGNMENT
