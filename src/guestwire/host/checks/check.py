"""What a check is: one question to the machine, with an answer for people and for scripts."""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass

from guestwire.errors import HostError


class Status(enum.StrEnum):
    """How bad an answer is, the worst last."""

    OK = "ok"
    WARNING = "warning"
    """It works, but not as well as it could; or it could not be seen."""
    PROBLEM = "problem"
    """``guestwire run`` refuses an ``xdp`` port for this."""


@dataclass(frozen=True, slots=True)
class Check:
    """One answer.

    Attributes:
        name: which question it answers; the names are stable and scripts may rely on them.
        status: how bad it is.
        found: what was seen, with names and numbers.
        meaning: what follows from it.
        remedy: the command to type or the setting to change; ``None`` if there is nothing to do.
    """

    name: str
    status: Status
    found: str
    meaning: str
    remedy: str | None = None


def worst(checks: Iterable[Check]) -> Status:
    """The worst status among the answers; ``ok`` if there are none."""
    order = list(Status)
    return max((check.status for check in checks), key=order.index, default=Status.OK)


def require(*checks: Check) -> None:
    """Make sure that none of the answers is a problem.

    Raises:
        HostError: the first problem.
    """
    for check in checks:
        if check.status is Status.PROBLEM:
            raise HostError(f"{check.found}: {check.meaning}", check.remedy)
