"""What keeps a figure from being higher, by evidence: each side's CPU time, and what it found to do.

The rules are asked in order, and the first one that holds names the limit:

1. A side that was ready to run, but did not run, lacked its CPU: others had it.
2. A driver that hardly waited is the limit itself.
3. A backend that ran all the time while the driver waited is the limit: its kernel part (the port) or its
   own, unless it found next to nothing in each pass: then both wait for each other, a cache line at a time.
4. A backend that slept meanwhile was not told in time.
"""

from __future__ import annotations

from guestwire.bench.results import Limit, Placement, Report, Result

QUEUED = 0.1
"""A side that waits longer than this for its CPU shares it."""

IDLE = 0.15
"""A driver that waits less than this has hardly anything left to give."""

BUSY = 0.85
"""A backend that runs longer than this runs all the time."""

SYSTEM = 0.5
"""More than this of the backend's CPU time in the kernel: the port's system calls are most of the work."""

FEW_FRAMES = 4.0
"""Frames a pass below which a backend that polls mostly finds nothing new; a full pass has 64."""

SLOWDOWN = 1.5
"""CPUs that slow each other down by more than this share a core."""

LARGER_RING = 1.1
"""A larger ring that gives more than this shows that the smaller one was part of the limit."""


def explain(report: Report) -> None:
    """Give each result its limit, and add notes about what concerns all of them."""
    for result in report.results:
        if result.windows:
            result.limit = limit_of(result, report.placement)
    _compare_rings(report.results)
    report.notes += notes(report.placement)


def limit_of(result: Result, placement: Placement) -> Limit:
    """Find what limits one result."""
    if result.frames_per_second is None or not result.frames_per_second.median:
        reasons = ", ".join(result.drops) or "nothing moved"
        return Limit("port", f"the port took no frame ({reasons})")
    return _lacking_cpu(result, placement) or _driver(result) or _backend(result)


def _lacking_cpu(result: Result, placement: Placement) -> Limit | None:
    """Look for a side that could have run, but did not."""
    ours, theirs = result.median_of("driver_queued"), result.median_of("backend_queued")
    if placement.backend_cpus == placement.driver_cpus:
        return Limit("shared CPU", f"driver and backend have one CPU, {placement.backend_cpus[0]}")
    if result.queue_pairs > result.backend_cpus and theirs > QUEUED >= ours:
        return Limit(
            "backend CPUs",
            f"workers of {result.queue_pairs} queue pairs had {_cpus(result.backend_cpus)} and waited for "
            f"each other, {theirs:.1f} of them at a time",
        )
    if max(ours, theirs) > QUEUED:
        return Limit(
            "shared CPU",
            f"others ran on their CPUs: the driver was kept from its own for {ours:.0%} of the time, "
            f"the backend for {min(theirs, 1.0):.0%}",
        )
    return None


def _driver(result: Result) -> Limit | None:
    """See whether the driver had anything left to give."""
    waited = result.median_of("driver_waited")
    if waited >= IDLE:
        return None
    cost = result.driver_ns.median if result.driver_ns else 0.0
    return Limit(
        "driver",
        f"the driver waited {waited:.0%} of the time and took {cost:.0f} ns a frame; {_found(result)}",
    )


def _backend(result: Result) -> Limit:
    """Tell what the backend, for which the driver waited, did meanwhile."""
    waited, cpu = result.median_of("driver_waited"), result.median_of("backend_cpu")
    if cpu < BUSY:
        sleeps = sum(w.sleeps for w in result.windows) / sum(w.seconds for w in result.windows)
        return Limit(
            "notifications",
            f"the backend ran {cpu:.0%} of the time and slept {sleeps:,.0f} times a second, "
            f"while the driver waited {waited:.0%}",
        )
    busy = f"the backend ran {min(cpu, 1.0):.0%} of the time and the driver waited {waited:.0%}"
    system = result.median_of("backend_system")
    if system > SYSTEM:
        return Limit("port", f"{busy}; {system:.0%} of the backend's time was in the kernel")
    if result.median_of("frames_a_pass") < FEW_FRAMES:
        return Limit("ring", f"{busy}, yet {_found(result)}: each waits for the other's cache lines")
    return Limit("backend", f"{busy}; {_found(result)}")


def _found(result: Result) -> str:
    return f"the backend found {result.median_of('frames_a_pass'):.1f} frames in a pass of up to 64"


def _cpus(count: int) -> str:
    return "one CPU" if count == 1 else f"{count} CPUs"


def _compare_rings(results: list[Result]) -> None:
    """Say of a result that the ring was part of its limit if a larger one gave more, spread apart."""
    for small in results:
        for large in results:
            if large.ring_size <= small.ring_size or _but_ring(large) != _but_ring(small):
                continue
            one, other = small.frames_per_second, large.frames_per_second
            if not (small.limit and one and other and other.least > one.most):
                continue
            gain = other.median / one.median
            if gain > LARGER_RING and small.limit.what in {"backend", "driver", "ring"}:
                more = f"a ring of {large.ring_size} gave {gain:.2f} times as much"
                small.limit = Limit("ring", f"{more}; {small.limit.evidence}")


def _but_ring(result: Result) -> tuple[str, str, int, int]:
    return result.port, result.ring_layout, result.frame_bytes, result.queue_pairs


def summary(report: Report) -> list[str]:
    """Return a sentence for each limit of each port, with the evidence of its first case."""
    said = []
    for port in dict.fromkeys(result.port for result in report.results):
        measured = [result for result in report.results if result.port == port and result.limit]
        for what in dict.fromkeys(result.limit.what for result in measured if result.limit):
            cases = [result for result in measured if result.limit and result.limit.what == what]
            first = cases[0]
            case = f"{first.frame_bytes:,} bytes, ring {first.ring_size}, queue pairs {first.queue_pairs}"
            if first.limit:
                said.append(
                    f"{port}, limited by {what} in {len(cases)} of {len(measured)} cases, such as {case}: "
                    f"{first.limit.evidence}."
                )
    return said


def notes(placement: Placement) -> list[str]:
    """Say what the placement of the two sides means."""
    backend, driver = placement.backend_cpus[0], placement.driver_cpus[0]
    if placement.backend_cpus == placement.driver_cpus:
        return [f"Driver and backend shared CPU {backend}: a machine with two gives other figures."]
    said = []
    if placement.same_core:
        said.append(f"CPUs {backend} and {driver} are threads of one core.")
    if placement.slowdown is not None and placement.slowdown > SLOWDOWN:
        said.append(
            f"CPUs {backend} and {driver} share a core: one multiplies {placement.slowdown:.1f} times slower "
            "while the other does so, too."
        )
    if placement.round_trip_ns:
        least, most = min(placement.round_trip_ns), max(placement.round_trip_ns)
        took = f"{least:.0f} ns" if most - least < 1 else f"{least:.0f} to {most:.0f} ns"
        said.append(f"A cache line took {took} from CPU {backend} to CPU {driver} and back.")
    if not placement.round_trip_ns:
        said.append(f"CPUs {backend} and {driver} were never free together: something else ran on them.")
    return said
