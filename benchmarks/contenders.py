"""Contenders: a backend and a guest that move frames, and what is counted of them in a window of time.

All contenders of a case are up all the time, but only one of them is at work; the others sleep.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import backends
from backends import Backend, Forwarded, Place, Program
from case import BURST, CIRCULATING, WORKS, Case

from guestwire.bench.cpus import CpuTime
from peers.testpmd import Testpmd

_libc = ctypes.CDLL(None)


class Contender(ABC):
    """What takes part in a comparison.

    Args:
        name: in the results.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    @abstractmethod
    def start(self, size: int) -> None:
        """Let frames of this size move."""

    @abstractmethod
    def measure(self, seconds: float) -> dict[str, float]:
        """Look at it for some seconds; return the figures, see `results.FIGURES`."""

    @abstractmethod
    def stop(self) -> dict[str, float]:
        """Let no more frames move; return what is known only then."""


class Process:
    """A process, by the CPU time that it uses."""

    def __init__(self, pid: int) -> None:
        clock = ctypes.c_int()
        # clock_getcpuclockid(3) is exact, where /proc counts ticks.
        if number := _libc.clock_getcpuclockid(pid, ctypes.byref(clock)):
            raise OSError(number, os.strerror(number))
        self._pid, self._clock = pid, clock.value

    def cpu_time(self) -> CpuTime:
        """Return what it has used so far."""
        time_of = CpuTime.of_process(self._pid)
        return CpuTime(time.clock_gettime(self._clock), time_of.queued, time_of.system, time_of.user)


def cpu_share(used: CpuTime, seconds: float) -> float:
    """Return the share that a process got of the CPU time that it could have used.

    One that polls can use all of it. One that sleeps can use what it was ready for.
    """
    return max(used.run / seconds, used.run / max(used.run + used.queued, 1e-9))


@dataclass(frozen=True)
class Sample:
    """Counters at a moment, all growing.

    Attributes:
        seconds: when.
        frames: that the receiving side has got.
        guest_cycles: that the guest's driver spent on its own; polling in vain is not counted.
        backend_busy: seconds of the backend's CPU time, polling in vain left out; None if it does not say.
        guest: CPU time of the guest's process.
        backend: CPU time of the backend's process.
    """

    seconds: float
    frames: int
    guest_cycles: int
    guest_frames: int
    backend_busy: float | None
    guest: CpuTime
    backend: CpuTime


class Forwarding(Contender):
    """A backend with testpmd for a guest.

    Args:
        name: in the results.
        case: what they do.
        backend: the backend.
        guest: testpmd with a virtio-user port for each guest.
        far_end: counts what arrives there, if frames do.
    """

    def __init__(
        self,
        name: str,
        case: Case,
        backend: Backend,
        guest: Testpmd,
        far_end: Callable[[], int] | None = None,
    ) -> None:
        super().__init__(name)
        self._far_end = far_end
        self._work, self._backend, self._guest = WORKS[case.work], backend, guest
        self._processes = Process(guest.pid), Process(backend.pid)
        self._mhz = 0

    def start(self, size: int) -> None:
        sides = [self._start_guest, self._backend.start]
        if self._work.guest != "rxonly":  # who receives is there first
            sides.reverse()
        for side in sides:
            side(size)

    def _start_guest(self, size: int) -> None:
        self._guest.command(f"set txpkts {size}")
        self._guest.forward(self._work.guest, first=CIRCULATING // BURST if self._work.circulates else 0)

    def stop(self) -> dict[str, float]:
        """Stop; return how many frames did circulate. The next `start` throws them away."""
        said = self._guest.command("stop")
        self._backend.stop()
        if not self._work.circulates:
            return {}
        totals = said.rpartition("Accumulated forward statistics")[2]
        received, sent = (int(n) for n in re.findall(r"[RT]X-packets: (\d+)", totals)[:2])
        return {"circulating": sent - received}

    def measure(self, seconds: float) -> dict[str, float]:
        before = self._sample()
        time.sleep(seconds)
        after = self._sample()
        return self._figures(before, after)

    def _sample(self) -> Sample:
        forwarded = Forwarded.of(self._guest)
        self._mhz = forwarded.mhz
        if self._far_end is not None and self._work.received_by == "far end":
            taken = self._far_end()
        else:
            taken = self._backend.taken() if self._work.received_by == "backend" else forwarded.frames
        guest, backend = (process.cpu_time() for process in self._processes)
        return Sample(
            seconds=time.monotonic(),
            frames=taken,
            guest_cycles=forwarded.cycles,
            guest_frames=forwarded.frames,
            backend_busy=self._backend.busy_seconds(backend.run),
            guest=guest,
            backend=backend,
        )

    def _figures(self, before: Sample, after: Sample) -> dict[str, float]:
        seconds = after.seconds - before.seconds
        frames = max(1, after.frames - before.frames)
        backend, guest = after.backend - before.backend, after.guest - before.guest
        figures = {
            "frames_per_second": round(frames / seconds),
            "backend_share": round(cpu_share(backend, seconds), 3),
            "guest_share": round(cpu_share(guest, seconds), 3),
            "backend_system_share": round(backend.system / max(backend.user + backend.system, 1e-9), 3),
            "backend_cycles": round(backend.run * self._mhz * 1e6 / frames, 1),
            "guest_cycles": round(
                (after.guest_cycles - before.guest_cycles) / max(1, after.guest_frames - before.guest_frames),
                1,
            ),
            "backend_ns": round(backend.run * 1e9 / frames, 1),
        }
        if before.backend_busy is not None and after.backend_busy is not None:
            busy = after.backend_busy - before.backend_busy
            figures["backend_busy_cycles"] = round(busy * self._mhz * 1e6 / frames, 1)
        return figures


@contextlib.contextmanager
def forwarding(
    program: Program,
    driver: Program,
    case: Case,
    place: Place,
    far_end: Callable[[], int] | None = None,
) -> Iterator[Forwarding]:
    """Have a backend and its guests up, connected.

    Args:
        program: the backend.
        driver: the testpmd for the guests.
        case: what they do.
        place: where.
        far_end: counts what arrives there, if frames do.
    """
    with (
        backends.running(program, case, place) as backend,
        backends.guest(driver, case, place) as guest,
    ):
        for port in range(case.guests):
            guest.wait_for_link(port)
            if WORKS[case.work].paired:
                guest.command(f"set eth-peer {port} {backends.MAC.format(port ^ 1)}")
        yield Forwarding(program.name, case, backend, guest, far_end)
