"""What was measured, as it is kept: the JSON's schema is public, and grows only."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import msgspec

SCHEMA = 1


class Window(msgspec.Struct, kw_only=True, frozen=True):
    """A window of time. Shares are of the time that all CPUs of a side had, 0 to 1.

    Attributes:
        seconds: how long it was.
        sent: frames that left the guest and that the port took.
        received: frames that came to the guest; those of an echo were verified.
        received_bytes: of these.
        drops: frames that the port did not take, by reason.
        driver_cpu: share of the time in which the driver ran.
        driver_waited: share of the time in which it ran and had nothing to do.
        driver_queued: share of the time in which the driver was ready to run but its CPU ran others.
        backend_cpu: share of the time in which the backend ran, polling in vain included.
        backend_queued: share of the time in which it was ready to run but its CPU ran others.
        backend_system: share of its CPU time that was spent in the kernel.
        backend_cpu_seconds: its CPU time.
        frames_a_pass: frames that the backend moved in a pass of its loop in which it moved any.
        sleeps: how often the backend went to sleep.
    """

    seconds: float
    sent: int
    received: int
    received_bytes: int
    drops: dict[str, int]
    driver_cpu: float
    driver_waited: float
    driver_queued: float
    backend_cpu: float
    backend_queued: float
    backend_system: float
    backend_cpu_seconds: float
    frames_a_pass: float
    sleeps: int


class RoundTrips(msgspec.Struct, kw_only=True, frozen=True):
    """Times of single frames, one after the other, while both sides poll. In nanoseconds."""

    what: str
    count: int
    p50: float
    p99: float


class Figure(msgspec.Struct, frozen=True):
    """A median and its spread."""

    median: float
    least: float
    most: float


class Limit(msgspec.Struct, frozen=True):
    """What keeps a figure from being higher: in a word, and with the evidence."""

    what: str
    evidence: str


class Result(msgspec.Struct, kw_only=True):
    """All about one case. ``skipped`` says why there are no windows."""

    port: str
    ring_layout: str
    frame_bytes: int
    ring_size: int
    queue_pairs: int
    returning: bool
    driver_cpus: int = 1
    backend_cpus: int = 1
    windows: list[Window] = []
    round_trips: RoundTrips | None = None
    frames_per_second: Figure | None = None
    bits_per_second: Figure | None = None
    arrived_per_second: Figure | None = None
    driver_ns: Figure | None = None
    backend_ns: Figure | None = None
    backend_cpu_seconds: float = 0.0
    limit: Limit | None = None
    skipped: str | None = None

    def conclude(self) -> None:
        """Make the figures of the windows."""
        rates = [self._frames(w) / w.seconds for w in self.windows]
        self.frames_per_second = figure(rates)
        self.bits_per_second = figure([rate * self.frame_bytes * 8 for rate in rates])
        if not self.returning:
            self.arrived_per_second = figure([w.received / w.seconds for w in self.windows])
        moving = [w for w in self.windows if self._frames(w)]
        if moving:
            self.driver_ns = figure([self._driver_ns(w) for w in moving])
            self.backend_ns = figure([w.backend_cpu_seconds * 1e9 / self._frames(w) for w in moving])
        self.backend_cpu_seconds = sum(w.backend_cpu_seconds for w in self.windows)

    def _frames(self, window: Window) -> int:
        """Frames that made the whole journey."""
        return window.received if self.returning else window.sent

    def _driver_ns(self, window: Window) -> float:
        busy = max(0.0, window.driver_cpu - window.driver_waited)
        return busy * window.seconds * self.driver_cpus * 1e9 / self._frames(window)

    def median_of(self, attribute: str) -> float:
        """Return the median of one of the windows' attributes."""
        return float(statistics.median(getattr(window, attribute) for window in self.windows))

    @property
    def drops(self) -> dict[str, int]:
        """Frames that were not taken, by reason, in all windows."""
        total: dict[str, int] = {}
        for window in self.windows:
            for reason, count in window.drops.items():
                total[reason] = total.get(reason, 0) + count
        return total


class Placement(msgspec.Struct, kw_only=True, frozen=True):
    """Where the two sides ran, and how far apart that was, before and after.

    Attributes:
        backend_cpus: the backend's.
        driver_cpus: the driver's.
        same_core: whether Linux says that the first of each are threads of one core.
        round_trip_ns: of a cache line between the first of each, whenever it was looked at.
        slowdown: how many times slower one multiplies while the other does so, too.
    """

    backend_cpus: list[int]
    driver_cpus: list[int]
    same_core: bool
    round_trip_ns: list[float]
    slowdown: float | None


class Report(msgspec.Struct, kw_only=True):
    """A run of the benchmark. ``notes`` are sentences about all of it."""

    schema: int = SCHEMA
    guestwire: str
    date: str
    machine: dict[str, str]
    seconds: float
    window_seconds: float
    placement: Placement
    results: list[Result]
    notes: list[str] = []


def figure(values: Sequence[float]) -> Figure:
    """Return the median of some values, and the smallest and largest."""
    return Figure(statistics.median(values), min(values), max(values))


def percentile(ordered: Sequence[float], share: float) -> float:
    """Return the value below or at which a share of some ordered values lies (nearest rank)."""
    return ordered[min(len(ordered) - 1, max(0, -(-len(ordered) * round(share * 1000) // 1000) - 1))]
