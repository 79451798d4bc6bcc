"""The control socket: one JSON request a line, one JSON answer a line. The answer's schema is public."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable
from pathlib import Path

import msgspec

from guestwire.errors import GuestwireError, HostError

LONGEST_REQUEST = 65536
TIMEOUT_SECONDS = 5.0


class Direction(msgspec.Struct, kw_only=True):
    """What went one way, seen from the guest: ``rx`` to it, ``tx`` from it.

    Of ``frames``, ``zero_copy_frames`` were touched by no CPU of the host, ``direct_frames`` were copied
    once, by the kernel, straight into or from the guest's buffers; the rest are in ``copied_frames``, by the
    reason why guestwire copied them. ``drops`` are by reason, too, and are not part of ``rx.frames``.
    """

    frames: int
    bytes: int
    zero_copy_frames: int
    direct_frames: int
    copied_frames: dict[str, int]
    copied_bytes: int
    drops: dict[str, int]


class Counters(msgspec.Struct, kw_only=True):
    """All counters of a guest, its queue pairs added up. ``kernel`` is what the kernel counted."""

    rx: Direction
    tx: Direction
    worker: dict[str, int]
    kernel: dict[str, int]


class Ring(msgspec.Struct, kw_only=True):
    """A running ring. ``error`` says why it is stopped."""

    index: int
    direction: str
    size: int
    enabled: bool
    error: str | None


class PortState(msgspec.Struct, kw_only=True):
    """A guest's port; ``mode_reason`` says why the mode is not a better one."""

    kind: str
    interface: str | None
    mode: str | None
    mode_reason: str | None


class Memory(msgspec.Struct, kw_only=True):
    """A guest's memory. ``budget_bytes`` is the limit on pinned memory, None without one."""

    guest_bytes: int
    pinned_bytes: int
    budget_bytes: int | None


class GuestState(msgspec.Struct, kw_only=True):
    """One guest."""

    name: str
    socket_path: str | None
    state: str
    features: list[str]
    rings: list[Ring]
    port: PortState
    memory: Memory
    counters: Counters


class Status(msgspec.Struct, kw_only=True):
    """The answer to ``{"command": "status"}``."""

    pid: int
    version: str
    guests: list[GuestState]


class Request(msgspec.Struct, forbid_unknown_fields=True):
    """A request. ``command`` is ``status``."""

    command: str


class Refusal(msgspec.Struct):
    """The answer to a request that cannot be followed."""

    error: str
    remedy: str | None = None


class ControlServer:
    """Answers requests on the control socket.

    Args:
        path: where to listen.
        status: makes the answer to ``status``.
    """

    def __init__(self, path: Path, status: Callable[[], Status]) -> None:
        self._path, self._status = path, status
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Begin to listen.

        Raises:
            HostError: the path is too long, or may not be created.
        """
        try:
            self._server = await asyncio.start_unix_server(
                self._serve, os.fspath(self._path), limit=LONGEST_REQUEST
            )
            self._path.chmod(0o600)
        except OSError as error:
            raise HostError(
                f"cannot listen on the control socket {self._path}: {error.strerror or error}",
                "choose a shorter place: GUESTWIRE_RUNTIME_DIRECTORY=DIR guestwire ...",
            ) from error

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.closing(writer), contextlib.suppress(ConnectionError, ValueError):
            while line := await reader.readline():
                writer.write(msgspec.json.encode(self._answer(line)) + b"\n")
                await writer.drain()

    def _answer(self, line: bytes) -> Status | Refusal:
        try:
            request = msgspec.json.decode(line, type=Request)
        except msgspec.DecodeError as error:
            return Refusal(f"this is no request: {error}", 'send {"command": "status"}')
        if request.command != "status":
            return Refusal(f"unknown command {request.command!r}", 'send {"command": "status"}')
        try:
            return self._status()
        except GuestwireError as error:
            return Refusal(str(error), error.remedy)

    async def stop(self) -> None:
        """Listen no more."""
        if self._server is not None:
            self._server.close()


def ask_status(path: Path) -> Status:
    """Ask the process behind a control socket for its status.

    Raises:
        HostError: it does not answer, or not in this version's words.
    """
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(TIMEOUT_SECONDS)
            connection.connect(os.fspath(path))
            connection.sendall(b'{"command": "status"}\n')
            with connection.makefile("rb") as answer:
                return msgspec.json.decode(answer.readline(), type=Status)
    except (OSError, msgspec.DecodeError) as error:
        raise HostError(
            f"the process behind {path} does not answer: {error}", f"ps -p {path.parent.name}"
        ) from error
