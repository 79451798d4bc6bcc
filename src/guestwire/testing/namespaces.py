"""Network namespaces for tests: made, used from inside, and removed, even after a crash."""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import re
import subprocess
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import pyroute2

from guestwire.errors import HostError
from guestwire.testing.processes import spawn

T = TypeVar("T")

CLONE_NEWNET = 0x40000000  # linux/sched.h
FOLDER = Path("/run/netns")

_serials = itertools.count(1)
_libc = ctypes.CDLL(None, use_errno=True)


class NamedNamespace:
    """A network namespace that has a name which ``ip netns`` understands.

    Args:
        name: the name.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    @property
    def exists(self) -> bool:
        """Whether it is there: made, and not removed yet."""
        return (FOLDER / self.name).exists()

    def netlink(self) -> Any:
        """A pyroute2 ``NetNS`` for this namespace, to be used as a context."""
        return pyroute2.NetNS(self.name, flags=0)

    def call(self, function: Callable[[], T]) -> T:
        """Call a function in a thread that is inside the namespace, and return its result.

        Sockets that it makes belong to the namespace for good, whoever uses them later.  Don't
        start processes in it, they would die with the thread (see ``processes.spawn``).
        """
        return call_inside(self.name, function)

    def spawn(self, command: Sequence[str | Path], log: Path) -> subprocess.Popen[bytes]:
        """Start a process inside; it dies with us (see ``processes.spawn``)."""
        return spawn(command, log, namespace=self.name)

    def run(self, command: Sequence[str | Path], timeout: float = 60.0) -> subprocess.CompletedProcess[str]:
        """Run a command inside to its end; its output, both kinds together, is captured."""
        return subprocess.run(
            ["ip", "netns", "exec", self.name, *map(str, command)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
            check=False,
        )


class Namespace(NamedNamespace):
    """A network namespace of our own.

    The name holds our process id: namespaces of processes that were killed are removed when the
    next one is made.

    Args:
        purpose: a word that becomes the end of the name.

    Raises:
        HostError: we may not make network namespaces.
    """

    def __init__(self, purpose: str) -> None:
        if os.geteuid() != 0:
            raise HostError("making a network namespace needs root", "run it again through sudo")
        remove_stale()
        super().__init__(f"gw{os.getpid()}-{next(_serials)}-{purpose}")
        pyroute2.netns.create(self.name)
        self.call(_disable_ipv6)

    def remove(self) -> None:
        """Remove the namespace: its interfaces go when the last process has left it."""
        with contextlib.suppress(OSError):
            pyroute2.netns.remove(self.name)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.remove()


def call_inside(namespace: str, function: Callable[[], T]) -> T:
    """Call a function as ``Namespace.call`` does, in any namespace that has a name."""
    results: list[T] = []
    errors: list[BaseException] = []

    def inside() -> None:
        try:
            with (FOLDER / namespace).open() as file:
                if _libc.setns(file.fileno(), CLONE_NEWNET) != 0:
                    number = ctypes.get_errno()
                    raise OSError(number, os.strerror(number), file.name)
            results.append(function())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=inside)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]


def remove_stale() -> None:
    """Remove the namespaces of processes that are gone."""
    for path in FOLDER.glob("gw*"):
        owner = re.fullmatch(r"gw(\d+)-.*", path.name)
        if owner and not Path(f"/proc/{owner[1]}").exists():
            with contextlib.suppress(OSError):  # a parallel run was quicker
                pyroute2.netns.remove(path.name)


def _disable_ipv6() -> None:
    # Neighbour discovery and router solicitations would mix with the frames that tests count.
    for scope in ("all", "default"):
        path = Path(f"/proc/sys/net/ipv6/conf/{scope}/disable_ipv6")
        if path.exists():
            path.write_text("1")
