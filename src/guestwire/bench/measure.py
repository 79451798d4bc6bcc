"""Measure a plan: the built-in driver in this process, ``guestwire run`` in one of its own."""

from __future__ import annotations

import contextlib
import datetime
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import guestwire
from guestwire.bench import cpus, frames, limits
from guestwire.bench.cpus import Cpus, CpuTime
from guestwire.bench.plan import RING_LAYOUTS, Case, Kind, Plan
from guestwire.bench.results import Report, Result, RoundTrips, Window, percentile
from guestwire.metrics import PairCounters, total
from guestwire.testing import DRIVER_FEATURES, OFFLOAD_FEATURES, FakeGuest, SharedMemory
from guestwire.testing.backend import BackendProcess
from guestwire.testing.load import Load, LoadWindow
from guestwire.testing.placement import On

WARM_UP_SECONDS = 0.05
"""Caches, page tables and the backend's polling settle in less."""


class Observer(Protocol):
    """Who is told what is being done."""

    def step(self, description: str) -> None:
        """Something else is done from now on."""

    def result(self, result: Result) -> None:
        """A case is done."""


class Driver:
    """The driver's threads, each on a CPU of its own, with its share of a guest's queue pairs.

    Args:
        guest: whose queue pairs.
        case: what they do.
        cpus: where both sides run.

    Attributes:
        threads: how many.
    """

    def __init__(self, guest: FakeGuest, case: Case, cpus: Cpus) -> None:
        # Workers get the backend's CPUs in turn, and so do the pairs the driver's.
        self.threads = min(len(cpus.driver), case.queue_pairs)
        self._cpus = cpus.driver[: self.threads]
        streams = [frames.stream(case, pair) for pair in range(case.queue_pairs)]
        self._loads = [
            Load(
                guest.pairs[i :: self.threads],
                streams[i :: self.threads],
                returning=case.kind.returning,
                yielding=cpus.are_shared,
            )
            for i in range(self.threads)
        ]

    def run(self, seconds: float) -> tuple[list[LoadWindow], CpuTime]:
        """Send on all queue pairs for some seconds; return what each thread did, and their CPU time."""
        if self.threads == 1:
            done = [self._run(0, seconds)]  # in the main thread, which signals interrupt
        else:
            with ThreadPoolExecutor(self.threads) as pool:
                done = list(pool.map(lambda i: self._run(i, seconds), range(self.threads)))
        run, queued = (sum(getattr(t, name) for _, t in done) for name in ("run", "queued"))
        return [window for window, _ in done], CpuTime(run, queued)

    def _run(self, thread: int, seconds: float) -> tuple[LoadWindow, CpuTime]:
        with On(self._cpus[thread]):
            before = CpuTime.of_this_thread()
            window = self._loads[thread].run(seconds)
            return window, CpuTime.of_this_thread() - before

    def drain(self) -> None:
        """Wait until nothing is on its way."""
        for cpu, load in zip(self._cpus, self._loads, strict=True):
            with On(cpu):
                load.drain()

    def round_trips(self, what: str, seconds: float) -> RoundTrips | None:
        """Send single frames for some seconds; nothing may be on its way."""
        with On(self._cpus[0]):
            times = sorted(self._loads[0].round_trips(seconds))
        if not times:
            return None
        return RoundTrips(
            what=what, count=len(times), p50=percentile(times, 0.5), p99=percentile(times, 0.99)
        )


def measure(plan: Plan, where: Cpus, observer: Observer, arguments: Sequence[str] = ()) -> Report:
    """Measure all that is planned.

    Args:
        plan: what.
        where: the CPUs of both sides.
        observer: is told what is being done.
        arguments: more arguments for ``guestwire run``.

    Raises:
        GuestwireError: the backend does not run, or does not do what it should.
    """
    start = time.monotonic()
    deadline = None if plan.most_seconds is None else start + plan.most_seconds
    round_trips = [cpus.round_trip(where)]
    results: list[Result] = []
    for kind in plan.kinds:
        observer.step(f"starting guestwire with port {kind.name}")
        with _backend(kind, plan, where, arguments) as backend:
            for case in plan.cases(kind):
                if deadline is not None and time.monotonic() > deadline:
                    break
                observer.step(str(case))
                results.append(measure_case(case, plan, where, backend))
                observer.result(results[-1])
        round_trips.append(cpus.round_trip(where))
    report = Report(
        guestwire=guestwire.__version__,
        date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        machine=cpus.machine(),
        seconds=round(time.monotonic() - start, 1),
        window_seconds=plan.seconds,
        placement=cpus.placement(where, round_trips),
        results=results,
    )
    if len(results) < plan.count:
        report.notes.append(
            f"{plan.count - len(results)} of {plan.count} cases were left out, since {plan.most_seconds:g} s "
            "were over: ask for fewer, or name a --seconds"
        )
    limits.explain(report)
    return report


