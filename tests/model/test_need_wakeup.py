"""A driver that found the fill ring empty is called: the need_wakeup flag, in all interleavings.

In zero-copy mode a driver that has no buffer left gets no interrupt either, so it must be called once there
are some, and says so by a flag (XDP_RING_NEED_WAKEUP). It looks at the ring first and sets the flag then;
between the two our worker may have filled the ring and looked at the flag in vain.
"""

from __future__ import annotations

import pytest

from model.interleavings import Order, Program, Start, View, done, explore, fenced, signal, sleep, store

SHARED = {"filled": 0, "flag": 0, "polling": True, "called": False, "taken": False}


def end_of_poll(after: str, *, taken: bool) -> Program:
    def end(v: View) -> str:
        v.shared["polling"], v.shared["taken"] = False, v.shared["taken"] or taken
        return after

    return {"end, with a buffer" if taken else "end, without": fenced(end)}


DRIVER: Program = {
    "look at the ring": lambda v: "end, with a buffer" if v.load("filled") else "set the flag",
    "set the flag": store("flag", lambda _: 1, "end, without"),
    **end_of_poll("wait for a call", taken=False),
    "wait for a call": sleep("called", "end, with a buffer"),
    **end_of_poll("done", taken=True),
    "done": done,
}


def worker(after_look: Program) -> Program:
    """xdp_rx_post, and then a sleep for good; `after_look` is what comes in between."""
    return {
        "ring_submit": store("filled", lambda _: 1, "ring_needs_wakeup"),
        "ring_needs_wakeup": lambda v: "recvfrom" if v.load("flag") else "look later",
        "recvfrom": signal("called", "sleep"),
        "look again": lambda v: "recvfrom" if v.load("flag") else "sleep",
        "sleep": done,
        **after_look,
    }


AT_ONCE: Program = {"look later": fenced(lambda _: "sleep")}
# xsk_recvmsg() calls the driver if the flag is set, and does nothing else: it is one more look.
RECVFROM_FIRST: Program = {"look later": fenced(lambda _: "look again")}
# A poll of the driver's, some microseconds, ends within a sleep of a millisecond.
SHORT_SLEEP_FIRST: Program = {"look later": fenced(lambda v: None if v.shared["polling"] else "look again")}


def is_lost(after_look: Program, order: Order) -> bool:
    starts = [Start(DRIVER, "look at the ring"), Start(worker(after_look), "ring_submit")]
    return not all(end["taken"] for end in explore(SHARED, starts, order))


@pytest.mark.parametrize("order", Order)
def test_a_short_sleep_comes_before_a_long_one(order: Order) -> None:
    assert not is_lost(SHORT_SLEEP_FIRST, order)


@pytest.mark.parametrize("order", Order)
@pytest.mark.parametrize("mistake", [AT_ONCE, RECVFROM_FIRST], ids=["at once", "recvfrom first"])
def test_a_look_before_the_sleep_is_too_early(mistake: Program, order: Order) -> None:
    assert is_lost(mistake, order)
