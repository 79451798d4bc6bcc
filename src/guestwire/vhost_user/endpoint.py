"""Where a session's socket comes from: three ways to a frontend, alike to who uses them.

`Listener` waits on a path, `Connector` goes to a frontend that listens itself, and keeps trying,
`Inherited` starts from a descriptor that the parent process has left open.  Each gives one
connection after the other.

A socket has one frontend at a time.  A second one waits in the kernel's queue until the first has
gone: when a frontend is killed and its successor is quick, the successor must not be turned away.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import logging
import os
import select
import socket
import stat
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from guestwire.accepting import Acceptor, passes
from guestwire.errors import ConfigurationError, GuestwireError, HostError, shortage_remedy
from guestwire.vhost_user.socket_file import SocketAccess, bind

log = logging.getLogger(__name__)

_WHOSE = "a frontend's"
_LOCK_SECONDS = 2.0  # it is held for less than a millisecond, and signals have to wait for us
_LOCK_PAUSE_SECONDS = 0.01
_PATH_LIMIT = 107  # bytes in sockaddr_un.sun_path before the terminating zero (unix(7))


class Endpoint(Protocol):
    """A source of connections to frontends, one at a time."""

    async def connection(self) -> socket.socket | None:
        """Wait for the next connection: a non-blocking stream socket; None if there are no more."""

    def waiting(self) -> bool:
        """Tell whether a frontend is there that `connection` has not given yet."""

    def close(self) -> None:
        """Give up the endpoint and leave nothing behind."""


def _check_path(path: Path) -> str:
    name = os.fspath(path)
    if len(os.fsencode(name)) > _PATH_LIMIT:
        raise ConfigurationError(
            f"socket path {name} is longer than the {_PATH_LIMIT} bytes that Linux allows",
            "choose a shorter path, for example under /run",
        )
    return name


def _is_socket(path: Path) -> bool:
    """Tell whether a socket is there; refuse anything else that is."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return False
    except OSError as error:
        raise _cannot("look at", path, error) from error
    if not stat.S_ISSOCK(mode):
        raise ConfigurationError(
            f"socket path {path} exists and is not a socket",
            f"choose another path; what is there: ls -ld {path}",
        )
    return True


def _owner_of_live(path: Path) -> str | None:
    """Return who listens on a socket, or None if nobody does."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(os.fspath(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return None
        except BlockingIOError:
            return "a process with connections waiting"
        credentials = probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    pid = struct.unpack("=iII", credentials)[0]
    with contextlib.suppress(OSError):
        return f"process {pid} ({Path(f'/proc/{pid}/comm').read_text().strip()})"
    return f"process {pid}"


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Keep two processes from replacing the same stale socket at once.

    The lock is on a file that nobody else may open: whoever can only read the directory could hold a lock on
    that forever. The file is there only meanwhile.

    Raises:
        HostError: somebody keeps the lock, or has put something else in its place.
        OSError: the file cannot be made.
    """
    lock = path.with_name(f".{path.name}.lock")
    end = time.monotonic() + _LOCK_SECONDS
    while (descriptor := _try_lock(lock)) is None:
        if time.monotonic() >= end:
            raise HostError(
                f"somebody keeps the lock on {lock}",
                "choose another socket path, in a directory where nobody else may write",
            )
        time.sleep(_LOCK_PAUSE_SECONDS)
    try:
        yield
    finally:
        lock.unlink()
        os.close(descriptor)


def _try_lock(lock: Path) -> int | None:
    """Return a descriptor that locks the file that lies there; None if another process does."""
    flags = os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    descriptor = os.open(lock, flags, 0o600)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid() or status.st_size:
            raise HostError(f"{lock} is in the way, and not ours", "choose another socket path")
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Who had the lock before has removed the file, and another may be there by now.
        if os.path.samestat(status, lock.lstat()):
            locked, descriptor = descriptor, -1
            return locked
    except (BlockingIOError, FileNotFoundError):
        pass
    finally:
        if descriptor >= 0:
            os.close(descriptor)
    return None


class Listener:
    """Waits for frontends on a path: QEMU's chardev without ``server=on``.

    Args:
        path: where; a stale socket there is replaced, a live one is not.
        access: who may connect; by default whoever the umask lets.

    Raises:
        ConfigurationError: the path is taken, too long, or its directory does not exist.
        HostError: this user may not create it, or not give it to that group.
    """

    def __init__(self, path: Path, access: SocketAccess = SocketAccess()) -> None:  # noqa: B008 (immutable)
        _check_path(path)
        self._path = path
        self._identity: tuple[int, int] | None = None
        try:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        except OSError as error:
            raise _cannot("listen on", path, error) from error
        self._acceptor = Acceptor(self._socket, _WHOSE)
        try:
            with _locked(path):
                _remove_stale(path)
                bind(self._socket, path, access)
                self._identity = _identity(path)
                # Before the next one looks: who does not listen yet is taken for dead.
                self._socket.listen(1)
            self._socket.setblocking(False)
        except OSError as error:
            self.close()
            raise _cannot("listen on", path, error) from error
        except GuestwireError:
            self.close()
            raise

    async def connection(self) -> socket.socket | None:
        """Wait until a frontend connects."""
        return await self._acceptor.accept()

    def waiting(self) -> bool:
        """Tell whether another frontend has connected."""
        return _has_connection(self._socket)

    def close(self) -> None:
        """Stop listening, and remove the socket file if it is still the one created here."""
        self._socket.close()
        with contextlib.suppress(OSError):
            if _identity(self._path) == self._identity:
                self._path.unlink()
        self._identity = None


