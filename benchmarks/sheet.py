"""A table, for the terminal, for Markdown and for HTML."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

from rich import box
from rich.table import Table


@dataclass
class Sheet:
    """A table of text.

    Attributes:
        title: what it shows.
        headings: of its columns.
        left: how many columns are words, which begin at the left; the others are numbers.
        lines: the cells of each line.
    """

    title: str
    headings: Sequence[str]
    left: int
    lines: list[Sequence[str]] = field(default_factory=list)

    def terminal(self) -> Table:
        """Make it for the terminal."""
        table = Table(title=self.title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
        for number, heading in enumerate(self.headings):
            table.add_column(
                heading, justify="left" if number < self.left else "right", no_wrap=number >= self.left
            )
        for line in self.lines:
            table.add_row(*(cell.replace(" (", "\n(") for cell in line))
        return table

    def markdown(self) -> str:
        """Make it for a README."""
        rule = ["---"] * self.left + ["---:"] * (len(self.headings) - self.left)
        return "\n".join(f"| {' | '.join(cells)} |" for cells in (self.headings, rule, *self.lines))

    def html(self) -> str:
        """Make it for a page."""

        def row(cells: Sequence[str], tag: str) -> str:
            return "<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in cells) + "</tr>"

        body = "".join(row(line, "td") for line in self.lines)
        return f"<table><thead>{row(self.headings, 'th')}</thead><tbody>{body}</tbody></table>"


def with_spread(values: Sequence[float], decimals: int, scale: float = 1.0) -> str:
    """Write a median with the smallest and the largest."""
    if not values:
        return ""
    scaled = [value * scale for value in values]
    return f"{statistics.median(scaled):.{decimals}f} {spread(scaled, decimals)}"


def spread(values: Sequence[float], decimals: int) -> str:
    """Write the smallest and the largest value."""
    return f"({min(values):.{decimals}f}-{max(values):.{decimals}f})" if values else ""
