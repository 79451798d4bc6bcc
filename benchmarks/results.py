"""What was measured: kept as JSON, summed up as tables."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from placement import Placement
from rich import box
from rich.table import Table

HEADINGS = (
    *("frames", "buffers", "placement", "guestwire Mpps", "DPDK Mpps", "guestwire / DPDK"),
    *("guestwire cycles", "DPDK cycles", "windows"),
)


@dataclass(frozen=True)
class Window:
    """One measurement of one backend.

    Attributes:
        pair: the number of the pair of windows, one for each backend, that it belongs to.
        backend: "guestwire" or "dpdk".
        placement: of the two CPUs.
        round_trip_ns: a cache line's, before and after.
        circulating: frames.
        frames_per_second: around the loop.
        backend_share: of its CPU that the backend got, and `guest_share` the guest.
        backend_cycles: a frame, see README.md, and `guest_cycles`.
    """

    pair: int
    backend: str
    placement: Placement
    round_trip_ns: tuple[float | None, float | None]
    circulating: int
    frames_per_second: float
    backend_share: float
    guest_share: float
    backend_cycles: float
    guest_cycles: float


@dataclass
class Row:
    """All windows of one configuration.

    Attributes:
        disturbed: windows that were thrown away, since a side did not get its CPU.
    """

    size: int
    mergeable: bool
    windows: list[Window] = field(default_factory=list)
    disturbed: int = 0

    def at(self, placement: Placement, backend: str) -> list[Window]:
        """Return the windows of a backend at a placement."""
        return [w for w in self.windows if (w.placement, w.backend) == (placement, backend)]

    def ratios(self, placement: Placement) -> list[float]:
        """Return guestwire's frames per second by DPDK's, for each pair at one placement."""
        dpdk = {w.pair: w.frames_per_second for w in self.at(placement, "dpdk")}
        ours = self.at(placement, "guestwire")
        return [w.frames_per_second / dpdk[w.pair] for w in ours if w.pair in dpdk]


@dataclass
class Results:
    """A run of the benchmark.

    Attributes:
        about: date, machine, versions and method.
    """

    about: dict[str, Any]
    rows: list[Row] = field(default_factory=list)

    def save(self, path: Path) -> None:
        """Write it as JSON, a window a line."""
        rows = ",\n".join(_one_window_a_line(row) for row in self.rows)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f'{{"about": {json.dumps(self.about, indent=1)},\n"rows": [\n{rows}\n]}}\n')

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `save` has written."""
        data = json.loads(path.read_text())
        rows = [Row(**row | {"windows": [Window(**w) for w in row["windows"]]}) for row in data["rows"]]
        return cls(data["about"], rows)

    def lines(self) -> Iterator[tuple[str, ...]]:
        """Yield the cells of a table: one line a configuration and placement that has windows of both."""
        for row in self.rows:
            placements: tuple[Placement, ...] = ("near", "far")
            found = [_line(row, p) for p in placements if row.at(p, "guestwire") and row.at(p, "dpdk")]
            yield from found or [(*_names(row), "-", *[""] * 6)]

    def table(self) -> Table:
        """Make a table for the terminal, 80 columns wide."""
        table = Table(title="Mpps: median (smallest-largest)", box=box.SIMPLE_HEAD)
        for heading in ("", "guestwire", "DPDK", "ratio", "cycles", "windows"):
            table.add_column(heading, justify="right")
        for size, buffers, placement, ours, theirs, ratio, *cycles, windows in self.lines():
            rates = (cell.replace(" ", "\n") for cell in (ours, theirs, ratio))
            table.add_row(f"{size}, {placement}\n{buffers}", *rates, "\n".join(cycles), windows)
        return table

    def markdown(self) -> str:
        """Make the same for README.md."""
        rule = ["---:"] * len(HEADINGS)
        return "\n".join(f"| {' | '.join(cells)} |" for cells in (HEADINGS, rule, *self.lines()))


def _one_window_a_line(row: Row) -> str:
    windows = ",\n".join(f"  {json.dumps(asdict(window))}" for window in row.windows)
    head = {"size": row.size, "mergeable": row.mergeable, "disturbed": row.disturbed}
    return f'{json.dumps(head)[:-1]}, "windows": [\n{windows}\n]}}'


def _line(row: Row, placement: Placement) -> tuple[str, ...]:
    ours, theirs = row.at(placement, "guestwire"), row.at(placement, "dpdk")
    rates = [[w.frames_per_second / 1e6 for w in windows] for windows in (ours, theirs)]
    ratio = statistics.median(rates[0]) / statistics.median(rates[1])
    return (
        *_names(row),
        placement,
        *(f"{statistics.median(rate):.1f} {_spread(rate, 1)}" for rate in rates),
        f"{ratio:.2f} {_spread(row.ratios(placement), 2)}".strip(),
        *(f"{statistics.median(w.backend_cycles for w in windows):.0f}" for windows in (ours, theirs)),
        f"{len(ours)}+{len(theirs)}",
    )


def _names(row: Row) -> tuple[str, str]:
    return str(row.size), "mergeable" if row.mergeable else "not mergeable"


def _spread(values: Sequence[float], decimals: int) -> str:
    return f"({min(values):.{decimals}f}-{max(values):.{decimals}f})" if values else ""
