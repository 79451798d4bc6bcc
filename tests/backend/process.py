"""A `guestwire run` process of a test's own."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec
import pytest

from guestwire.control import ask_status
from guestwire.runtime import CONTROL_SOCKET
from guestwire.testing import processes
from guestwire.testing.memory import Region

COMMAND = (sys.executable, "-m", "guestwire")


def wait_until(condition: Callable[[], object], seconds: float = 60.0) -> None:
    """Wait for a condition; fail if it does not come in time."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"waited {seconds} s in vain"
        time.sleep(0.002)


@contextlib.contextmanager
def hugepages(count: int) -> Iterator[None]:
    """Have at least so many free hugepages of 2 MiB meanwhile; skip where that cannot be."""
    pool = Path("/sys/kernel/mm/hugepages/hugepages-2048kB")
    if not pool.is_dir():
        pytest.skip("the kernel has no hugepages of 2 MiB")
    total, free = (int((pool / name).read_text()) for name in ("nr_hugepages", "free_hugepages"))
    more = max(0, count - free)
    try:
        if more:
            (pool / "nr_hugepages").write_text(str(total + more))
    except PermissionError:
        pytest.skip(f"fewer than {count} hugepages are free and only root may ask for more")
    try:
        if int((pool / "free_hugepages").read_text()) < count:
            pytest.skip(f"the kernel cannot find {count} hugepages of 2 MiB")
        yield
    finally:
        if more:
            (pool / "nr_hugepages").write_text(str(total))


@contextlib.contextmanager
def another_region(size: int = 2 << 20) -> Iterator[Region]:
    """A region of memory that is in nobody's way, to be added to a guest's and removed again."""
    fd = os.memfd_create("more", os.MFD_CLOEXEC)
    os.ftruncate(fd, size)
    region = Region(1 << 40, size, 1 << 45, fd, 0)
    try:
        yield region
    finally:
        region.close()
        os.close(fd)


class Backend:
    """`guestwire run`, serving from the moment it is entered.

    Args:
        folder: for its sockets, its log and its runtime directory.
        arguments: what comes after ``guestwire run``; ``--socket-path`` is added with `port`.
        port: the port of its one guest; None if the arguments name a file.
        namespace: the network namespace it runs in.
        sockets: what it will listen on, if not the one socket.
        wrapper: a command that runs it, such as one that takes rights from it.
        command: the words that start guestwire, if not this one.
    """

    start_seconds = 60.0

    def __init__(
        self,
        folder: Path,
        port: str | None = None,
        arguments: Sequence[str] = (),
        *,
        namespace: str | None = None,
        sockets: Sequence[Path] | None = None,
        wrapper: Sequence[str] = (),
        command: Sequence[str] = COMMAND,
    ) -> None:
        self.socket = folder / "guest.sock"
        self.log = folder / "backend.log"
        self.sockets = list(sockets) if sockets is not None else [self.socket]
        self._namespace = namespace
        self._wrapper, self._command = wrapper, command
        self._environment = {"GUESTWIRE_RUNTIME_DIRECTORY": str(folder / "run")}
        self._arguments = list(arguments)
        if port is not None:
            self._arguments += ["--socket-path", str(self.socket), "--port", port]
        self.process: subprocess.Popen[bytes]

    def _start(self) -> subprocess.Popen[bytes]:
        return processes.spawn(
            [*self._wrapper, *self._command, "run", *self._arguments],
            self.log,
            namespace=self._namespace,
            environment=self._environment,
        )

    def start(self) -> None:
        """Start it, for the first time or when it was killed, and wait until it serves."""
        before = len(self.text())
        self.process = self._start()
        # Its own log says when it listens: the socket of a killed predecessor may still lie there.
        wait_until(
            lambda: (
                len(re.findall("(listening|connecting) on", self.text()[before:])) >= len(self.sockets)
                or self.process.poll() is not None
            ),
            self.start_seconds,
        )
        assert self.process.poll() is None, self.text()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        status = processes.stop(self.process)
        if error is None:
            assert status in {0, -9}, self.text()
            assert "Traceback" not in self.text()

    @property
    def pid(self) -> int:
        return self.process.pid

    def text(self) -> str:
        """What it has logged so far."""
        with contextlib.suppress(FileNotFoundError):
            return self.log.read_text()
        return ""

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run another guestwire command with the same runtime directory."""
        return subprocess.run(
            [*self._command, *arguments],
            env={**os.environ, **self._environment},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def guests(self) -> dict[str, Any]:
        """The guests of `guestwire status --json`, by name; the command itself takes a second to start."""
        answer = ask_status(self.log.parent / "run" / str(self.pid) / CONTROL_SOCKET)
        return {guest.name: json.loads(msgspec.json.encode(guest)) for guest in answer.guests}

    def guest(self) -> Any:
        """The one guest of `guestwire status --json`."""
        (guest,) = self.guests().values()
        return guest

    def resources_at_rest(self) -> dict[str, int]:
        """The same while it is not just looking at an interface, as it does after every event of one."""
        return min((self.resources() for _ in range(200)), key=lambda held: sorted(held.items()))

    def resources(self) -> dict[str, int]:
        """What must not grow: descriptors and shared mappings.

        Threads are not among it: asyncio's pool grows to its limit in its own time.
        """
        process = Path(f"/proc/{self.pid}")
        return {
            "descriptors": len(list((process / "fd").iterdir())),
            "mappings": (process / "maps").read_text().count("memfd:"),
        }
