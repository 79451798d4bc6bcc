"""Two guests of one process: one to misbehave, and its neighbour, who must not notice."""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from backend.process import Backend, wait_until
from guestwire.control import GuestState, ask_status
from guestwire.daemon import CHANGES
from guestwire.runtime import CONTROL_SOCKET
from guestwire.testing import FakeGuest, FrameStream

CONFIGURATION = """
[[guest]]
name = "rogue"
socket_path = "{folder}/rogue.sock"
port = "echo"

[[guest]]
name = "neighbour"
socket_path = "{folder}/neighbour.sock"
port = "echo"
"""

SESSION_THREADS = 2  # one a guest
CHANGE_THREADS = CHANGES * SESSION_THREADS
ENOUGH_FRAMES = 200


def status(backend: Backend) -> dict[str, GuestState]:
    """The guests of a process by name, asked without the command line, which takes longer to start."""
    answer = ask_status(backend.log.parent / "run" / str(backend.pid) / CONTROL_SOCKET)
    return {guest.name: guest for guest in answer.guests}


def threads(backend: Backend) -> int:
    """How many threads a process has."""
    return len(list(Path(f"/proc/{backend.pid}/task").iterdir()))


def complaints(log: str) -> list[str]:
    """The lines of a log that are warnings or errors, without date and time."""
    return re.findall(r"^[-\d]+ [:,\d]+ (?:WARNING|ERROR|CRITICAL) (.*)$", log, re.MULTILINE)


class Neighbour:
    """A guest that exchanges frames with its backend all the time."""

    def __init__(self, socket: Path) -> None:
        self._guest = FakeGuest(socket)
        self._stream = FrameStream((60, 1514))
        self._leaving = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._live)

    def _live(self) -> None:
        try:
            # A pause after each burst leaves the machine to the rogue.
            while not self._leaving.wait(0.001):
                self._guest.pair.exchange(self._stream, 20, wait=True)
        except BaseException as error:
            self._error = error

    def check(self) -> None:
        """Make sure that frames come back, all of them, now."""
        enough = self._stream.received + ENOUGH_FRAMES
        wait_until(lambda: self._stream.received >= enough or self._error is not None)
        if self._error is not None:
            raise self._error
        assert self._stream.lost == 0

    def __enter__(self) -> Self:
        self._guest.start()
        self._thread.start()
        return self

    def leave(self) -> None:
        """Exchange no more, and close the connection."""
        self._leaving.set()
        self._thread.join()
        self._guest.close()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.leave()


class House:
    """A process with a rogue's socket, and the neighbour at home."""

    def __init__(self, backend: Backend, neighbour: Neighbour) -> None:
        self.backend, self.neighbour = backend, neighbour
        self.rogue = backend.sockets[0]

    def rogues_gone(self) -> int:
        """How many frontends of the rogue's have gone, and all that was theirs."""
        return self.backend.text().count("guestwire.guest.rogue: the frontend is gone")

    def resources(self) -> dict[str, int]:
        """What the process holds."""
        return {**self.backend.resources(), "threads": threads(self.backend)}

    @contextlib.contextmanager
    def visitor(self) -> Iterator[None]:
        """Wait at the end until a frontend of the rogue's, that came meanwhile, has left no trace."""
        before = self.rogues_gone()
        yield
        wait_until(lambda: self.rogues_gone() == before + 1)

    @contextlib.contextmanager
    def undisturbed(self) -> Iterator[None]:
        """Whatever the rogue does: the process lives, the neighbour notices nothing, nothing is left."""
        before = self.resources()
        yield
        self.neighbour.check()
        assert self.backend.process.poll() is None
        # No more than before, when a thread that gives a signal may not have ended.
        wait_until(lambda: all(now <= before[kind] for kind, now in self.resources().items()))
        assert "Traceback" not in self.backend.text()

    def last_complaints(self, since: int) -> list[str]:
        """What was logged about the rogue after the first `since` characters of the log."""
        return [
            line.removeprefix("guestwire.guest.rogue: ")
            for line in complaints(self.backend.text()[since:])
            if line.startswith("guestwire.guest.rogue: ")
        ]


@contextlib.contextmanager
def house(folder: Path, wrapper: Sequence[str] = ()) -> Iterator[House]:
    """Start the process, let the neighbour move in, and warm up the rogue's side."""
    file = folder / "guests.toml"
    file.write_text(CONFIGURATION.format(folder=folder))
    sockets = [folder / "rogue.sock", folder / "neighbour.sock"]
    with (
        Backend(folder, arguments=[str(file)], sockets=sockets, wrapper=wrapper) as backend,
        Neighbour(sockets[1]) as neighbour,
    ):
        made = House(backend, neighbour)

        def all_threads_are_there() -> bool:
            with made.visitor(), FakeGuest(made.rogue) as guest:
                guest.pair.exchange(FrameStream(), 10)
            # The main thread, those of changes and of sessions, and the neighbour's worker.
            return threads(backend) == 1 + CHANGE_THREADS + SESSION_THREADS + 1

        wait_until(all_threads_are_there)
        yield made
