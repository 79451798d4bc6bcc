"""A guest that was started: what is said when nothing is ever seen of it, and when nothing is wrong."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from guestwire.start_watch import (
    DRIVER_SECONDS,
    EMPTY_MEMORY,
    MEMORY_SECONDS,
    NO_MEMORY,
    NOT_STARTED,
    Seen,
    StartWatch,
    empty_ring,
)

CONNECTED = Seen()
ACCEPTED = Seen(accepted=True)
RX_ONLY = Seen(accepted=True, shared=True, running=True, empty=(1,), available=(b"\1\0",))
AT_WORK = Seen(accepted=True, shared=True, running=True, available=(b"\1\0", b"\2\0"))
IDLE = Seen(accepted=True, shared=True, running=True, empty=(0, 1))
BLANK = Seen(accepted=True, shared=True, running=True, empty=(0, 1), blank=True)


def looks(*steps: Seen | tuple[Seen, int], seconds: float = 1.0) -> Iterable[list[str]]:
    """What is said at one look after the other."""
    watch = StartWatch(0.0)
    kicks = 0
    for number, step in enumerate(steps, 1):
        seen, more = step if isinstance(step, tuple) else (step, 0)
        kicks += more
        yield watch.look(number * seconds, seen, kicks)


def test_a_guest_that_boots_slowly_is_not_blamed() -> None:
    booting = [CONNECTED] * (int(DRIVER_SECONDS) - 1)
    assert not any(looks(*booting, RX_ONLY, AT_WORK, AT_WORK))


def test_a_driver_that_does_not_come() -> None:
    *before, last, after = looks(*[CONNECTED] * int(DRIVER_SECONDS), AT_WORK)
    assert not any(before)
    assert last == [NOT_STARTED]
    assert after == []


def test_a_driver_that_has_been_there_is_not_missed() -> None:
    assert not any(looks(AT_WORK, *[CONNECTED] * int(2 * DRIVER_SECONDS)))


def test_no_memory() -> None:
    *before, last, after = looks(*[ACCEPTED] * (int(MEMORY_SECONDS) + 1), AT_WORK)
    assert not any(before)
    assert last == [NO_MEMORY]
    assert after == []


def test_memory_that_comes_a_little_later() -> None:
    assert not any(looks(*[ACCEPTED] * int(MEMORY_SECONDS), *[RX_ONLY] * 10))


def test_empty_memory() -> None:
    first, second, third = looks(BLANK, BLANK, AT_WORK)
    assert (first, second, third) == ([], [EMPTY_MEMORY], [])


def test_kicks_of_an_empty_ring() -> None:
    said = list(looks((RX_ONLY, 1), (RX_ONLY, 20), RX_ONLY, AT_WORK))
    assert said == [[], [empty_ring(1)], [empty_ring(1)], []]


@pytest.mark.parametrize(
    "steps",
    [
        [(IDLE, 2)] * 5,  # its interface is down, and the frontend kicks once or twice
        [
            (Seen(accepted=True, shared=True, running=True, empty=(1,), available=(bytes([n]),)), 50)
            for n in range(9)
        ],
        [RX_ONLY] * 100,
    ],
    ids=["down", "receives only", "idle"],
)
def test_a_healthy_guest(steps: list[Seen | tuple[Seen, int]]) -> None:
    assert not any(looks(*steps))


def test_a_guest_at_work_need_not_be_watched() -> None:
    watch = StartWatch(0.0)
    watch.look(1.0, RX_ONLY, 0)
    assert not watch.content
    watch.look(2.0, AT_WORK, 0)
    assert watch.content
