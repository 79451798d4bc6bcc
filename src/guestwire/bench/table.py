"""A report as a table for the terminal, and its cells for others."""

from __future__ import annotations

from rich import box
from rich.table import Table

from guestwire.bench.results import Figure, Report, Result

HEADINGS = (
    "port", "ring", "pairs", "bytes", "Mpps", "Gbit/s", "arrived", "p50 µs", "p99 µs", "driver ns",
    "backend ns", "CPU s", "limited by",
)  # fmt: skip
WIDE = {"driver ns", "backend ns"}
"""Columns that a terminal of 80 columns has no room for."""

LEFT = {"port", "limited by"}


def frame_name(frame_bytes: int) -> str:
    """Write the length of a frame."""
    in_kib = frame_bytes > 9999 and frame_bytes % 1024 == 0
    return f"{frame_bytes // 1024} Ki" if in_kib else f"{frame_bytes:,}"


def cells(result: Result) -> dict[str, str]:
    """Return the cells of a result's line, by their headings."""
    layout = "" if result.ring_layout == "split" else f"{result.ring_layout} "
    line = dict.fromkeys(HEADINGS, "") | {
        "port": result.port,
        "ring": f"{layout}{result.ring_size}",
        "pairs": str(result.queue_pairs),
        "bytes": frame_name(result.frame_bytes),
        "limited by": f"not measured: {result.skipped}" if result.skipped else "",
    }
    if result.limit:
        line["limited by"] = result.limit.what
    if result.round_trips:
        line["p50 µs"] = f"{result.round_trips.p50 / 1e3:.2f}"
        line["p99 µs"] = f"{result.round_trips.p99 / 1e3:.2f}"
    if result.windows:
        line["Mpps"] = _with_spread(result.frames_per_second)
        line["Gbit/s"] = _number(result.bits_per_second, 1e-9)
        line["arrived"] = _number(result.arrived_per_second, 1e-6)
        line["driver ns"], line["backend ns"] = _number(result.driver_ns, 1), _number(result.backend_ns, 1)
        line["CPU s"] = f"{result.backend_cpu_seconds:.2f}"
    return line


def _with_spread(value: Figure | None) -> str:
    """Write frames a second in millions, and half of what lies between the smallest and the largest."""
    if value is None:
        return ""
    around = (value.most - value.least) / 2 / value.median if value.median else 0.0
    return f"{_number(value, 1e-6)} ±{around:.0%}"


def _number(value: Figure | None, scale: float) -> str:
    if value is None:
        return ""
    scaled = value.median * scale
    return f"{scaled:,.0f}" if scaled >= 100 else f"{scaled:.1f}" if scaled >= 10 else f"{scaled:.2f}"


def table(report: Report) -> Table:
    """Make the table: medians, and how far the windows lie apart."""
    left_out = set(WIDE)
    if not any(result.arrived_per_second and result.arrived_per_second.most for result in report.results):
        left_out.add("arrived")
    if not any(result.round_trips for result in report.results):
        left_out |= {"p50 µs", "p99 µs"}
    headings = [heading for heading in HEADINGS if heading not in left_out]
    made = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=0)
    for heading in headings:
        last = heading == "limited by"
        made.add_column(heading, justify="left" if heading in LEFT else "right", no_wrap=not last)
    before = None
    for result in report.results:
        if before not in {None, result.port}:
            made.add_section()
        before = result.port
        line = cells(result)
        made.add_row(*(line[heading] for heading in headings))
    return made
