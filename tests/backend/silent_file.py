"""A file on a file system (FUSE) that stops answering once the file is open: who touches it, waits.

Nothing that waits for such a file can be killed, so the tests never have it. One process serves the file
system, in a mount namespace of its own; another opens the file and sends it to whoever is named. When the
first is killed, as it is at the end in any case, the kernel gives the file system up, and all waiting ends.
"""

from __future__ import annotations

import ctypes
import os
import socket
import struct
import sys
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest

from guestwire.testing import processes

# linux/fuse.h
_INIT, _LOOKUP, _GETATTR, _OPEN = 26, 1, 3, 14
_NOT_SUPPORTED = -38
_IN_HEADER = struct.Struct("<IIQQIIIHH")
_OUT_HEADER = struct.Struct("<IiQ")
_ATTRIBUTES = struct.Struct("<6Q10I")
_ROOT = 1
_SIZE = 1 << 20

_libc = ctypes.CDLL(None, use_errno=True)


class SilentFile:
    """Such a file, in the hands of the process that serves it."""

    def __init__(self, folder: Path) -> None:
        if not os.access("/dev/fuse", os.R_OK | os.W_OK) or os.geteuid() != 0:
            pytest.skip("serving a file system needs root and /dev/fuse")
        self._folder = folder

    def __enter__(self) -> Self:
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._control.settimeout(20)
        log = self._folder / "silent_file.log"
        with theirs:
            alone = ("unshare", "--mount", "--propagation", "private")
            self._process = processes.spawn(
                [*alone, sys.executable, __file__, str(theirs.fileno())],
                log,
                pass_fds=[theirs.fileno()],
            )
        assert self._control.recv(16) == b"ready", log.read_text()
        return self

    def send(self, connection: socket.socket, message: bytes, count: int = 1) -> None:
        """Have a message sent over a connection of ours, with the file beside it so many times."""
        socket.send_fds(self._control, [bytes([count]) + message], [connection.fileno()])
        assert self._control.recv(16) == b"sent"

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._control.close()
        self._process.kill()
        self._process.wait()


def _answer(kind: int, node: int) -> bytes | None:
    """Answer a request of the kernel until the file is open; None for what is not supported."""
    mode = 0o040755 if node == _ROOT and kind != _LOOKUP else 0o100644
    attributes = _ATTRIBUTES.pack(2, _SIZE, _SIZE // 512, 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0)
    return {
        _INIT: struct.pack("<IIIIHHIIHHI28x", 7, 31, 0, 0, 12, 9, 65536, 1, 0, 0, 0),
        _LOOKUP: struct.pack("<4Q2I", 2, 0, 0, 0, 0, 0) + attributes,
        _GETATTR: struct.pack("<Q2I", 0, 0, 0) + attributes,
        _OPEN: struct.pack("<Q2I", 1, 0, 0),
    }.get(kind)


def _serve_file_system(device: int) -> None:
    """Answer until the file is open, and take what comes then."""
    silent = False
    while True:
        request = os.read(device, 1 << 17)
        _, kind, unique, node, *_ = _IN_HEADER.unpack_from(request)
        if silent:
            continue
        body = _answer(kind, node)
        error = _NOT_SUPPORTED if body is None else 0
        answer = body or b""
        os.write(device, _OUT_HEADER.pack(_OUT_HEADER.size + len(answer), error, unique) + answer)
        silent = kind == _OPEN


def _mount(device: int, place: str) -> None:
    options = f"fd={device},rootmode=40000,user_id=0,group_id=0".encode()
    if _libc.mount(b"silent", place.encode(), b"fuse", 0, options):
        raise OSError(ctypes.get_errno(), "mount")


def _hold_file(control: socket.socket, place: str) -> None:
    """Open the file, and send it to whoever is named, until killed."""
    _libc.prctl(1, 9)  # PR_SET_PDEATHSIG: with the process that serves it
    file = os.open(f"{place}/file", os.O_RDWR)
    _libc.umount2(place.encode(), 2)  # MNT_DETACH: the file needs it no more
    Path(place).rmdir()
    control.send(b"ready")
    while True:
        message, numbers, _, _ = socket.recv_fds(control, 1 << 16, 1)
        if not message:
            os.kill(os.getppid(), 9)
        with socket.socket(fileno=numbers[0]) as connection:
            socket.send_fds(connection, [message[1:]], [file] * message[0])
        control.send(b"sent")


def main(control: socket.socket) -> None:
    """Serve the file system, until killed; another process has the file, so that this one can be."""
    device = os.open("/dev/fuse", os.O_RDWR)
    place = tempfile.mkdtemp()
    _mount(device, place)
    if os.fork() == 0:
        os.close(device)
        try:
            _hold_file(control, place)
        finally:
            os.kill(os.getppid(), 9)
    control.close()
    _serve_file_system(device)


if __name__ == "__main__":
    main(socket.socket(fileno=int(sys.argv[1])))
