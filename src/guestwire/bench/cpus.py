"""Which CPUs the two sides get, what they made of them, and how the two lie to each other."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from guestwire.bench.results import Placement
from guestwire.errors import ConfigurationError
from guestwire.testing.placement import cache_line_round_trip_ns, slowdown

TOPOLOGY = Path("/sys/devices/system/cpu")
TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Cpus:
    """The CPUs of the two sides, as many for one as for the other."""

    backend: tuple[int, ...]
    driver: tuple[int, ...]

    @property
    def are_shared(self) -> bool:
        """Whether both sides run on the same."""
        return bool(set(self.backend) & set(self.driver))


def core_of(cpu: int) -> str:
    """Return what names the core that a CPU is a thread of."""
    try:
        return (TOPOLOGY / f"cpu{cpu}" / "topology" / "thread_siblings_list").read_text().strip()
    except OSError:
        return str(cpu)


def choose(most: int, wanted: Sequence[int] | None = None) -> Cpus:
    """Choose CPUs for up to ``most`` workers and as many driver threads.

    Threads of one core come last: what shares a core slows the other down.

    Args:
        most: how many each side can use.
        wanted: the CPUs to use instead, first the backend's, then the driver's.

    Raises:
        ConfigurationError: a wanted one is not ours, or they cannot be shared out.
    """
    allowed = sorted(os.sched_getaffinity(0))
    if wanted is not None:
        foreign = sorted(set(wanted) - set(allowed))
        if foreign or not wanted or len(wanted) % 2:
            reason = f"CPU {foreign[0]} is not among ours" if foreign else "as many for each side are needed"
            shown = ",".join(map(str, wanted))
            raise ConfigurationError(
                f"--cpus {shown}: {reason}", f"choose from {_ranges(allowed)}, such as 0,1"
            )
        half = len(wanted) // 2
        return Cpus(tuple(wanted[:half]), tuple(wanted[half:]))
    if len(allowed) == 1:
        return Cpus((allowed[0],), (allowed[0],))
    firsts: list[int] = []
    seconds: list[int] = []
    cores: set[str] = set()
    for cpu in allowed:
        (seconds if core_of(cpu) in cores else firsts).append(cpu)
        cores.add(core_of(cpu))
    ordered = firsts + seconds
    each = max(1, min(most, len(ordered) // 2))
    return Cpus(tuple(ordered[:each]), tuple(ordered[each : 2 * each]))


def _ranges(cpus: Sequence[int]) -> str:
    return ",".join(map(str, cpus)) if len(cpus) <= 8 else f"{cpus[0]} to {cpus[-1]}"


def round_trip(cpus: Cpus) -> float | None:
    """Return a cache line's round trip between the two sides in ns; None if both have the same CPU."""
    return None if cpus.are_shared else cache_line_round_trip_ns(cpus.backend[0], cpus.driver[0])


def placement(cpus: Cpus, round_trips: Sequence[float | None]) -> Placement:
    """Describe where the two sides ran; ``round_trips`` are those taken on the way."""
    backend, driver = cpus.backend[0], cpus.driver[0]
    return Placement(
        backend_cpus=list(cpus.backend),
        driver_cpus=list(cpus.driver),
        same_core=core_of(backend) == core_of(driver),
        round_trip_ns=[round(ns, 1) for ns in round_trips if ns is not None],
        slowdown=None if cpus.are_shared else round(slowdown(backend, driver), 2),
    )


def machine() -> dict[str, str]:
    """Describe the machine in words."""
    text = Path("/proc/cpuinfo").read_text()
    model = re.search(r"^model name\s*: (.*)$", text, re.MULTILINE)
    guest = re.search(r"^flags\s*:.*\bhypervisor\b", text, re.MULTILINE)
    try:
        distribution = platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        distribution = platform.system()
    return {
        "cpu": model[1] if model else platform.machine(),
        "cpus": str(os.cpu_count()),
        "kind": "virtual machine" if guest else "machine",
        "kernel": f"Linux {platform.release()}",
        "distribution": distribution,
    }


@dataclass(frozen=True)
class CpuTime:
    """What the scheduler gave to some threads so far, in seconds.

    Attributes:
        run: on a CPU.
        queued: ready to run, but not run.
        system: on a CPU in the kernel, of their whole process; in steps of a tick.
        user: the same outside of it.
    """

    run: float = 0.0
    queued: float = 0.0
    system: float = 0.0
    user: float = 0.0

    def __sub__(self, before: CpuTime) -> CpuTime:
        return CpuTime(
            self.run - before.run,
            self.queued - before.queued,
            self.system - before.system,
            self.user - before.user,
        )

    @classmethod
    def of_process(cls, pid: int) -> Self:
        """Look at all threads of a process."""
        tasks = Path(f"/proc/{pid}/task")
        times = [_schedstat(task) for task in tasks.iterdir()]
        stat = (tasks.parent / "stat").read_text()
        user, system = map(int, stat[stat.rindex(")") + 2 :].split()[11:13])
        return cls(sum(t[0] for t in times), sum(t[1] for t in times), system / TICKS, user / TICKS)

    @classmethod
    def of_this_thread(cls) -> Self:
        """Look at the thread that asks."""
        return cls(*_schedstat(Path("/proc/thread-self")))


def _schedstat(task: Path) -> tuple[float, float]:
    """Return a thread's time on a CPU and in a CPU's queue, in seconds (proc(5))."""
    try:
        run, queued, _ = map(int, (task / "schedstat").read_text().split())
    except (FileNotFoundError, ProcessLookupError):
        return 0.0, 0.0  # it has just ended
    return run / 1e9, queued / 1e9
