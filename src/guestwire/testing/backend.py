"""``guestwire run`` as a process of its own, for tests and demonstrations."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from guestwire.errors import GuestwireError
from guestwire.metrics import PairCounters, read_counters
from guestwire.testing.namespaces import Namespace
from guestwire.testing.processes import cpu_seconds, spawn, stop

START_SECONDS = 20.0
LOG_EXCERPT_LINES = 20


class BackendProcessError(GuestwireError):
    """The process did not start, did not answer, or did not end well."""


class BackendProcess:
    """A process that serves one guest; as a context it is up inside, and ends with status 0.

    Args:
        port: where the guest's frames go, as ``guestwire run --port`` takes it.
        namespace: the network namespace it runs in; ours when None.
        arguments: more arguments for ``guestwire run``.

    Attributes:
        socket_path: where it listens for the guest.
    """

    def __init__(
        self, port: str, *, namespace: Namespace | None = None, arguments: Sequence[str] = ()
    ) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="guestwire-backend-")
        folder = Path(self._folder.name)
        self.socket_path = folder / "vhost-user.sock"
        self._log = folder / "log"
        # A runtime directory of its own, so that nobody else's guests are in its status.
        self._environment = {"GUESTWIRE_RUNTIME_DIRECTORY": str(folder / "run")}
        command = [sys.executable, "-m", "guestwire", "run", "--port", port]
        command += ["--socket-path", str(self.socket_path), *arguments]
        self.process: subprocess.Popen[bytes] = spawn(
            command,
            self._log,
            namespace=namespace.name if namespace else None,
            environment=self._environment,
        )

    def wait_ready(self, timeout: float = START_SECONDS) -> None:
        """Wait until it listens.

        Raises:
            BackendProcessError: it ended instead, or takes too long.
        """
        deadline = time.monotonic() + timeout
        while not self.socket_path.exists():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise BackendProcessError(f"guestwire does not listen; {self.last_words()}")
            time.sleep(0.02)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.process.pid

    @property
    def cpu_seconds(self) -> float:
        """CPU time, user and system, that it has used so far."""
        return cpu_seconds(self.pid)

    @property
    def log(self) -> str:
        """All that it has logged so far."""
        return self._log.read_text(errors="replace")

    def status(self) -> dict[str, Any]:
        """Its guest, as ``guestwire status --json`` describes it.

        Raises:
            BackendProcessError: it does not answer.
        """
        command = [sys.executable, "-m", "guestwire", "status", "--json", "--pid", str(self.pid)]
        answer = subprocess.run(
            command, capture_output=True, env={**os.environ, **self._environment}, check=False
        )
        if answer.returncode != 0:
            said = answer.stderr.decode(errors="replace").strip()
            raise BackendProcessError(f"guestwire status failed: {said}; {self.last_words()}")
        (guest,) = json.loads(answer.stdout)["guests"]
        return dict(guest)

    def counters(self) -> list[PairCounters]:
        """What its worker has counted so far, for each queue pair: read from its counter file."""
        (file,) = (Path(self._folder.name) / "run" / str(self.pid)).glob("*.counters")
        return read_counters(file)

    def last_words(self) -> str:
        """Whether it still runs, and the end of its log, for an error message."""
        status = self.process.poll()
        state = "it runs" if status is None else f"it ended with exit status {status}"
        lines = self.log.splitlines()[-LOG_EXCERPT_LINES:]
        return "\n  ".join([f"{state}; its log ends:", *lines])

    def stop(self) -> int:
        """End it as SIGTERM does, and return its exit status."""
        return stop(self.process)

    def kill(self) -> None:
        """End it as ``kill -9`` does."""
        self.process.kill()
        self.process.wait()

    def close(self) -> None:
        """Kill it if it still runs, and remove its files."""
        self.kill()
        self._folder.cleanup()

    def __enter__(self) -> Self:
        try:
            self.wait_ready()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if error is None and (status := self.stop()) != 0:
                raise BackendProcessError(f"guestwire ended with exit status {status}; {self.last_words()}")
            if isinstance(error, GuestwireError) and self.process.poll() is not None:
                raise BackendProcessError(
                    f"{error}\nguestwire is gone: {self.last_words()}", error.remedy
                ) from error
        finally:
            self.close()
