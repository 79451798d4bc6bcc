"""What tcp.py measured: kept as JSON, summed up as tables."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from kept import save
from placement import Placement
from sheet import Sheet, with_spread

HEADINGS = (
    *("guest", "contender", "direction", "Gbit/s", "ratio", "host CPU s/GiB"),
    *("guest CPU s/GiB", "bytes a frame", "large frames"),
)
DIRECTIONS = ("tx", "rx")
WORDS = {"tx": "sends", "rx": "receives"}
HOST_SIDE = ("backend", "emulator")


@dataclass(frozen=True)
class Window:
    """One run of iperf3.

    Attributes:
        round: its number; in each round every contender has its turn in each direction.
        contender: by name.
        direction: "tx" if the guest sends, "rx" if it receives.
        bits_per_second: of payload, as iperf3's receiver tells it.
        bytes: of payload.
        seconds: from before iperf3's start until after its end, in which CPU time was counted.
        cpu_seconds: user and system, by who used them: see README.md.
        guest_frames: that the guest's driver moved in that direction, large ones counted once.
        counters: by how much guestwire's grew; empty for another backend.
        placement: of the two CPUs, see README.md.
    """

    round: int
    contender: str
    direction: str
    bits_per_second: int
    bytes: int
    seconds: float
    cpu_seconds: Mapping[str, float]
    guest_frames: int
    counters: Mapping[str, Any]
    placement: Placement = "mixed"

    def cpu_seconds_a_gibibyte(self, *who: str) -> float:
        """Return the CPU time that some of them used, by GiB of payload."""
        return sum(self.cpu_seconds.get(each, 0.0) for each in who) / (self.bytes / (1 << 30))


@dataclass
class Row:
    """All windows of one comparison.

    Attributes:
        guest: what kind.
        contenders: names; the ratio is that of each to the last.
        features: that the guest and the backend have agreed on, by contender, where we know.
    """

    guest: str
    contenders: tuple[str, ...]
    features: dict[str, list[str]] = field(default_factory=dict)
    windows: list[Window] = field(default_factory=list)

    def of(self, contender: str, direction: str) -> list[Window]:
        """Return the windows of a contender in one direction."""
        return [w for w in self.windows if (w.contender, w.direction) == (contender, direction)]


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
        save(path, self.about, self.rows)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `save` has written."""
        data = json.loads(path.read_text())
        rows = [
            Row(
                row["guest"], tuple(row["contenders"]), row["features"], [Window(**w) for w in row["windows"]]
            )
            for row in data["rows"]
        ]
        return cls(data["about"], rows)

    def lines(self) -> Iterator[tuple[str, ...]]:
        """Yield the cells of a table: one line a contender and direction."""
        for row in self.rows:
            for direction in DIRECTIONS:
                for contender in row.contenders:
                    if row.of(contender, direction):
                        yield _line(row, contender, direction)

    def sheet(self) -> Sheet:
        """Make the table."""
        return Sheet("TCP: medians (smallest-largest)", HEADINGS, 3, list(self.lines()))


def _line(row: Row, contender: str, direction: str) -> tuple[str, ...]:
    windows = row.of(contender, direction)
    rates = [w.bits_per_second / 1e9 for w in windows]
    reference = row.of(row.contenders[-1], direction)
    ratio = "1" if contender == row.contenders[-1] else "-"
    if ratio != "1" and reference:
        of_medians = statistics.median(rates) / statistics.median(w.bits_per_second / 1e9 for w in reference)
        ratio = f"{of_medians:.2f}"
    # User-Mode Linux moves frames itself: its host side cannot be told from its guest.
    separable = any(who in windows[0].cpu_seconds for who in HOST_SIDE)
    host = (
        _median(windows, lambda w: w.cpu_seconds_a_gibibyte(*HOST_SIDE), 2) if separable else "in the guest's"
    )
    large = _median(windows, lambda w: w.counters.get("gso_frames", 0), 0) if windows[0].counters else ""
    return (
        row.guest,
        contender,
        WORDS[direction],
        with_spread(rates, 2),
        ratio,
        host,
        _median(windows, lambda w: w.cpu_seconds_a_gibibyte("guest"), 2),
        _median(windows, lambda w: w.bytes / max(1, w.guest_frames), 0),
        large,
    )


def _median(windows: list[Window], value: Callable[[Window], float], decimals: int) -> str:
    return f"{statistics.median(value(w) for w in windows):,.{decimals}f}"
