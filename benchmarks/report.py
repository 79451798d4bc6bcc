"""The results as a report: a picture, and a Markdown page with it and all tables."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from case import Case
from placement import Placement
from results import PLACEMENTS, Results, Row
from tables import compared, sheets

from guestwire.bench.charts import Chart, Point, draw

TITLE = "guestwire beside DPDK"
NAME = "dpdk"
NOTES = (
    "Both CPUs were on one physical core, or, if it says far, on two. Shown is where most windows were.",
    "Cycles are the backend's CPU time for a frame, polling in vain included.",
    "Frames from a NIC come as fast as the guest's CPU can make them, too: no ratio of backends.",
)


def write(results: Results, folder: Path) -> Path:
    """Write the report into a folder, and return the page."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{NAME}.svg").write_text(picture(results), encoding="utf-8")
    page = folder / f"{NAME}.md"
    page.write_text(markdown(results), encoding="utf-8")
    return page


def markdown(results: Results) -> str:
    """Return the page."""
    parts = [f"# {TITLE}", "  \n".join(subtitle(results)), f"![{TITLE}]({NAME}.svg)"]
    parts += [note for note in (results.about.get("note"), " ".join(NOTES)) if note]
    parts += [f"## {sheet.title}\n\n{sheet.markdown()}" for sheet in sheets(results)]
    parts.append("[How it is measured](../../benchmarks/README.md#dpdk-guestwire-beside-dpdk).")
    return "\n\n".join(parts) + "\n"


def subtitle(results: Results) -> list[str]:
    """Return what has to be known of any figure: when, what, where and how."""
    about = results.about
    machine, versions, method = about["machine"], about["versions"], about["method"]
    huge = "" if machine.get("hugepages") else ", no hugepages"
    build = f"guestwire {versions['guestwire']} ({versions['commit']})"
    places = f"backend on CPU {method['backend_cpu']}, guest on CPU {method['guest_cpu']}"
    return [
        f"{about['date']} · {build} · driver: virtio-user of {versions['driver']}{huge}",
        f"{machine['cpu']}, {machine['cpus']} CPUs · Linux {machine['kernel']} · {machine['distribution']}",
        f"{places} · medians of windows of {method['seconds']:g} s, whiskers from smallest to largest",
    ]


def picture(results: Results) -> str:
    """Return the picture, an SVG document: what has windows to compare."""
    charts: dict[tuple[str, ...], list[Row]] = {}
    for row in results.rows:
        if best_placement(row):
            charts.setdefault(_chart_of(row.case), []).append(row)
    # Two charts fill a line; what has one only shares it.
    lines, single = [], []
    for made in (_charts(rows) for rows in charts.values()):
        if len(made) == 1 and len(made[0].categories) == 1:
            single += made
        else:
            lines.append(made)
    return draw(TITLE, subtitle(results), [*lines, *([single] if single else [])], NOTES)


def best_placement(row: Row) -> Placement | None:
    """Return the placement with the most rounds to compare; None if there are no windows to compare."""
    found = {placement for placement, _ in compared(row)}
    return max(found, key=lambda p: (row.pairs(p), -PLACEMENTS.index(p)), default=None)


def _chart_of(case: Case) -> tuple[str, ...]:
    """Return what is equal for cases in one chart."""
    if case.scenario in {"latency", "wire"}:
        return case.scenario, case.work
    if case.scenario == "scaling":
        return case.scenario, case.ring
    return case.scenario, str(case.mergeable)


def _charts(rows: Sequence[Row]) -> list[Chart]:
    case = rows[0].case
    if case.work == "round trip":
        return [
            _chart(rows, f"{case.work}, {percentile}", "µs", figure, 1e-3)
            for percentile, figure in (("median", "round_trip_p50_ns"), ("99 %", "round_trip_p99_ns"))
        ]
    if case.work == "idle":
        figure = "backend_cpu_seconds_per_second"
        return [_chart(rows, "CPU time with nothing to do", "ms a second", figure, 1e3)]
    if case.work == "large frames":
        return [_chart(rows, "64 KiB frames from guest to guest", "GB/s", "bytes_per_second", 1e-9)]
    if case.scenario == "scaling":
        return [_chart(rows, f"scaling: backend, {case.ring} rings", "cycles a frame", "backend_cycles", 1.0)]
    title = case.scenario if case.mergeable else f"{case.scenario}, not mergeable"
    return [
        _chart(rows, f"{title}: frames", "million a second", "frames_per_second", 1e-6),
        _chart(rows, f"{title}: backend", "cycles a frame", "backend_cycles", 1.0),
    ]


def _chart(rows: Sequence[Row], title: str, unit: str, figure: str, scale: float) -> Chart:
    series: dict[str, list[Point | None]] = {}
    names = list(dict.fromkeys(name for row in rows for name in row.contenders))
    for name in names:
        series[name] = [_point(row, name, figure, scale) for row in rows]
    return Chart(title, unit, _axis(rows[0].case), [_category(row) for row in rows], dict(series))


def _point(row: Row, contender: str, figure: str, scale: float) -> Point | None:
    placement = best_placement(row)
    if placement is None or not (values := row.values(placement, contender, figure)):
        return None
    median = row.median(placement, contender, figure)
    assert median is not None
    return Point(median * scale, min(values) * scale, max(values) * scale)


def _axis(case: Case) -> str:
    return "what is larger" if case.scenario == "scaling" else "ring and bytes of a frame"


def _category(row: Row) -> str:
    """Name a case in its chart, in few letters."""
    case = row.case
    names: dict[str, Callable[[], str]] = {
        "veth": lambda: f"{'to' if case.work == 'guest to NIC' else 'from'} NIC {case.size}",
        "scaling": lambda: _grown(case),
    }
    name = names.get(case.scenario, lambda: f"{case.ring} {case.size}")()
    return f"{name}, far" if best_placement(row) == "far" else name


def _grown(case: Case) -> str:
    if case.queue_pairs > 1:
        return f"{case.queue_pairs} pairs"
    if case.guests > 1:
        return f"{case.guests} guests"
    return f"ring {case.queue_size}"
