"""The process that looks at a frontend's files first (`guestwire.vhost_user.inspection`).

Harmless are files of no file system but the kernel's own: eventfds, pipes and Unix sockets, which signal, and
shared memory (memfd, tmpfs, hugetlbfs). What is asked of a file to know is answered without its file system;
what is not harmless is closed in the thread of its guest, which may take forever.

A program of its own, which imports nothing of ours.
"""

from __future__ import annotations

import array
import contextlib
import fcntl
import os
import socket
import sys
import threading

_MOST_FILES = 253  # with one message: SCM_MAX_FD of the kernel (unix(7))
_ANCILLARY_SIZE = socket.CMSG_SPACE(_MOST_FILES * array.array("i").itemsize)
_LONGEST_REQUEST = 64


def _why_refused(descriptor: int) -> str:
    """Return the name of a file that is not harmless, as the kernel shows it; else nothing."""
    with contextlib.suppress(OSError):
        fcntl.fcntl(descriptor, fcntl.F_GET_SEALS)  # only shared memory knows seals
        return ""
    # Names of files begin with a slash, those of what has no file system with its kind.
    name = os.readlink(f"/proc/self/fd/{descriptor}")  # noqa: PTH115 (pathlib takes its time to start)
    if name == "anon_inode:[eventfd]" or name.startswith("pipe:["):
        return ""
    if name.startswith("socket:["):
        # Other sockets may linger when they are closed (socket(7), SO_LINGER).
        found = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, fileno=descriptor)
        domain = found.getsockopt(socket.SOL_SOCKET, socket.SO_DOMAIN)
        found.detach()
        return "" if domain == socket.AF_UNIX else f"{name} of family {domain}"
    return name


def _peek(connection: socket.socket, size: int) -> tuple[list[int], bool]:
    """Return copies of the files with the next bytes, and whether there are more than can be opened."""
    flags = socket.MSG_PEEK | socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC
    _, ancillary, received, _ = connection.recvmsg(size, _ANCILLARY_SIZE, flags)
    files = array.array("i")
    for level, kind, content in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            files.frombytes(content)
    return files.tolist(), bool(received & socket.MSG_CTRUNC)


def _serve(line: socket.socket) -> None:
    """Answer one guest's requests: how many bytes to peek at, with the connection beside it."""
    while True:
        request, numbers, _, _ = socket.recv_fds(line, _LONGEST_REQUEST, 1)
        if not request:
            return
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, fileno=numbers[0]) as connection:
            files, lost = _peek(connection, int(request))
        refused = next(filter(None, map(_why_refused, files)), "")
        answer = f"{len(files)} {lost:d} {refused}".encode(errors="surrogateescape")
        if refused or lost:
            line.send(answer)
            # Whoever is the last to let go of a file may have to wait as well: that shall be us.
            line.recv(_LONGEST_REQUEST)
            answer = b"closed"
        for file in files:
            os.close(file)
        line.send(answer)


def _serve_and_close(line: socket.socket) -> None:
    with line, contextlib.suppress(OSError):
        _serve(line)


def main(control: socket.socket) -> None:
    """Serve a process until it ends: a thread for each line that comes."""
    while True:
        request, numbers, _, _ = socket.recv_fds(control, _LONGEST_REQUEST, 1)
        if not request:
            os._exit(0)
        line = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, fileno=numbers[0])
        threading.Thread(target=_serve_and_close, args=(line,), daemon=True).start()


if __name__ == "__main__":
    main(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, fileno=int(sys.argv[1])))
