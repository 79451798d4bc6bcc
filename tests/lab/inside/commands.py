"""`guestwire run` inside the lab's machine: commands that start at once, see ``fork_server``."""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Client, Connection
from pathlib import Path
from typing import Any

from backend.process import Backend, wait_until
from lab.machine import FORK_SERVER


class ForkedCommand:
    """A guestwire command that runs: as much of ``subprocess.Popen`` as tests use.

    Args:
        arguments: after ``guestwire``.
        log: where its output is appended.
        environment: variables set in addition to ours.
    """

    def __init__(self, arguments: Sequence[str], log: Path, environment: Mapping[str, str]) -> None:
        self.args = list(arguments)
        self.pid: int = _ask("start", self.args, str(log), dict(environment))
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Its exit status, or minus the number of the signal that ended it; None while it runs."""
        if self.returncode is None:
            self.returncode = _ask("poll", self.pid)
        return self.returncode

    def wait(self, timeout: float = 60.0) -> int:
        """Wait until it has ended."""
        deadline = time.monotonic() + timeout
        while (status := self.poll()) is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(self.args, timeout)
            time.sleep(0.02)
        return status

    def send_signal(self, number: int) -> None:
        """Send it a signal, unless it has ended."""
        if self.returncode is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        """Ask it to end."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it."""
        self.send_signal(signal.SIGKILL)


class LabBackend(Backend):
    """A `Backend` that is there at once."""

    start_seconds = 60.0

    def _start(self) -> Any:
        return ForkedCommand(["run", *self._arguments], self.log, self._environment)

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        with tempfile.TemporaryDirectory() as folder:
            output = Path(folder) / "output"
            status = ForkedCommand(arguments, output, self._environment).wait()
            text = output.read_text()
        return subprocess.CompletedProcess([*arguments], status, text, text)


def _ask(*request: Any) -> Any:
    server = _server()
    server.send(request)
    return server.recv()


@functools.cache
def _server() -> Connection:
    wait_until(Path(FORK_SERVER).exists, 120)
    return Client(FORK_SERVER)
