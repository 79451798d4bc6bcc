"""The results as tables: one for each kind of figure."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from case import Case
from placement import Placement
from results import PLACEMENTS, Results, Row
from sheet import Sheet, spread, with_spread


@dataclass(frozen=True)
class Column:
    """How a figure is written, of both and as a ratio.

    Attributes:
        figure: its name.
        unit: of what is written.
        decimals: as many.
        scale: what the figure is multiplied by.
        brief: whether the medians are enough.
    """

    figure: str
    unit: str
    decimals: int
    scale: float = 1.0
    brief: bool = False


COSTS = (
    Column("backend_cycles", "cycles", 0, brief=True),
    Column("backend_busy_cycles", "busy cycles", 0, brief=True),
)
RATES = (
    Column("frames_per_second", "Mpps", 2, 1e-6),
    *COSTS,
    Column("guest_cycles", "guest's cycles", 0, brief=True),
)
TRIPS = (
    Column("round_trip_p50_ns", "p50 µs", 2, 1e-3),
    Column("round_trip_p99_ns", "p99 µs", 2, 1e-3),
)
LARGE = (Column("bytes_per_second", "GB/s", 2, 1e-9),)
IDLE = (Column("backend_cpu_seconds_per_second", "CPU ms/s", 2, 1e3),)

HEAD = ("scenario", "rings", "bytes", "placement", "beside")
MAIN = COSTS[0].figure


def sheets(results: Results) -> list[Sheet]:
    """Return all tables that have lines."""
    kinds = (
        ("Frames: median (smallest-largest)", RATES),
        ("Round trips of single frames", TRIPS),
        ("Large frames from guest to guest, and memcpy", LARGE),
        ("With nothing to do", IDLE),
    )
    made = [
        _beside(title, columns, [row for row in results.rows if _kind(row) is columns])
        for title, columns in kinds
    ]
    made += [_growth(results.rows), _kernel(results.rows), _missing(results.rows)]
    return [sheet for sheet in made if sheet.lines]


def _kind(row: Row) -> Sequence[Column]:
    """Return the figures that a row is about."""
    special = {"round trip": TRIPS, "large frames": LARGE, "idle": IDLE}
    return special.get(row.case.work, RATES)


def compared(row: Row) -> Iterator[tuple[Placement, str]]:
    """Yield what a row compares its first contender with, at each placement that has windows of both."""
    for placement in PLACEMENTS:
        at = {w.contender for w in row.windows if w.placement == placement}
        if row.contenders[0] in at:
            for other in row.contenders[1:]:
                if other in at:
                    yield placement, other


def head(case: Case) -> tuple[str, str, str]:
    """Return the cells that say which case it is."""
    return case.scenario, case.described(), str(case.size)


def _beside(title: str, columns: Sequence[Column], rows: Sequence[Row]) -> Sheet:
    """Make a table of the first contender beside the others."""
    named = [
        name for column in columns for name in (f"guestwire {column.unit}", f"its {column.unit}", "ratio")
    ]
    headings = (*HEAD, *named, "windows")
    sheet = Sheet(title, headings, len(HEAD))
    for row in rows:
        for placement, other in compared(row):
            cells = [cell for column in columns for cell in _both(row, placement, other, column)]
            counts = [
                len(row.values(placement, name, columns[0].figure)) for name in (row.contenders[0], other)
            ]
            sheet.lines.append((*head(row.case), placement, other, *cells, "+".join(map(str, counts))))
    return sheet


def _both(row: Row, placement: Placement, other: str, column: Column) -> list[str]:
    """Write a figure of both, and the ratio."""
    cells = [
        with_spread(row.values(placement, name, column.figure), column.decimals, column.scale)
        for name in (row.contenders[0], other)
    ]
    ratio = row.ratio(placement, other, column.figure)
    pairs = spread(row.ratios(placement, other, column.figure), 2)
    cells.append("" if ratio is None else f"{ratio:.2f} {pairs}".strip())
    return [cell.partition(" ")[0] for cell in cells] if column.brief else cells


def _growth(rows: Sequence[Row]) -> Sheet:
    """Make a table of what a frame costs as queue pairs, guests and rings grow."""
    named = [name for figure in COSTS for name in (figure.unit, "growth")]
    headings = ("rings", "bytes", "placement", "contender", *named, "windows")
    sheet = Sheet("Backend's cycles a frame, by the first of these rings", headings, 4)
    rows = [row for row in rows if row.case.scenario == "scaling"]
    for row in rows:
        basis = replace(row.case, queue_pairs=1, guests=1, queue_size=Case.queue_size)
        (first,) = (other for other in rows if other.case == basis)
        for placement in PLACEMENTS:
            for name in row.contenders:
                count = len(row.values(placement, name, MAIN))
                if count:
                    _, what, size = head(row.case)
                    grown = (_grown(row, first, placement, name, each.figure) for each in COSTS)
                    sheet.lines.append((what, size, placement, name, *itertools.chain(*grown), str(count)))
    return sheet


def _grown(row: Row, first: Row, placement: Placement, name: str, figure: str) -> tuple[str, str]:
    """Write a figure, and its ratio to that of the first row."""
    cost, before = (each.median(placement, name, figure) for each in (row, first))
    return "" if cost is None else f"{cost:.0f}", f"{cost / before:.2f}" if cost and before else ""


def _kernel(rows: Sequence[Row]) -> Sheet:
    """Make a table of where CPU time goes with a network interface."""
    headings = (
        *("work", "bytes", "placement", "contender", "backend ns a frame", "of it in the kernel"),
        *("softirqs, its CPU", "softirqs, guest's CPU", "offered Mpps", "windows"),
    )
    sheet = Sheet("CPU time over veth", headings, 4)
    figures = ("backend_system_share", "backend_softirq", "guest_softirq")
    for row in (row for row in rows if row.case.scenario == "veth"):
        for placement in PLACEMENTS:
            for name in row.contenders:
                cost = row.median(placement, name, "backend_ns")
                if cost is None:
                    continue
                shares = [row.median(placement, name, figure) or 0.0 for figure in figures]
                offered = row.median(placement, name, "offered_per_second")
                sheet.lines.append(
                    (
                        *(row.case.work, str(row.case.size), placement, name, f"{cost:.0f}"),
                        *(f"{share:.0%}" for share in shares),
                        "" if offered is None else f"{offered / 1e6:.2f}",
                        str(len(row.values(placement, name, "backend_ns"))),
                    )
                )
    return sheet


def _missing(rows: Sequence[Row]) -> Sheet:
    """Make a table of what has no figures, and why."""
    sheet = Sheet("Not measured", ("scenario", "rings", "bytes", "why"), 4)
    for row in rows:
        if not any(True for _ in compared(row)):
            why = row.skipped or f"no two windows at one placement; {row.disturbed} were disturbed"
            sheet.lines.append((*head(row.case), why))
    return sheet
