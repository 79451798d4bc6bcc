"""AF_XDP sockets as far as asking what they can do needs them; frames are the datapath's business.

Names and numbers are those of ``linux/if_xdp.h``.
"""

from __future__ import annotations

import ctypes
import os
import socket
from typing import Final

from guestwire.errors import HostError
from guestwire.host.privileges import Capability, permission_error

AF_XDP: Final = 44
SOL_XDP: Final = 283

XDP_RX_RING: Final = 2
XDP_TX_RING: Final = 3
XDP_UMEM_REG: Final = 4
XDP_UMEM_FILL_RING: Final = 5
XDP_UMEM_COMPLETION_RING: Final = 6

XDP_COPY: Final = 1 << 1
XDP_ZEROCOPY: Final = 1 << 2
XDP_USE_NEED_WAKEUP: Final = 1 << 3
XDP_USE_SG: Final = 1 << 4

XDP_UMEM_UNALIGNED_CHUNK_FLAG: Final = 1 << 0


class _SocketAddress(ctypes.Structure):
    """``struct sockaddr_xdp``."""

    _fields_ = (
        ("sxdp_family", ctypes.c_uint16),
        ("sxdp_flags", ctypes.c_uint16),
        ("sxdp_ifindex", ctypes.c_uint32),
        ("sxdp_queue_id", ctypes.c_uint32),
        ("sxdp_shared_umem_fd", ctypes.c_uint32),
    )


_libc: Final = ctypes.CDLL(None, use_errno=True)


def open_socket() -> socket.socket:
    """Make an AF_XDP socket.

    Raises:
        OSError: ``EPERM`` without CAP_NET_RAW, ``EAFNOSUPPORT`` if the kernel has no AF_XDP.
    """
    return socket.socket(AF_XDP, socket.SOCK_RAW, 0)


def socket_error(error: OSError) -> HostError:
    """The error, for people, that :func:`open_socket` failed."""
    if isinstance(error, PermissionError):
        return permission_error("making an AF_XDP socket", {Capability.CAP_NET_RAW})
    return HostError(
        f"the kernel has no AF_XDP sockets: {error.strerror}",
        "use a kernel built with CONFIG_XDP_SOCKETS",
    )


def bind(xdp_socket: socket.socket, interface_index: int, queue: int, flags: int) -> None:
    """Bind an AF_XDP socket to a queue; Python's own ``bind`` does not know the address family.

    Raises:
        OSError: with what the kernel or the driver objects.
    """
    address = _SocketAddress(
        sxdp_family=AF_XDP, sxdp_flags=flags, sxdp_ifindex=interface_index, sxdp_queue_id=queue
    )
    result = _libc.bind(xdp_socket.fileno(), ctypes.byref(address), ctypes.c_uint32(ctypes.sizeof(address)))
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
