"""A report as a picture: one SVG, or one HTML page with the SVG and the table in it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape
from itertools import groupby
from pathlib import Path

from guestwire.bench import limits
from guestwire.bench.charts import Chart, Point, draw
from guestwire.bench.results import Figure, Report, Result
from guestwire.bench.table import HEADINGS, cells, frame_name
from guestwire.errors import ConfigurationError

PAGE_STYLE = """
:root { color-scheme: light dark; font-family: system-ui, 'Segoe UI', 'DejaVu Sans', sans-serif; }
body { margin: 0 auto; max-width: 1120px; background: #fff; color: #1f2328; }
svg { width: 100%; height: auto; display: block; }
div { overflow-x: auto; padding: 0 36px 36px; }
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums; width: 100%; }
th, td { padding: 5px 10px; text-align: right; border-bottom: 1px solid #e3e6ea; white-space: nowrap; }
th:last-child, td:last-child { text-align: left; white-space: normal; min-width: 20em; }
th { font-weight: 600; }
@media (prefers-color-scheme: dark) {
  body { background: #0d1117; color: #e6edf3; }
  th, td { border-color: #2a313a; }
}
"""


def save(report: Report, path: Path) -> None:
    """Write the picture; the file's suffix says which kind.

    Raises:
        ConfigurationError: it has another suffix, or cannot be written.
    """
    makers: dict[str, Callable[[Report], str]] = {".svg": svg, ".html": html}
    try:
        path.write_text(makers[path.suffix](report), encoding="utf-8")
    except KeyError:
        raise ConfigurationError(
            f"--picture {path}: there are pictures in {' and '.join(makers)}", f"--picture {path.stem}.html"
        ) from None
    except OSError as error:
        raise ConfigurationError(f"cannot write {path}: {error.strerror}", f"ls -ld {path.parent}") from error


def svg(report: Report) -> str:
    """Return the picture as an SVG document."""
    measured = [result for result in report.results if result.windows]
    rows: list[Sequence[Chart]] = []
    for port, results in groupby(measured, lambda result: result.port):
        of_port = list(results)
        rows.append(
            [
                _chart(of_port, f"{port}: frames", "million a second", 1e-6, lambda r: r.frames_per_second),
                _chart(of_port, f"{port}: throughput", "Gbit/s", 1e-9, lambda r: r.bits_per_second),
            ]
        )
    if measured:
        rows.append([*_trips(measured), _costs(measured)])
    return draw("guestwire bench", subtitle(report), rows, [*limits.summary(report), *report.notes])


def html(report: Report) -> str:
    """Return the picture and the table as an HTML page that needs nothing else."""
    head = "".join(f"<th>{escape(heading)}</th>" for heading in HEADINGS)
    lines = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in _cells(result)) + "</tr>"
        for result in report.results
    )
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"/>'
        '<meta name="viewport" content="width=device-width, initial-scale=1"/>'
        f"<title>guestwire bench</title><style>{PAGE_STYLE}</style></head><body>{svg(report)}"
        f"<div><table><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table></div></body></html>\n"
    )


def _cells(result: Result) -> list[str]:
    """Return the cells of a line with all that there is room for: the spread, and the evidence."""
    line = cells(result)
    if rate := result.frames_per_second:
        line["Mpps"] = f"{rate.median / 1e6:.2f} ({rate.least / 1e6:.2f} to {rate.most / 1e6:.2f})"
    if result.limit:
        line["limited by"] += f": {result.limit.evidence}"
    return list(line.values())


def subtitle(report: Report) -> list[str]:
    """Return what has to be known of any figure: when, what, where and how."""
    about, placement = report.machine, report.placement
    backend, driver = (
        f"CPU{'s' if len(cpus) > 1 else ''} {', '.join(map(str, cpus))}"
        for cpus in (placement.backend_cpus, placement.driver_cpus)
    )
    machine = f"{about['cpu']}, {about['cpus']} CPUs ({about['kind']})"
    method = f"medians of windows of {report.window_seconds:g} s, whiskers from the smallest to the largest"
    return [
        f"{report.date[:10]} · guestwire {report.guestwire} · {machine} · {about['kernel']} · "
        + about["distribution"],
        f"backend on {backend}, built-in driver on {driver} · {method}",
    ]


def _chart(
    results: Sequence[Result], title: str, unit: str, scale: float, value: Callable[[Result], Figure | None]
) -> Chart:
    """Make a chart of one figure: frame lengths along its axis, rings and queue pairs beside each other."""
    sizes = list(dict.fromkeys(result.frame_bytes for result in results))
    series: dict[str, list[Point | None]] = {}
    for result in results:
        points = series.setdefault(_series(result, results), [None] * len(sizes))
        figure = value(result)
        if figure is not None:
            points[sizes.index(result.frame_bytes)] = Point(
                figure.median * scale, figure.least * scale, figure.most * scale
            )
    return Chart(title, unit, "bytes of a frame", [frame_name(size) for size in sizes], dict(series))


def _series(result: Result, among: Sequence[Result]) -> str:
    """Name what tells a result from others of its frame length."""
    pairs = f"{result.queue_pairs} pair{'s' if result.queue_pairs > 1 else ''}"
    layout = f"{result.ring_layout} " if len({r.ring_layout for r in among}) > 1 else ""
    return f"{layout}ring {result.ring_size}, {pairs}"


def _trips(results: Sequence[Result]) -> list[Chart]:
    """Make a chart of round trips, if there are any: the dot is the median, the line ends at p99."""
    with_trips = [result for result in results if result.round_trips]
    sizes = list(dict.fromkeys(result.frame_bytes for result in with_trips))
    series: dict[str, list[Point | None]] = {}
    for result in with_trips:
        trips = result.round_trips
        if trips is not None:
            points = series.setdefault(f"{result.port}: {trips.what}", [None] * len(sizes))
            p50, p99 = trips.p50 / 1e3, trips.p99 / 1e3
            points[sizes.index(result.frame_bytes)] = Point(p50, p50, p99)
    if not series:
        return []
    title = "Round trip of a single frame: median to 99th percentile"
    names = [frame_name(size) for size in sizes]
    return [Chart(title, "µs", "bytes of a frame", names, dict(series), logarithmic=True)]


def _costs(results: Sequence[Result]) -> Chart:
    """Make a chart of CPU time a frame, of the smallest ring and fewest queue pairs of each port."""
    first = {(result.port, result.frame_bytes): result for result in reversed(results)}
    sizes = list(dict.fromkeys(result.frame_bytes for result in results))
    series: dict[str, list[Point | None]] = {}
    for (port, size), result in sorted(first.items()):
        for side, cost in (("backend", result.backend_ns), ("driver", result.driver_ns)):
            points = series.setdefault(f"{port}: {side}", [None] * len(sizes))
            if cost is not None and cost.median > 0:
                points[sizes.index(size)] = Point(cost.median, max(cost.least, 0.1), cost.most)
    names = [frame_name(size) for size in sizes]
    return Chart("CPU time a frame", "ns", "bytes of a frame", names, dict(series), logarithmic=True)
