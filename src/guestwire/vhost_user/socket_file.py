"""The file of a listening socket: who may connect to it (unix(7), "Pathname socket ownership")."""

from __future__ import annotations

import grp
import os
import socket
from dataclasses import dataclass
from pathlib import Path

from guestwire.errors import ConfigurationError, HostError

GROUP_MODE = 0o660


def group_number(group: str | int) -> int:
    """The number of a group that is known by name or by number; a name of digits is first a name.

    Raises:
        ConfigurationError: this machine has no group of that name.
    """
    name = str(group)
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        if name.isascii() and name.isdigit() and int(name) < (1 << 32) - 1:  # which stands for none
            return int(name)
    raise ConfigurationError(f"there is no group {name!r} on this machine", "getent group, which lists them")


@dataclass(frozen=True, slots=True)
class SocketAccess:
    """Who may connect to a socket: whoever may write to its file.

    Attributes:
        mode: the file's permissions; None for 0660 with a group, else what the umask leaves.
        group: the number of the group that it belongs to; None for that of the process.
    """

    mode: int | None = None
    group: int | None = None


def bind(listening: socket.socket, path: Path, access: SocketAccess) -> None:
    """Bind a socket to a path whose file has, from the beginning, no more permissions than asked for.

    Raises:
        HostError: this user may not give the file to the group.
        OSError: the path cannot be bound to.
    """
    if access.mode is None and access.group is None:
        listening.bind(os.fspath(path))
        return
    # Linux makes the file with the socket's own mode, less the umask: this file opens when it is the group's.
    os.fchmod(listening.fileno(), 0)
    listening.bind(os.fspath(path))
    try:
        _open_to(path, access)
    except BaseException:
        path.unlink()
        raise


def _open_to(path: Path, access: SocketAccess) -> None:
    # By descriptor: whoever may write to the directory could put another file in its place meanwhile.
    descriptor = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    file = Path(f"/proc/self/fd/{descriptor}")
    try:
        if access.group is not None:
            os.chown(file, -1, access.group)
        file.chmod(GROUP_MODE if access.mode is None else access.mode)
    except PermissionError as error:
        raise HostError(
            f"cannot give socket {path} to group {access.group}: user {os.geteuid()} is not a member",
            "join that group and log in anew, or run as root",
        ) from error
    finally:
        os.close(descriptor)
