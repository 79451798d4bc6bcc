"""The passive description of guests and ports: data without effect, from a TOML file or from flags."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from guestwire.errors import ConfigurationError
from guestwire.sizes import parse_size
from guestwire.vhost_user.socket_file import SocketAccess, group_number

Name = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]
Count = Annotated[int, msgspec.Meta(ge=1, le=64)]
Cpu = Annotated[int, msgspec.Meta(ge=0, le=8191)]
SocketMode = Annotated[str, msgspec.Meta(pattern="^0?[0-7]{3}$")]
Group = Annotated[str, msgspec.Meta(min_length=1)] | Annotated[int, msgspec.Meta(ge=0)]


def _limit(max_pinned: str | None) -> int | None:
    """Return the bytes that a ``max_pinned`` stands for."""
    try:
        return None if max_pinned is None else parse_size(max_pinned)
    except ValueError as error:
        raise ValueError(f"max_pinned: {error}") from error


class GuestConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One guest: its socket and its port.

    Attributes:
        name: what people call it; by default the socket's file name without its suffix.
        socket_path: the vhost-user socket. None with `fd`.
        fd: an inherited, listening or connected socket instead.
        socket_mode: the permissions of the socket's file, octal, such as ``0660``, which is the default with
            `socket_group`; None for what the umask leaves. Whoever may write to it may connect.
        socket_group: the group that the file belongs to, by name or number; None for the process's.
        role: ``listen`` (QEMU connects) or ``connect`` (QEMU is the server; we retry until it is there).
        port: where its frames go; see the reference for the syntax.
        queue_pairs: how many are offered.
        mac: offered to frontends that read the configuration space; by default made from the name.
        poll_us: the longest time a worker polls before it sleeps, in microseconds; None: the port says.
        coalesce_us: how long a call that the guest's driver wants may be held back, in microseconds; 0: not
            at all.
        coalesce_packets: for how many frames it is held back at most.
        cpus: one worker on each of them serves the queue pairs that fall to it in turn; empty: a worker for
            each queue pair, on any CPU.
        max_pinned: how much memory the kernel may pin for it, such as ``4G``; None for any amount.
    """

    port: str
    name: Name = ""
    socket_path: Annotated[str, msgspec.Meta(min_length=1)] | None = None
    socket_mode: SocketMode | None = None
    socket_group: Group | None = None
    fd: int | None = None
    role: Literal["listen", "connect"] = "listen"
    queue_pairs: Count = 1
    mac: Annotated[str, msgspec.Meta(pattern="^([0-9a-fA-F]{2}:){5}[0-9a-fA-F]{2}$")] | None = None
    poll_us: Annotated[int, msgspec.Meta(ge=0, le=1_000_000)] | None = None
    coalesce_us: Annotated[int, msgspec.Meta(ge=0, le=1_000_000)] = 0
    coalesce_packets: Annotated[int, msgspec.Meta(ge=1, le=32_768)] = 64
    cpus: tuple[Cpu, ...] = ()
    max_pinned: str | None = None

    def __post_init__(self) -> None:
        _limit(self.max_pinned)

    @property
    def max_pinned_bytes(self) -> int | None:
        """`max_pinned` in bytes."""
        return _limit(self.max_pinned)

    @property
    def socket_access(self) -> SocketAccess:
        """Who may connect to the socket.

        Raises:
            ConfigurationError: there is no such group.
        """
        return SocketAccess(
            mode=None if self.socket_mode is None else int(self.socket_mode, 8),
            group=None if self.socket_group is None else group_number(self.socket_group),
        )


class Configuration(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All guests of one process.

    Attributes:
        guest: the guests.
        max_pinned: how much memory the kernel may pin for all of them together; None for any amount.
    """

    guest: tuple[GuestConfig, ...]
    max_pinned: str | None = None

    def __post_init__(self) -> None:
        _limit(self.max_pinned)

    @property
    def max_pinned_bytes(self) -> int | None:
        """`max_pinned` in bytes."""
        return _limit(self.max_pinned)


def complete(guest: GuestConfig) -> GuestConfig:
    """Fill in what follows from the rest; check what belongs together.

    Raises:
        ConfigurationError: the socket is missing or named twice, or an inherited one shall be connected,
            or permissions are given for one that is not made here or to a group that is not there,
            or the address is not one guest's.
    """
    if (guest.socket_path is None) == (guest.fd is None):
        raise ConfigurationError(
            f"guest {guest.name or guest.port!r} needs either socket_path or fd",
            "give it one: --socket-path /run/guestwire/NAME.sock",
        )
    if guest.fd is not None and guest.role == "connect":
        raise ConfigurationError(
            f"guest {guest.name or guest.port!r} cannot connect: file descriptor {guest.fd} is open already",
            'leave out --connect (role = "connect"), or give it a socket_path',
        )
    if guest.socket_access != SocketAccess() and (guest.fd is not None or guest.role == "connect"):
        raise ConfigurationError(
            f"guest {guest.name or guest.port!r} does not make its socket: others say who may connect",
            "leave out --socket-mode and --socket-group, and set them where the socket is made",
        )
    if guest.mac and int(guest.mac[:2], 16) & 1:
        raise ConfigurationError(
            f"guest {guest.name or guest.port!r}: {guest.mac} is a group's address, not a guest's",
            f"use an individual one, such as {int(guest.mac[:2], 16) & ~1 | 2:02x}{guest.mac[2:]}",
        )
    if guest.name:
        return guest
    stem = Path(guest.socket_path).stem if guest.socket_path else f"fd{guest.fd}"
    return msgspec.structs.replace(guest, name=re.sub(r"[^A-Za-z0-9_.-]", "_", stem)[:64] or "guest")


def check(configuration: Configuration) -> Configuration:
    """Complete all guests and make sure that none is in another's way.

    Raises:
        ConfigurationError: there is no guest, or two share a name or a socket.
    """
    guests = tuple(complete(guest) for guest in configuration.guest)
    if not guests:
        raise ConfigurationError("the configuration names no guest", "add a [[guest]] table")
    for what in ("name", "socket_path", "fd"):
        seen = [value for guest in guests if (value := getattr(guest, what)) is not None]
        for value in seen:
            if seen.count(value) > 1:
                raise ConfigurationError(
                    f"two guests have the same {what}: {value}", f"give each guest its own {what}"
                )
    return msgspec.structs.replace(configuration, guest=guests)


def load(path: Path) -> Configuration:
    """Read a TOML file.

    Raises:
        ConfigurationError: it cannot be read, is not TOML, or does not describe guests.
    """
    try:
        return check(msgspec.toml.decode(path.read_bytes(), type=Configuration))
    except OSError as error:
        raise ConfigurationError(f"cannot read {path}: {error.strerror}", f"ls -l {path}") from error
    except (msgspec.DecodeError, ValueError) as error:
        raise ConfigurationError(
            f"{path} does not describe guests: {error}", "see the example in README.md"
        ) from error
