"""The backends that are compared: ``guestwire run``, of one build or another, and testpmd with net_vhost."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import frames
from case import WORKS, Case

from backend.process import Backend as GuestwireProcess
from guestwire.control import ask_status
from guestwire.metrics import PairCounters, read_counters, total
from guestwire.runtime import CONTROL_SOCKET
from peers.testpmd import Testpmd

MEMORY_MIB = 64  # of each testpmd; 4096 mbufs take 10 MiB
MBUFS = 4096
ENTRIES_PER_MBUFS = 1024
MAC = "52:54:00:00:00:0{}"


class NotMeasured(Exception):  # noqa: N818 - it says what has happened
    """A case cannot be measured here, or by one of the programs."""


@dataclass(frozen=True)
class Program:
    """A program that is compared.

    Attributes:
        name: in the results.
        kind: whose command line it has.
        command: the words that start it.
    """

    name: str
    kind: Literal["guestwire", "dpdk", "memcpy"]
    command: tuple[str, ...] = (sys.executable, "-m", "guestwire")


@dataclass(frozen=True)
class Place:
    """Where the sides run.

    Attributes:
        folder: for sockets and logs, of this contender only.
        backend_cpu: where the backend polls.
        guest_cpu: where the guest polls.
        hugepages: whether DPDK uses them, for guest memory too.
        namespace: the network namespace of the backend, by name; ours if None.
        interface: what the port is on, there; empty if it needs none.
    """

    folder: Path
    backend_cpu: int
    guest_cpu: int
    hugepages: bool
    namespace: str | None = None
    interface: str = ""

    def sockets(self, case: Case) -> list[Path]:
        """Where the backend listens for each guest."""
        return [self.folder / f"guest-{number}.sock" for number in range(case.guests)]


@dataclass(frozen=True)
class Forwarded:
    """What testpmd counts of its forwarding since its start.

    Attributes:
        frames: received; sent, if it only sends.
        cycles: that it spent on them; polling in vain is not counted.
        mhz: of these cycles.
    """

    frames: int
    cycles: int
    mhz: int

    @classmethod
    def of(cls, pmd: Testpmd) -> Forwarded:
        """Ask it."""
        said = pmd.command("show fwd stats all")
        found = re.search(r"(?:total|busy) cycles=(\d+) / total \w+ packets=(\d+)\) at (\d+) MHz", said)
        if found is None:
            raise NotMeasured("no frames move")
        return cls(int(found[2]), int(found[1]), int(found[3]))


class Backend(ABC):
    """A backend that serves all guests of a case."""

    pid: int

    @abstractmethod
    def start(self, size: int) -> None:
        """Begin to forward; with frames of this size, if it makes them."""

    @abstractmethod
    def stop(self) -> None:
        """Forward no more."""

    @abstractmethod
    def taken(self) -> int:
        """Frames that it has got from its guests so far."""

    @abstractmethod
    def busy_seconds(self, cpu_seconds: float) -> float | None:
        """CPU time so far, but for polling in vain, by its own count; None if it does not count that."""


class Guestwire(Backend):
    """``guestwire run``: it forwards as long as it has frames, and sleeps when the guests do."""

    def __init__(self, process: GuestwireProcess, guests: int) -> None:
        self._process, self._guests = process, guests
        self._runtime = process.log.parent / "run" / str(process.pid)
        self.pid = process.pid

    def start(self, size: int) -> None:
        pass

    def stop(self) -> None:
        pass

    def taken(self) -> int:
        pairs = self._counted()
        if pairs is None:
            return sum(
                guest.counters.tx.frames for guest in ask_status(self._runtime / CONTROL_SOCKET).guests
            )
        return total(pair["tx"] for pair in pairs)["frames"]

    def busy_seconds(self, cpu_seconds: float) -> float | None:
        # Its idle time is by the clock: that of two workers on one CPU has the other's turns in it, and that
        # of one alone what others had of the CPU.
        pairs = self._counted() if self._guests == 1 else None
        if pairs is None:
            return None
        return max(0.0, cpu_seconds - sum(p["worker"]["idle_ns"] for p in pairs) / 1e9)

    def _counted(self) -> list[PairCounters] | None:
        """Read its counters; None if they are another build's, which may count other things."""
        try:
            return [pair for file in self._runtime.glob("*.counters") for pair in read_counters(file)]
        except ValueError:
            return None


