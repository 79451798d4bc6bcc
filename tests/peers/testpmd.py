"""DPDK's testpmd, run over a pseudo-terminal: a driver and a backend that we did not write."""

from __future__ import annotations

import contextlib
import itertools
import os
import pty
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest

BINARY = "dpdk-testpmd"
PROMPT = "testpmd> "
HUGE_PAGE_MIB = 2

_serials = itertools.count(1)


def require() -> None:
    """Skip the test, with the reason, on a machine without testpmd."""
    if shutil.which(BINARY) is None:
        pytest.skip(f"{BINARY} is not installed: apt-get install dpdk-dev")


def free_hugepages() -> int:
    """Return how many hugepages of 2 MiB are free."""
    try:
        return int(Path("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages").read_text())
    except FileNotFoundError:
        return 0


def hugepage_folders() -> list[Path]:
    """Return where hugetlbfs is mounted: DPDK takes hugepages from there, as files."""
    mounts = (line.split() for line in Path("/proc/mounts").read_text().splitlines())
    return [Path(mount[1]) for mount in mounts if mount[2] == "hugetlbfs"]


def has_hugepages(mib: int) -> bool:
    """Whether DPDK can have so much memory as hugepages."""
    return bool(hugepage_folders()) and free_hugepages() * HUGE_PAGE_MIB >= mib


class Testpmd:
    """A testpmd process, up while used as a context manager.

    Args:
        vdevs: virtual devices, as for ``--vdev``, for example
            ``net_vhost0,iface=SOCKET,queues=1`` (a backend) or
            ``net_virtio_user0,path=SOCKET,mac=52:54:00:00:00:01`` (a driver).
        arguments: testpmd's own, for example ``--rxd=256``.
        eal: more arguments of the environment abstraction layer.
        hugepages: whether to use them; if there are enough, if None.
        memory_mib: how much memory, of whatever kind.
        cores: processors, one for each forwarding thread; the last one that we may use if None.
        timeout: seconds to wait for whatever testpmd should say.
        program: the words that start it, before its own arguments.
        namespace: the network namespace it runs in, by name; ours if None.

    Attributes:
        output: all that it has said, without carriage returns.
        pid: its process identifier.
        hugepages: whether it uses them.
    """

    __test__ = False

    def __init__(
        self,
        *vdevs: str,
        arguments: Sequence[str] = (),
        eal: Sequence[str] = (),
        hugepages: bool | None = None,
        memory_mib: int = 128,
        cores: Sequence[int] | None = None,
        timeout: float = 30.0,
        program: Sequence[str] = (BINARY,),
        namespace: str | None = None,
    ) -> None:
        self.hugepages = has_hugepages(memory_mib) if hugepages is None else hugepages
        self.prefix = f"guestwire-{os.getpid()}-{next(_serials)}"
        self.timeout = timeout
        self.output = ""
        cores = cores or [max(os.sched_getaffinity(0))]
        # The main thread only reads commands; it shares a processor with the first worker.
        lcores = ",".join([f"0@{cores[0]}", *(f"{i + 1}@{core}" for i, core in enumerate(cores))])
        memory = ["--socket-mem", str(memory_mib), "--single-file-segments"]
        if not self.hugepages:
            memory = ["--no-huge", "-m", str(memory_mib)]
        devices = [argument for vdev in vdevs for argument in ("--vdev", vdev)]
        self._command = [
            *("setpriv", "--pdeathsig", "KILL", "--"),
            *(("ip", "netns", "exec", namespace) if namespace else ()),
            *(*program, "--lcores", lcores, "--no-pci", "--no-telemetry"),
            *("--file-prefix", self.prefix, *memory, *devices, *eal),
            *("--", "-i", f"--nb-cores={len(cores)}", "--total-num-mbufs=16384", *arguments),
        ]
        self._process: subprocess.Popen[bytes]
        self._terminal = -1
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._said = threading.Condition()
        self._ended = False

    @property
    def pid(self) -> int:
        return self._process.pid

    def start(self) -> None:
        """Start the process and wait for its prompt.

        Raises:
            TimeoutError: it did not come up.
        """
        self._terminal, theirs = pty.openpty()
        try:
            self._process = subprocess.Popen(
                self._command, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True
            )
        finally:
            os.close(theirs)
        self._reader.start()
        self.expect(re.escape(PROMPT))

    def _read(self) -> None:
        """Read all that it says, always: it stops dead when its terminal is full."""
        while True:
            try:
                data = os.read(self._terminal, 65536)
            except OSError:  # it has ended
                data = b""
            with self._said:
                self.output += data.decode(errors="replace").replace("\r", "")
                self._ended = not data
                self._said.notify_all()
            if not data:
                return

    def expect(self, pattern: str, start: int = 0, timeout: float | None = None) -> re.Match[str]:
        """Wait until the output, from a position on, has something that matches.

        Raises:
            TimeoutError: it did not say that in time, or it has ended.
        """
        wanted = re.compile(pattern)
        with self._said:
            self._said.wait_for(
                lambda: self._ended or wanted.search(self.output, start),
                self.timeout if timeout is None else timeout,
            )
            if found := wanted.search(self.output, start):
                return found
            end = "has ended" if self._ended else "did not say so in time"
            raise TimeoutError(
                f"expected {pattern!r} of testpmd, which {end}:\n{self.output[start:][-3000:]}"
            )

    def command(self, text: str) -> str:
        """Type a command; return what testpmd says to it."""
        start = len(self.output)
        os.write(self._terminal, text.encode() + b"\n")
        typed = self.expect(re.escape(text) + r"\n?", start)
        prompt = self.expect(re.escape(PROMPT), typed.end())
        return self.output[typed.end() : prompt.start()]

    def stats(self, port: int = 0) -> dict[str, int]:
        """Return a port's counters, by the names that testpmd gives them (``RX-packets``)."""
        text = self.command(f"show port stats {port}")
        return {name: int(value) for name, value in re.findall(r"([RT][Xx]-[\w]+):\s+(\d+)", text)}

    def forward(self, mode: str, *, first: int = 0) -> None:
        """Forward frames in a mode (``io``, ``mac``, ``macswap``, ``rxonly``, ``txonly``, ...).

        Args:
            mode: how.
            first: bursts of 32 frames to send before.
        """
        self.command("stop")
        self.command(f"set fwd {mode}")
        self.command(f"start tx_first {first}" if first else "start")

    def wait_for_link(self, port: int = 0) -> None:
        """Wait until a port's link is up: the other end has come and the rings run."""
        deadline = time.monotonic() + self.timeout
        while "Link status: up" not in self.command(f"show port info {port}"):
            if time.monotonic() > deadline:
                raise TimeoutError(f"testpmd's port {port} has no link")
            time.sleep(0.05)

    def quit(self) -> None:
        """End the process and remove what it leaves behind."""
        if self._process.poll() is None:
            with contextlib.suppress(TimeoutError, OSError, subprocess.TimeoutExpired):
                self.command("stop")
                os.write(self._terminal, b"quit\n")
                self._process.wait(10)
        self.kill()

    def kill(self) -> None:
        """End the process at once, as a crash would, and remove what it leaves behind."""
        self._process.kill()
        self._process.wait()
        self._reader.join()
        os.close(self._terminal)
        for runtime in ("/var/run/dpdk", os.environ.get("XDG_RUNTIME_DIR", "/tmp") + "/dpdk"):
            shutil.rmtree(Path(runtime) / self.prefix, ignore_errors=True)
        for folder in hugepage_folders():
            for file in folder.glob(f"{self.prefix}map_*"):
                file.unlink()

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.kill()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._process.returncode is None:
            self.quit()
