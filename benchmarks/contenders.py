"""The two backends that are compared, each with the same guest: testpmd with DPDK's virtio-user driver.

Frames circulate: the guest sends on what it receives, and so does the backend. Both backends and both
guests are up all the time, but only one pair is at work; a stopped one sleeps.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from backend.process import Backend
from peers.testpmd import Testpmd

MEMORY_MIB = 64  # of each testpmd; its mbufs take 10 MiB
BURST = 32

_libc = ctypes.CDLL(None)


@dataclass(frozen=True)
class Setup:
    """What is the same for both.

    Attributes:
        mergeable: whether VIRTIO_NET_F_MRG_RXBUF is negotiated.
        backend_cpu: where the backend polls.
        guest_cpu: where the guest polls.
        hugepages: whether DPDK uses them, for guest memory too.
        circulating: frames on their way, in bursts of 32. Fewer than a ring's entries: the guest's driver
            drops what finds its transmit ring full.
        queue_size: entries of a ring.
        mbufs: packet buffers of each testpmd.
    """

    mergeable: bool
    backend_cpu: int
    guest_cpu: int
    hugepages: bool
    circulating: int
    queue_size: int = 256
    mbufs: int = 4096


@dataclass(frozen=True)
class Sample:
    """Counters at a moment, all growing.

    Attributes:
        seconds: when.
        frames: that the guest has received.
        guest_cycles: that the guest spent on them; polling in vain is not counted.
        backend_cycles: the same of the backend; None if it does not count them.
        guest_cpu_seconds: CPU time of the guest's process.
        backend_cpu_seconds: CPU time of the backend's process.
    """

    seconds: float
    frames: int
    guest_cycles: int
    backend_cycles: int | None
    guest_cpu_seconds: float
    backend_cpu_seconds: float


class Contender:
    """A backend and its guest.

    Args:
        name: the backend's.
        backend: its testpmd; None if it is another program, that sends back all by itself.
        backend_pid: its process.
        guest: the testpmd with the driver.
        setup: how they were started.

    Attributes:
        tsc_mhz: what a cycle is; known after the first `sample`.
        dpdk_version: of the guest.
    """

    def __init__(
        self, name: str, backend: Testpmd | None, backend_pid: int, guest: Testpmd, setup: Setup
    ) -> None:
        self.name, self._backend, self._guest = name, backend, guest
        self._bursts = setup.circulating // BURST
        self._backend_clock, self._guest_clock = _cpu_clock(backend_pid), _cpu_clock(guest.pid)
        self.tsc_mhz = 0
        found = re.search(r"RTE Version: 'DPDK ([^']*)'", guest.output)
        self.dpdk_version = found[1] if found else "unknown"

    def start(self, size: int) -> None:
        """Let frames of this size circulate."""
        if self._backend is not None:
            self._backend.forward("io")
        self._guest.command(f"set txpkts {size}")
        self._guest.forward("io", first=self._bursts)

    def stop(self) -> int:
        """Stop; return how many frames did circulate. The next `start` throws them away."""
        said = self._guest.command("stop")
        if self._backend is not None:
            self._backend.command("stop")
        received, sent = (int(n) for n in re.findall(r"[RT]X-packets: (\d+)", said)[:2])
        return sent - received

    def sample(self) -> Sample:
        """Read the counters."""
        frames, guest_cycles = self._forwarded(self._guest)
        return Sample(
            seconds=time.monotonic(),
            frames=frames,
            guest_cycles=guest_cycles,
            backend_cycles=self._forwarded(self._backend)[1] if self._backend is not None else None,
            guest_cpu_seconds=time.clock_gettime(self._guest_clock),
            backend_cpu_seconds=time.clock_gettime(self._backend_clock),
        )

    def _forwarded(self, pmd: Testpmd) -> tuple[int, int]:
        """Frames that testpmd has forwarded, and the cycles that this took."""
        said = pmd.command("show fwd stats all")
        found = re.search(r"total cycles=(\d+) / total io packets=(\d+)\) at (\d+) MHz", said)
        if found is None:
            raise SystemExit(f"no frames circulate with {self.name}; testpmd says:\n{said}")
        self.tsc_mhz = int(found[3])
        return int(found[2]), int(found[1])


def _cpu_clock(pid: int) -> int:
    """The clock of a process's CPU time (clock_getcpuclockid(3)): exact, where /proc counts ticks."""
    clock = ctypes.c_int()
    if number := _libc.clock_getcpuclockid(pid, ctypes.byref(clock)):
        raise OSError(number, os.strerror(number))
    return clock.value


def _testpmd(vdev: str, cpu: int, setup: Setup) -> Testpmd:
    return Testpmd(
        vdev,
        arguments=[
            *(f"--rxd={setup.queue_size}", f"--txd={setup.queue_size}"),
            *(f"--total-num-mbufs={setup.mbufs}", "--record-core-cycles"),
        ],
        eal=["-v"],
        hugepages=setup.hugepages,
        memory_mib=MEMORY_MIB,
        cores=[cpu],
    )


def _guest(path: Path, setup: Setup) -> Testpmd:
    vdev = (
        f"net_virtio_user0,path={path},mac=52:54:00:00:00:01,queues=1,queue_size={setup.queue_size},"
        f"mrg_rxbuf={setup.mergeable:d},in_order=0,packed_vq=0"
    )
    return _testpmd(vdev, setup.guest_cpu, setup)


@contextlib.contextmanager
def guestwire(folder: Path, setup: Setup) -> Iterator[Contender]:
    """``guestwire run --port echo``, with its worker on the backend's CPU."""
    with (
        Backend(folder, "echo", ["--cpus", str(setup.backend_cpu)]) as backend,
        _guest(backend.socket, setup) as guest,
    ):
        guest.wait_for_link()
        yield Contender("guestwire", None, backend.pid, guest, setup)


@contextlib.contextmanager
def dpdk(folder: Path, setup: Setup) -> Iterator[Contender]:
    """testpmd with net_vhost, forwarding as ``io`` on the backend's CPU."""
    path = folder / "dpdk.sock"
    with (
        _testpmd(f"net_vhost0,iface={path},queues=1", setup.backend_cpu, setup) as backend,
        _guest(path, setup) as guest,
    ):
        guest.wait_for_link()
        yield Contender("dpdk", backend, backend.pid, guest, setup)
