"""What was measured: kept as JSON, summed up as medians and as ratios of medians."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from case import Case
from kept import save
from placement import Placement

PLACEMENTS: tuple[Placement, ...] = ("near", "far")
"""Those whose windows are compared."""

FIGURES = {
    "frames_per_second": "that arrive at the receiving side",
    "backend_cycles": "TSC cycles of the backend's CPU time for each frame, polling in vain included",
    "backend_ns": "the same in nanoseconds",
    "backend_busy_cycles": "cycles by the backend's own count, polling in vain left out",
    "guest_cycles": "of the guest's driver and what it forwards with, by its own count",
    "backend_share": "of the CPU time that the backend could have used",
    "guest_share": "of the CPU time that the guest could have used",
    "backend_system_share": "of the backend's CPU time, in the kernel",
    "backend_softirq": "share of its CPU that went to softirqs, whoever they interrupted; so `guest_softirq`",
    "offered_per_second": "frames that the generator sent",
    "round_trip_p50_ns": "of single frames, as the driver sees it; so `round_trip_p99_ns`, of `trips`",
    "backend_cpu_seconds_per_second": "with nothing to do",
    "bytes_per_second": "that arrive, or are copied",
    "circulating": "frames that were on their way",
}
"""What the numbers of a window are."""


@dataclass(frozen=True)
class Window:
    """One measurement of one contender.

    Attributes:
        round: its number; in each round every contender has its turn.
        contender: by name.
        placement: of the two CPUs.
        round_trip_ns: a cache line's, before and after.
        figures: by the names in `FIGURES`.
    """

    round: int
    contender: str
    placement: Placement
    round_trip_ns: tuple[float | None, float | None]
    figures: dict[str, float]


@dataclass
class Row:
    """All windows of one case.

    Attributes:
        case: what was measured.
        contenders: their names; the first is compared with each of the others.
        windows: those in which all sides got their CPU.
        disturbed: how many were thrown away, since a side did not.
        skipped: why there are none.
    """

    case: Case
    contenders: Sequence[str]
    windows: list[Window] = field(default_factory=list)
    disturbed: int = 0
    skipped: str = ""

    def values(self, placement: Placement, contender: str, figure: str) -> list[float]:
        """Return a figure of all windows of a contender at a placement that have it."""
        return [
            w.figures[figure]
            for w in self.windows
            if (w.placement, w.contender) == (placement, contender) and figure in w.figures
        ]

    def median(self, placement: Placement, contender: str, figure: str) -> float | None:
        """Return the median of these; None if there are none."""
        values = self.values(placement, contender, figure)
        return statistics.median(values) if values else None

    def ratio(self, placement: Placement, other: str, figure: str) -> float | None:
        """Return the first contender's median by that of another; None if one has none."""
        ours, theirs = (self.median(placement, name, figure) for name in (self.contenders[0], other))
        return ours / theirs if ours is not None and theirs else None

    def ratios(self, placement: Placement, other: str, figure: str) -> list[float]:
        """Return the same for each round in which both had a window at that placement."""
        by_round = [
            {
                w.round: w.figures[figure]
                for w in self.windows
                if (w.placement, w.contender) == (placement, name) and figure in w.figures
            }
            for name in (self.contenders[0], other)
        ]
        ours, theirs = by_round
        return [ours[number] / theirs[number] for number in ours if theirs.get(number)]

    def pairs(self, placement: Placement) -> int:
        """Return how many rounds at a placement have a window of every contender."""
        seen: dict[int, set[str]] = {}
        for window in self.windows:
            if window.placement == placement:
                seen.setdefault(window.round, set()).add(window.contender)
        return sum(len(names) == len(self.contenders) for names in seen.values())


@dataclass
class Results:
    """A run of the benchmark.

    Attributes:
        about: date, machine, versions and method.
    """

    about: dict[str, Any]
    rows: list[Row] = field(default_factory=list)

    def complete(self, older: Results) -> None:
        """Take over the rows of an older run of the same build that this one did not measure."""
        measured = {row.case for row in self.rows if row.windows}
        kept = [row for row in older.rows if row.case not in measured]
        self.rows = kept + [row for row in self.rows if row.windows or row.case not in {k.case for k in kept}]

    def save(self, path: Path) -> None:
        """Write it as JSON, a window a line."""
        save(path, self.about, self.rows)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `save` has written."""
        data = json.loads(path.read_text())
        rows = [
            Row(**row | {"case": Case(**row["case"]), "windows": [Window(**w) for w in row["windows"]]})
            for row in data["rows"]
        ]
        return cls(data["about"], rows)
