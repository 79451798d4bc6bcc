"""What the kernel says of another process's AF_XDP sockets."""

from __future__ import annotations

import ctypes
import errno
import os
import socket
from collections.abc import Iterator
from pathlib import Path

AF_XDP = 44
SO_DOMAIN = 39  # asm-generic/socket.h
SO_INCOMING_NAPI_ID = 56
SOL_XDP = 283
XDP_OPTIONS = 8  # linux/if_xdp.h
XDP_OPTIONS_ZEROCOPY = 1
PIDFD_GETFD = 438  # asm-generic/unistd.h

_libc = ctypes.CDLL(None, use_errno=True)


def xdp_options(pid: int) -> list[int]:
    """Ask each AF_XDP socket of a process for its XDP_OPTIONS."""
    return [
        int.from_bytes(copy.getsockopt(SOL_XDP, XDP_OPTIONS, 4), "little") for copy in _af_xdp_sockets(pid)
    ]


def napi_ids(pid: int) -> list[int]:
    """Ask each AF_XDP socket of a process which queue busy polling would poll; 0: none."""
    return [copy.getsockopt(socket.SOL_SOCKET, SO_INCOMING_NAPI_ID) for copy in _af_xdp_sockets(pid)]


def _af_xdp_sockets(pid: int) -> Iterator[socket.socket]:
    """Copies of a process's sockets, without the process's help, each until the next is asked for."""
    process = os.pidfd_open(pid)
    try:
        for link in Path(f"/proc/{pid}/fd").iterdir():
            try:
                target = str(link.readlink())
            except FileNotFoundError:  # the process has closed it since it was listed
                continue
            if not target.startswith("socket:"):
                continue
            fd = _libc.syscall(PIDFD_GETFD, process, int(link.name), 0)
            if fd < 0 and ctypes.get_errno() == errno.EBADF:  # or since then
                continue
            if fd < 0:
                raise OSError(ctypes.get_errno(), f"pidfd_getfd of {link}")
            # Told what it is, Python does not ask for its name, which an AF_XDP socket does not have.
            with socket.socket(AF_XDP, socket.SOCK_RAW, 0, fileno=fd) as copy:
                if copy.getsockopt(socket.SOL_SOCKET, SO_DOMAIN) == AF_XDP:
                    yield copy
    finally:
        os.close(process)
