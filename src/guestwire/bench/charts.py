"""Figures as SVG: bars and dots with their spread, light and dark, without a script or a library.

A `Chart` says what it shows; `draw` puts charts side by side under a title, with notes below. Text wider than
its place is the caller's to avoid, except in notes, which are broken into lines.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH = 1120
MARGIN = 36
GAP = 40
CHART_HEIGHT = 270
LEGEND = 22
TITLE_SPACE, LABEL_SPACE, AXIS_SPACE = 54, 40, 58
LETTER = 6.8  # width of one, on average, at the size of the legend
LINE = 18
LETTERS_A_LINE = 150
FONT = "system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', sans-serif"

# Okabe and Ito's colours, which the colour-blind can tell apart, darker and lighter for the two backgrounds.
LIGHT = ("#0072b2", "#d55e00", "#009e73", "#b0689a", "#8a6d00", "#4a4a4a")
DARK = ("#56b4e9", "#f28e4b", "#2fc79b", "#dd9cc4", "#e6c229", "#b8b8b8")


@dataclass(frozen=True)
class Point:
    """A value with its spread; ``least`` and ``most`` are the ends of its whisker."""

    value: float
    least: float
    most: float


@dataclass(frozen=True)
class Chart:
    """One chart: for each category a point of each series.

    Attributes:
        title: what it shows.
        unit: of the values, for their axis.
        axis: what the categories are.
        categories: their names.
        series: points by the names of the series, one a category; None where there is none.
        logarithmic: dots on a logarithmic axis instead of bars from zero.
    """

    title: str
    unit: str
    axis: str
    categories: Sequence[str]
    series: dict[str, Sequence[Point | None]]
    logarithmic: bool = False


def draw(title: str, subtitle: Sequence[str], rows: Sequence[Sequence[Chart]], notes: Sequence[str]) -> str:
    """Return an SVG document with the charts of each row side by side."""
    lines = [line for note in notes for line in textwrap.wrap(note, LETTERS_A_LINE)]
    top = MARGIN + 30 + LINE * len(subtitle)
    height = top + len(rows) * (CHART_HEIGHT + GAP) + 12 + LINE * len(lines) + MARGIN
    body = [
        f'<rect class="paper" width="{WIDTH}" height="{height}"/>',
        _text(MARGIN, MARGIN + 12, title, "ink", size=24, weight=600),
    ]
    for i, line in enumerate(subtitle):
        body.append(_text(MARGIN, MARGIN + 38 + LINE * i, line, "soft"))
    for number, row in enumerate(rows):
        width = (WIDTH - 2 * MARGIN - GAP * (len(row) - 1)) / len(row)
        for column, chart in enumerate(row):
            x, y = MARGIN + column * (width + GAP), top + number * (CHART_HEIGHT + GAP) + GAP / 2
            body.append(f'<g transform="translate({x:.1f} {y:.1f})">{_Drawing(chart, width).svg()}</g>')
    bottom = top + len(rows) * (CHART_HEIGHT + GAP) + GAP / 2
    body += [_text(MARGIN, bottom + 12 + LINE * i, line, "ink") for i, line in enumerate(lines)]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" '
        f'height="{height}" font-family="{FONT}" font-size="13" role="img">'
        f"<title>{escape(title)}</title><style>{_style()}</style>{''.join(body)}</svg>"
    )


def _style() -> str:
    def colours(paper: str, ink: str, soft: str, rule: str, series: Sequence[str]) -> str:
        parts = [f".paper{{fill:{paper}}}.ink{{fill:{ink}}}.soft{{fill:{soft}}}"]
        parts.append(f".rule{{stroke:{rule}}}.whisker{{stroke:{ink}}}")
        parts += [f".s{i}{{fill:{colour}}}.l{i}{{stroke:{colour}}}" for i, colour in enumerate(series)]
        return "".join(parts)

    light = colours("#ffffff", "#1f2328", "#656d76", "#e3e6ea", LIGHT)
    dark = colours("#0d1117", "#e6edf3", "#8d96a0", "#2a313a", DARK)
    return f"{light}@media (prefers-color-scheme: dark){{{dark}}}"


class _Drawing:
    """A chart, on its way to be SVG."""

    def __init__(self, chart: Chart, width: float) -> None:
        self._chart, self._width = chart, width
        self._left = AXIS_SPACE
        self._places = self._legend_places()
        self._top = TITLE_SPACE + LINE * (self._places[-1][1] if self._places else 0)
        self._bottom = CHART_HEIGHT - LABEL_SPACE
        points = [p for series in chart.series.values() for p in series if p is not None]
        largest = max((p.most for p in points), default=1.0) or 1.0
        if chart.logarithmic:
            smallest = min((p.least for p in points if p.least > 0), default=1.0)
            self._ticks = log_ticks(smallest, largest)
        else:
            self._ticks = linear_ticks(largest)

    def svg(self) -> str:
        return "".join([*self._frame(), *self._legend(), *self._points()])

    def _y(self, value: float) -> float:
        low, high = self._ticks[0], self._ticks[-1]
        if self._chart.logarithmic:
            share = math.log(max(value, low) / low) / math.log(high / low)
        else:
            share = value / high
        return self._bottom - share * (self._bottom - self._top)

    def _frame(self) -> list[str]:
        chart, middle = self._chart, (self._top + self._bottom) / 2
        parts = [_text(0, 12, chart.title, "ink", weight=600)]
        for tick in self._ticks:
            y = self._y(tick)
            parts.append(f'<path class="rule" d="M{self._left} {y:.1f}H{self._width:.1f}"/>')
            parts.append(_text(self._left - 8, y + 4, _tick(tick), "soft", anchor="end", size=12))
        parts.append(
            f'<text class="soft" font-size="12" text-anchor="middle" '
            f'transform="translate(8 {middle:.1f}) rotate(-90)">{escape(chart.unit)}</text>'
        )
        for i, name in enumerate(chart.categories):
            parts.append(_text(self._centre(i), self._bottom + 17, name, "ink", anchor="middle", size=12))
        half = (self._left + self._width) / 2
        parts.append(_text(half, self._bottom + 36, chart.axis, "soft", anchor="middle", size=12))
        return parts

    def _legend(self) -> list[str]:
        parts = []
        for i, (x, line) in enumerate(self._places):
            colour, y = i % len(LIGHT), LEGEND + LINE * line
            parts.append(f'<rect class="s{colour}" x="{x:.1f}" y="{y}" width="11" height="11" rx="2"/>')
            parts.append(_text(x + 16, y + 10, list(self._chart.series)[i], "soft", size=12))
        return parts

    def _legend_places(self) -> list[tuple[float, int]]:
        """Return where the names of the series begin, and in which line; a single one needs no name."""
        places: list[tuple[float, int]] = []
        x, line = float(self._left), 0
        for name in self._chart.series if len(self._chart.series) > 1 else ():
            width = 16 + LETTER * len(name) + 14
            if x + width > self._width and x > self._left:
                x, line = float(self._left), line + 1
            places.append((x, line))
            x += width
        return places

    def _centre(self, category: int) -> float:
        slot = (self._width - self._left) / len(self._chart.categories)
        return self._left + slot * (category + 0.5)

    def _points(self) -> list[str]:
        parts = []
        count = len(self._chart.series)
        slot = (self._width - self._left) / len(self._chart.categories)
        step = min(46.0, slot * 0.82 / count)
        for number, points in enumerate(self._chart.series.values()):
            colour = number % len(LIGHT)
            for category, point in enumerate(points):
                if point is None:
                    continue
                x = self._centre(category) + (number - (count - 1) / 2) * step
                if self._chart.logarithmic:
                    parts.append(self._dot(x, point, colour, above=count > 2 and number % 2 == 1))
                else:
                    parts.append(self._bar(x, step, point, colour))
        return parts

    def _bar(self, x: float, step: float, point: Point, colour: int) -> str:
        y, width = self._y(point.value), step * 0.86
        label = _text(x, self._y(point.most) - 5, _short(point.value), "ink", anchor="middle", size=10)
        return (
            f'<rect class="s{colour}" x="{x - width / 2:.1f}" y="{y:.1f}" width="{width:.1f}" '
            f'height="{max(0.5, self._bottom - y):.1f}" rx="1.5">{_hint(point)}</rect>'
            f"{self._whisker(x, point)}{label}"
        )

    def _dot(self, x: float, point: Point, colour: int, *, above: bool) -> str:
        y, least, most = self._y(point.value), self._y(point.least), self._y(point.most)
        # Below and above in turn, so that the numbers of neighbours do not meet.
        place = most - 9 if above else least + 18
        label = _text(x, place, _short(point.value), "ink", anchor="middle", size=11)
        return (
            f'<path class="l{colour}" stroke-width="3" stroke-linecap="round" '
            f'd="M{x:.1f} {least:.1f}V{most:.1f}"/>'
            f'<circle class="s{colour}" cx="{x:.1f}" cy="{y:.1f}" r="5">{_hint(point)}</circle>{label}'
        )

    def _whisker(self, x: float, point: Point) -> str:
        least, most = self._y(point.least), self._y(point.most)
        return (
            f'<path class="whisker" d="M{x:.1f} {least:.1f}V{most:.1f}M{x - 3:.1f} {least:.1f}h6'
            f'M{x - 3:.1f} {most:.1f}h6" fill="none"/>'
        )


def _hint(point: Point) -> str:
    return f"<title>{_short(point.value)} ({_short(point.least)} to {_short(point.most)})</title>"


def _text(
    x: float, y: float, text: str, colour: str, *, anchor: str = "start", size: int = 13, weight: int = 400
) -> str:
    return (
        f'<text class="{colour}" x="{x:.1f}" y="{y:.1f}" font-size="{size}" font-weight="{weight}" '
        f'text-anchor="{anchor}">{escape(text)}</text>'
    )


def _short(value: float) -> str:
    """Write a number with the digits that count, in four or five letters."""
    if value >= 10000:
        return f"{value / 1000:,.0f}k"
    if value >= 1000:
        return f"{value / 1000:.1f}k"
    if value >= 100 or value == 0:
        return f"{value:.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _tick(value: float) -> str:
    """Write a round number."""
    return f"{value:,.10g}"


def linear_ticks(largest: float) -> list[float]:
    """Return round numbers from 0 to one that is not below ``largest``, four to seven of them."""
    step = 10.0 ** math.floor(math.log10(largest / 4))
    step = next(s for s in (step, 2 * step, 2.5 * step, 5 * step, 10 * step) if s * 5.5 >= largest)
    return [step * i for i in range(math.ceil(largest / step - 1e-9) + 1)]


def log_ticks(smallest: float, largest: float) -> list[float]:
    """Return powers of ten, with twos and fives if there are few, that enclose two values."""
    for steps in ((1, 2, 5), (1,)):
        powers = range(math.floor(math.log10(smallest)) - 1, math.ceil(math.log10(largest)) + 2)
        ticks = [step * 10.0**power for power in powers for step in steps]
        low = max(tick for tick in ticks if tick <= smallest)
        high = min(tick for tick in ticks if tick >= largest and tick > low)
        chosen = [tick for tick in ticks if low <= tick <= high]
        if len(chosen) <= 8:
            break
    return chosen