class Dpdk(Backend):
    """testpmd with a net_vhost port for each guest."""

    def __init__(self, pmd: Testpmd, mode: str) -> None:
        self._pmd, self._mode = pmd, mode
        self.pid = pmd.pid

    def start(self, size: int) -> None:
        self._pmd.command(f"set txpkts {size}")
        self._pmd.forward(self._mode)

    def stop(self) -> None:
        self._pmd.command("stop")

    def taken(self) -> int:
        return Forwarded.of(self._pmd).frames

    def busy_seconds(self, cpu_seconds: float) -> float | None:
        forwarded = Forwarded.of(self._pmd)
        return forwarded.cycles / (forwarded.mhz * 1e6)


def testpmd_memory_mib(case: Case) -> int:
    """Return how much memory a testpmd gets."""
    return MEMORY_MIB * -(-case.rings * case.queue_size // ENTRIES_PER_MBUFS)


def _testpmd(
    program: Program,
    vdevs: Sequence[str],
    case: Case,
    place: Place,
    *,
    cpu: int,
    paired: bool,
    namespace: str | None = None,
) -> Testpmd:
    """Return a testpmd that polls on one CPU, with as many queue pairs of each port as the case has."""
    many = -(-case.rings * case.queue_size // ENTRIES_PER_MBUFS)
    return Testpmd(
        *vdevs,
        arguments=[
            *(f"--rxd={case.queue_size}", f"--txd={case.queue_size}"),
            *(f"--rxq={case.queue_pairs}", f"--txq={case.queue_pairs}"),
            *(f"--total-num-mbufs={MBUFS * many}", "--record-core-cycles"),
            f"--port-topology={'paired' if paired else 'loop'}",
        ],
        hugepages=place.hugepages,
        memory_mib=testpmd_memory_mib(case),
        cores=[cpu],
        program=program.command,
        namespace=namespace,
    )


@contextlib.contextmanager
def running(program: Program, case: Case, place: Place) -> Iterator[Backend]:
    """Have a backend serve the case's guests."""
    if program.kind == "guestwire":
        with _guestwire(program, case, place) as process:
            yield Guestwire(process, case.guests)
    else:
        vdevs = [
            f"net_vhost{number},iface={socket},queues={case.queue_pairs}"
            for number, socket in enumerate(place.sockets(case))
        ]
        work = WORKS[case.work]
        if work.interface:
            vdevs.append(f"net_af_xdp0,iface={place.interface},start_queue=0,queue_count=1")
        with _testpmd(
            program,
            vdevs,
            case,
            place,
            cpu=place.backend_cpu,
            paired=work.paired or work.interface,
            namespace=place.namespace,
        ) as pmd:
            yield Dpdk(pmd, work.backend)


@contextlib.contextmanager
def _guestwire(program: Program, case: Case, place: Place) -> Iterator[GuestwireProcess]:
    capture = frames.capture(place.folder, case.size) if case.work == "source" else ""
    port = WORKS[case.work].port.format(interface=place.interface, capture=capture)
    tables = [
        f"[[guest]]\nname = {json.dumps(socket.stem)}\nsocket_path = {json.dumps(str(socket))}\n"
        f"port = {json.dumps(port)}\nqueue_pairs = {case.queue_pairs}\ncpus = [{place.backend_cpu}]\n"
        for socket in place.sockets(case)
    ]
    file = place.folder / "guests.toml"
    file.write_text("\n".join(tables))
    with GuestwireProcess(
        place.folder,
        arguments=[str(file)],
        sockets=place.sockets(case),
        namespace=place.namespace,
        command=program.command,
    ) as process:
        yield process


def guest(program: Program, case: Case, place: Place) -> Testpmd:
    """Return the guests: one testpmd with a virtio-user port for each of them."""
    vdevs = [
        f"net_virtio_user{number},path={socket},mac={MAC.format(number)},queues={case.queue_pairs},"
        f"queue_size={case.queue_size},mrg_rxbuf={case.mergeable:d},in_order=0,"
        f"packed_vq={case.ring == 'packed':d}"
        for number, socket in enumerate(place.sockets(case))
    ]
    return _testpmd(program, vdevs, case, place, cpu=place.guest_cpu, paired=WORKS[case.work].paired)


def dpdk_version(command: Sequence[str]) -> str:
    """Return the version that a testpmd names, such as ``22.11.11``.

    Raises:
        SystemExit: it does not run here.
    """
    asked = [*command, "-v", "--no-huge", "-m", "64", "--no-pci", "--no-telemetry", "--in-memory"]
    done = subprocess.run(
        [*asked, "--", "--help"],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    found = re.search(r"RTE Version: 'DPDK ([^']*)'", done.stdout + done.stderr)
    if found is None:
        raise SystemExit(f"{' '.join(command)} does not run here:\n{done.stdout}{done.stderr}")
    return found[1]
