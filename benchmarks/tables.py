"""The results as tables: one for each kind of figure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from placement import Placement
from results import PLACEMENTS, Results, Row
from sheet import Sheet, spread, with_spread

RATES = (
    *("scenario", "rings", "bytes", "placement", "beside", "guestwire Mpps", "its Mpps", "ratio"),
    *("guestwire cycles", "its cycles", "ratio", "its busy cycles", "windows"),
)


def sheets(results: Results) -> list[Sheet]:
    """Return all tables that have lines."""
    rates = Sheet("frames: median (smallest-largest)", RATES, 5)
    for row in results.rows:
        rates.lines += _rate_lines(row)
    return [sheet for sheet in (rates,) if sheet.lines]


def compared(row: Row) -> Iterator[tuple[Placement, str]]:
    """Yield what a row compares its first contender with, at each placement that has windows of both."""
    for placement in PLACEMENTS:
        at = {w.contender for w in row.windows if w.placement == placement}
        if row.contenders[0] in at:
            for other in row.contenders[1:]:
                if other in at:
                    yield placement, other


def _rate_lines(row: Row) -> Iterator[Sequence[str]]:
    head = (row.case.scenario, row.case.described(), str(row.case.size))
    ours = row.contenders[0]
    empty = True
    for placement, other in compared(row):
        empty = False
        rates = _beside(row, placement, other, "frames_per_second", 2, 1e-6)
        # Of cycles the medians are enough.
        cycles = [cell.partition(" ")[0] for cell in _beside(row, placement, other, "backend_cycles", 0)]
        busy = row.median(placement, other, "backend_busy_cycles")
        counts = [len(row.values(placement, name, "frames_per_second")) for name in (ours, other)]
        yield (
            *(*head, placement, other, *rates, *cycles),
            *("" if busy is None else f"{busy:.0f}", "+".join(map(str, counts))),
        )
    if empty:
        yield (*head, "", row.skipped or "no windows", *[""] * (len(RATES) - len(head) - 2))


def _beside(
    row: Row, placement: Placement, other: str, figure: str, decimals: int, scale: float = 1.0
) -> list[str]:
    """Write a figure of both, and the ratio."""
    ours, theirs = (
        with_spread(row.values(placement, name, figure), decimals, scale)
        for name in (row.contenders[0], other)
    )
    ratio = row.ratio(placement, other, figure)
    pairs = spread(row.ratios(placement, other, figure), 2)
    return [ours, theirs, "" if ratio is None else f"{ratio:.2f} {pairs}".strip()]
