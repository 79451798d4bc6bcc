"""Windows of one case, by turns, until there are enough of them."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from case import WORKS
from contenders import Contender
from placement import PingPong, label
from results import PLACEMENTS, Row, Window

SETTLE_SECONDS = 0.25
OVERHEAD_SECONDS = 0.35
"""What a window takes besides: testpmd's commands, and the looks at the placement."""


@dataclass(frozen=True)
class Method:
    """How windows are taken.

    Attributes:
        pairs: rounds at one placement in which every contender has a window.
        seconds: length of a window.
        patience: seconds that a row may take beyond those of its windows, if all go well.
        least_share: of its CPU that each side must get.
    """

    pairs: int = 7
    seconds: float = 1.0
    patience: float = 30.0
    least_share: float = 0.95

    def expected_seconds(self, contenders: int) -> float:
        """Return how long a row takes if nothing disturbs it."""
        return self.pairs * contenders * (self.seconds + SETTLE_SECONDS + OVERHEAD_SECONDS)


def measure(
    row: Row, contenders: Sequence[Contender], ping: PingPong, method: Method, tell: Callable[[str], None]
) -> None:
    """Take rounds of windows, in turns which contender comes first.

    Args:
        row: what the windows are for, and go into.
        contenders: what is compared.
        ping: measures the placement.
        method: how.
        tell: is told what is going on.
    """
    name = f"{row.case.scenario}, {row.case.described()}, {row.case.size} bytes"
    end = time.monotonic() + method.expected_seconds(len(contenders)) + method.patience
    for number in itertools.count():
        have = max(row.pairs(placement) for placement in PLACEMENTS)
        if have >= method.pairs:
            return
        for contender in contenders if number % 2 == 0 else contenders[::-1]:
            tell(f"{name}: {have} of {method.pairs} pairs, {row.disturbed} disturbed; {contender.name}")
            while (window := _window(row, contender, number, ping, method)) is None:
                row.disturbed += 1
                if time.monotonic() > end:
                    return
            row.windows.append(window)
            if time.monotonic() > end:
                return


def _window(row: Row, contender: Contender, number: int, ping: PingPong, method: Method) -> Window | None:
    """Take one window; None if a side did not get its CPU."""
    contender.start(row.case.size)
    time.sleep(SETTLE_SECONDS)
    before = ping.round_trip_ns()
    figures = contender.measure(method.seconds)
    after = ping.round_trip_ns()
    figures |= contender.stop()
    polling = WORKS[row.case.work].polling
    if min((figures.get(f"{side}_share", 1.0) for side in polling), default=1.0) < method.least_share:
        return None
    return Window(number, contender.name, label(before, after), (before, after), figures)