def _remove_stale(path: Path) -> None:
    """Remove a socket file that nobody listens on."""
    if not _is_socket(path):
        return
    owner = _owner_of_live(path)
    if owner is not None:
        raise ConfigurationError(
            f"socket path {path} is in use by {owner}",
            f"choose another socket path; whose this one is: ss -xlp src {path}",
        )
    path.unlink()


def _identity(path: Path) -> tuple[int, int]:
    status = path.lstat()
    return status.st_dev, status.st_ino


def _has_connection(listening: socket.socket) -> bool:
    poll = select.poll()
    poll.register(listening, select.POLLIN)
    return bool(poll.poll(0))


def _cannot(verb: str, path: Path, error: OSError) -> ConfigurationError | HostError:
    what = f"cannot {verb} socket {path}: {error.strerror}"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return HostError(what, f"let user {os.geteuid()} write to {path.parent}, or run as root")
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return ConfigurationError(what, f"create the directory: mkdir -p {path.parent}")
    return HostError(what, shortage_remedy(error, path.parent))


class Connector:
    """Goes to a frontend that listens: QEMU's chardev with ``server=on``.

    A virtual machine can then outlive the backend.

    Args:
        path: where the frontend listens, now or later.
        retry_interval: seconds between two attempts.

    Raises:
        ConfigurationError: the path is too long, or something else than a socket.
    """

    def __init__(self, path: Path, retry_interval: float = 0.5) -> None:
        self._name = _check_path(path)
        self._path = path
        self._retry_interval = retry_interval
        self._next_attempt = 0.0
        self._complaint = ""
        _is_socket(path)

    async def connection(self) -> socket.socket | None:
        """Try until a frontend takes the connection.

        What is in the way (something else than a frontend's socket, or one that this user may not use) may go
        again: it is said once, not taken for an end.
        """
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(self._next_attempt - loop.time())
            self._next_attempt = loop.time() + self._retry_interval
            try:
                connection = self._attempt()
            except GuestwireError as error:
                if str(error) != self._complaint:
                    self._complaint = str(error)
                    remedy = f"; {error.remedy}" if error.remedy else ""
                    log.warning("%s%s; it is tried again until it works", error, remedy)
                continue
            if connection is not None:
                self._complaint = ""
                return connection

    def _attempt(self) -> socket.socket | None:
        if not _is_socket(self._path):
            return None
        connection = None
        try:
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            connection.setblocking(False)
            connection.connect(self._name)
        except OSError as error:
            if connection is not None:
                connection.close()
            if error.errno in (errno.ENOENT, errno.ECONNREFUSED, errno.EAGAIN) or passes(error):
                return None
            raise _cannot("connect to", self._path, error) from error
        return connection

    def waiting(self) -> bool:
        """Nobody waits for whoever goes to them."""
        return False

    def close(self) -> None:
        """Do nothing: between two attempts there is nothing to give up."""


class Inherited:
    """Starts from a descriptor of the parent process (``--fd``), connected or listening.

    "The back-end program is started with the vhost-user socket as file descriptor FDNUM."
    (docs/interop/vhost-user.rst, "Backend program conventions")

    Args:
        descriptor: its number; it belongs to the endpoint from now on.

    Raises:
        ConfigurationError: it is not open, or not a Unix stream socket.
    """

    def __init__(self, descriptor: int) -> None:
        try:
            inherited = socket.socket(fileno=descriptor)
        except (OSError, ValueError) as error:
            raise _not_inherited(descriptor, str(error)) from error
        self._socket: socket.socket | None = inherited
        self._acceptor = Acceptor(inherited, _WHOSE)
        try:
            if (inherited.family, inherited.type) != (socket.AF_UNIX, socket.SOCK_STREAM):
                raise _not_inherited(descriptor, "it is not a Unix stream socket")
            self._listens = bool(inherited.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
            if not self._listens:
                inherited.getpeername()
            inherited.setblocking(False)
            inherited.set_inheritable(False)
        except OSError as error:
            self.close()
            raise _not_inherited(descriptor, str(error)) from error
        except ConfigurationError:
            self.close()
            raise

    async def connection(self) -> socket.socket | None:
        """Accept a frontend, or give the one connection there is, once."""
        if self._socket is None:
            return None
        if self._listens:
            return await self._acceptor.accept()
        connection, self._socket = self._socket, None
        return connection

    def waiting(self) -> bool:
        """Tell whether another frontend has connected."""
        return self._socket is not None and self._listens and _has_connection(self._socket)

    def close(self) -> None:
        """Close the descriptor, unless it was a connection that has been given away."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def _not_inherited(descriptor: int, why: str) -> ConfigurationError:
    return ConfigurationError(
        f"file descriptor {descriptor} cannot be the vhost-user socket: {why}",
        "pass the number of a connected or listening Unix stream socket to --fd, left open by the "
        "parent process",
    )
