"""The control socket: one JSON request a line, one JSON answer a line. The answer's schema is public."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from guestwire.accepting import Acceptor
from guestwire.errors import ConfigurationError, GuestwireError, HostError, shortage_remedy

log = logging.getLogger(__name__)

LONGEST_REQUEST = 65536
BACKLOG = 64  # connections that may wait
TIMEOUT_SECONDS = 5.0
REBIND_TIMEOUT_SECONDS = 60.0  # an interface takes a second or two, and it may have to be gone back


class Direction(msgspec.Struct, kw_only=True):
    """What went one way, seen from the guest: ``rx`` to it, ``tx`` from it.

    Of ``frames``, ``zero_copy_frames`` were touched by no CPU of the host, ``direct_frames`` were copied
    once, by the kernel, straight into or from the guest's buffers; the rest are in ``copied_frames``, by the
    reason why guestwire copied them. ``drops`` are by reason, too, and are not part of ``rx.frames``.

    ``gso_frames`` of them are large ones that stand for several on the wire. ``segments`` is how many
    frames on the wire guestwire made of such frames, or merged into them; ``checksums``, how many checksums
    it computed, completed, or marked as incomplete for the guest.
    """

    frames: int
    bytes: int
    zero_copy_frames: int
    direct_frames: int
    copied_frames: dict[str, int]
    copied_bytes: int
    gso_frames: int
    segments: int
    checksums: int
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
    """A guest's port; ``mode_reason`` says why the mode is not a better one.

    ``description`` is how the port was asked for, at the start or by ``rebind``. ``network`` is the wire that
    a ``wire`` port is on, and ``members`` are the other guests there.
    """

    description: str
    kind: str
    interface: str | None
    mode: str | None
    mode_reason: str | None
    network: str | None = None
    members: list[str] = []


class Memory(msgspec.Struct, kw_only=True):
    """A guest's memory.

    ``pinned_bytes`` is what the kernel keeps pinned for the guest, counted once for each queue pair, which
    registers it for itself. ``budget_bytes`` is the most that it may be: the guest's own limit or the
    process's, whichever is smaller; None without one. ``taken`` is how often pages were found to be taken
    away that were pinned (``port.mode_reason``).
    """

    guest_bytes: int
    pinned_bytes: int
    budget_bytes: int | None
    taken: int = 0


class GuestState(msgspec.Struct, kw_only=True):
    """One guest. ``notices`` say what seems to be wrong with its start, and what to do."""

    name: str
    socket_path: str | None
    state: str
    features: list[str]
    rings: list[Ring]
    port: PortState
    memory: Memory
    counters: Counters
    notices: list[str] = []


class Status(msgspec.Struct, kw_only=True):
    """The answer to ``{"command": "status"}``."""

    pid: int
    version: str
    guests: list[GuestState]


class Rebound(msgspec.Struct, kw_only=True):
    """The answer to ``{"command": "rebind", "guest": NAME, "port": PORT}``, when it is done.

    ``milliseconds`` is for how long the guest's rings had no port.
    """

    guest: str
    old_port: str
    port: str
    milliseconds: float


class StatusRequest(msgspec.Struct, forbid_unknown_fields=True, tag_field="command", tag="status"):
    """Ask for a `Status`."""


class RebindRequest(msgspec.Struct, forbid_unknown_fields=True, tag_field="command", tag="rebind"):
    """Ask for a guest to be bound to another port, named as on the command line."""

    guest: str
    port: str


Answer = TypeVar("Answer", Status, Rebound)


class Refusal(msgspec.Struct):
    """The answer to a request that cannot be followed; ``exit_code`` says whose fault it is."""

    error: str
    remedy: str | None = None
    exit_code: int = ConfigurationError.exit_code


class ControlServer:
    """Answers requests on the control socket.

    Args:
        path: where to listen.
        status: makes the answer to ``status``.
        rebind: binds a guest (by name) to a port (by description); others are answered meanwhile.
    """

    def __init__(
        self,
        path: Path,
        status: Callable[[], Status],
        rebind: Callable[[str, str], Awaitable[Rebound]],
    ) -> None:
        self._path, self._status, self._rebind = path, status, rebind
        self._socket: socket.socket | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Begin to listen.

        Raises:
            HostError: the path is too long, or may not be created.
        """
        try:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self._socket.setblocking(False)
            self._socket.bind(os.fspath(self._path))
            self._path.chmod(0o600)
            self._socket.listen(BACKLOG)
        except OSError as error:
            raise HostError(
                f"cannot listen on the control socket {self._path}: {error.strerror or error}",
                shortage_remedy(error, self._path.parent)
                or "choose a shorter place: GUESTWIRE_RUNTIME_DIRECTORY=DIR guestwire ...",
            ) from error
        self._run(self._accept(self._socket))

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _accept(self, listening: socket.socket) -> None:
        acceptor = Acceptor(listening, "a control socket's")
        while True:
            self._run(self._serve(await acceptor.accept()))

    async def _serve(self, connection: socket.socket) -> None:
        reader, writer = await asyncio.open_unix_connection(sock=connection, limit=LONGEST_REQUEST)
        with contextlib.closing(writer), contextlib.suppress(ConnectionError, ValueError):
            while line := await reader.readline():
                writer.write(msgspec.json.encode(await self._answer(line)) + b"\n")
                await writer.drain()

    async def _answer(self, line: bytes) -> Status | Rebound | Refusal:
        try:
            request = msgspec.json.decode(line, type=StatusRequest | RebindRequest)
        except msgspec.DecodeError as error:
            return Refusal(f"this is no request: {error}", 'send {"command": "status"}')
        try:
            if isinstance(request, RebindRequest):
                return await self._rebind(request.guest, request.port)
            return self._status()
        except GuestwireError as error:
            return Refusal(str(error), error.remedy, error.exit_code)
        except Exception as error:
            log.exception("a request on the control socket failed")
            return Refusal(f"{type(error).__name__}: {error}", "see the log of the process")

    async def stop(self) -> None:
        """Listen no more."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._socket is not None:
            self._socket.close()


def ask_status(path: Path) -> Status:
    """Ask the process behind a control socket for its status.

    Raises:
        GuestwireError: it does not answer, or not in this version's words, or cannot say.
    """
    return _ask(path, StatusRequest(), Status, TIMEOUT_SECONDS)


def ask_rebind(path: Path, guest: str, port: str) -> Rebound:
    """Ask the process behind a control socket to bind a guest to another port.

    Raises:
        GuestwireError: it does not answer, or the guest cannot use that port.
    """
    return _ask(path, RebindRequest(guest, port), Rebound, REBIND_TIMEOUT_SECONDS)


def _ask(path: Path, request: msgspec.Struct, answer: type[Answer], timeout: float) -> Answer:
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(timeout)
            connection.connect(os.fspath(path))
            connection.sendall(msgspec.json.encode(request) + b"\n")
            with connection.makefile("rb") as answers:
                line = answers.readline()
        with contextlib.suppress(msgspec.ValidationError):  # then it is no refusal
            raise _refused(msgspec.json.decode(line, type=Refusal))
        return msgspec.json.decode(line, type=answer)
    except (OSError, msgspec.DecodeError) as error:
        raise HostError(
            f"the process behind {path} does not answer: {error}", f"ps -p {path.parent.name.split('.')[0]}"
        ) from error


def _refused(refusal: Refusal) -> GuestwireError:
    kinds = {kind.exit_code: kind for kind in GuestwireError.__subclasses__()}
    return kinds.get(refusal.exit_code, GuestwireError)(refusal.error, refusal.remedy)