@contextlib.contextmanager
def _backend(kind: Kind, plan: Plan, where: Cpus, arguments: Sequence[str]) -> Iterator[BackendProcess]:
    pairs, workers = max(plan.queue_pairs), ",".join(map(str, where.backend))
    options = ["--queue-pairs", str(pairs), "--cpus", workers, *arguments]
    with BackendProcess(kind.port, arguments=options) as backend:
        yield backend


def measure_case(case: Case, plan: Plan, where: Cpus, backend: BackendProcess) -> Result:
    """Measure one case with a guest of its own."""
    result = Result(
        port=case.kind.port,
        ring_layout=case.layout,
        frame_bytes=case.frame_bytes,
        ring_size=case.ring_size,
        queue_pairs=case.queue_pairs,
        returning=case.kind.returning,
        backend_cpus=min(len(where.backend), case.queue_pairs),
    )
    receive, transmit = frames.layouts(case)
    with (
        SharedMemory(frames.memory_bytes(case)) as memory,
        FakeGuest(
            backend.socket_path,
            memory=memory,
            queue_pairs=case.queue_pairs,
            queue_size=case.ring_size,
            features=DRIVER_FEATURES | OFFLOAD_FEATURES,
            receive_layout=receive,
            transmit_layout=transmit,
            transmit_buffers=frames.transmit_buffers(case),
            # What arrives at a named port is anybody's: it is counted, not judged.
            strict=case.kind.returning,
            accept_empty=not case.kind.returning,
            **RING_LAYOUTS[case.layout],
        ) as guest,
    ):
        missing = frames.offloads_needed(case) & ~guest.features
        if missing:
            result.skipped = f"the port does not take {', '.join(str(f.name) for f in missing)}"
            return result
        driver = Driver(guest, case, where)
        result.driver_cpus = driver.threads
        driver.run(WARM_UP_SECONDS)
        for _ in range(plan.windows):
            result.windows.append(_window(driver, plan.seconds, case, where, backend))
        driver.drain()
        if case.with_trips:
            result.round_trips = driver.round_trips(case.kind.trips, plan.seconds)
    result.conclude()
    return result


def _window(driver: Driver, seconds: float, case: Case, where: Cpus, backend: BackendProcess) -> Window:
    """Take one window, and look at both sides before and after."""
    counters, times = backend.counters(), CpuTime.of_process(backend.pid)
    loads, own = driver.run(seconds)
    took = CpuTime.of_process(backend.pid) - times
    return window_of(loads, own, took, _Moved(counters, backend.counters(), case.kind), case, where)


class _Moved:
    """What the backend counted in a window."""

    def __init__(self, before: list[PairCounters], after: list[PairCounters], kind: Kind) -> None:
        old, new = (total(pair["tx"] for pair in pairs) for pairs in (before, after))
        gone = {reason: count - old["drops"].get(reason, 0) for reason, count in new["drops"].items()}
        self.drops = {why: count for why, count in gone.items() if count and why not in kind.expected_drops}
        self.frames = new["frames"] - old["frames"] + sum(self.drops.values())
        self.taken = 1 - sum(self.drops.values()) / max(1, self.frames)
        self.passes, self.sleeps = (
            sum(pair["worker"][name] for pair in after) - sum(pair["worker"][name] for pair in before)
            for name in ("bursts", "sleeps")
        )


def window_of(
    loads: Sequence[LoadWindow], driver: CpuTime, backend: CpuTime, moved: _Moved, case: Case, where: Cpus
) -> Window:
    """Put together what both sides saw of a window."""
    seconds = sum(load.seconds for load in loads) / len(loads)
    own = seconds * len(loads)
    theirs = seconds * min(len(where.backend), case.queue_pairs)
    ran = backend.run or backend.user + backend.system
    return Window(
        seconds=seconds,
        # A share, since both sides count at moments of their own.
        sent=round(sum(load.sent for load in loads) * moved.taken),
        received=sum(load.received for load in loads),
        received_bytes=sum(load.received_bytes for load in loads),
        drops=moved.drops,
        driver_cpu=driver.run / own,
        driver_waited=sum(load.waited for load in loads) / own,
        driver_queued=driver.queued / own,
        backend_cpu=ran / theirs,
        backend_queued=backend.queued / theirs,
        backend_system=backend.system / max(backend.user + backend.system, 1e-9),
        backend_cpu_seconds=ran,
        frames_a_pass=moved.frames / max(1, moved.passes),
        sleeps=moved.sleeps,
    )
