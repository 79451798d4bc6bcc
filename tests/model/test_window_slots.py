"""The table of windows that the SIGBUS handler reads (window.pyx): all interleavings, and mistakes.

A thread faults in a window of its own while another one closes a window and opens one in the same slot. The
handler, which looks at every slot, must take neither for the one in which the fault lies: they may be freed.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from model.interleavings import Order, Program, Start, Step, View, done, explore, fenced, store

both_orders = pytest.mark.parametrize("order", Order)
NOTHING: Program = {}

OLD, NEW = (0, 1), (10, 8)  # where two windows lie: base, size
FAULT = 5  # in neither, but in what has the base of one and the size of the other


def changed(number: int, base: int, size: int, after: str) -> Program:
    """set_slot"""
    return {
        f"odd {number}": store("sequence", lambda v: v.load("sequence") + 1, f"base {number}"),
        f"base {number}": fenced(store("base", lambda _: base, f"size {number}")),
        f"size {number}": store("size", lambda _: size, f"even {number}"),
        # A release store: what was stored before it is there before it.
        f"even {number}": fenced(store("sequence", lambda v: v.load("sequence") + 1, after)),
    }


CHANGER: Program = {**changed(1, 0, 0, "odd 2"), **changed(2, *NEW, "done"), "done": done}


def remember(name: str, after: str) -> Step:
    def load(v: View) -> str:
        v.own[name] = v.load(name)
        return after

    return load


def compare(v: View) -> str:
    own = v.own
    stable = own["sequence"] % 2 == 0 and v.load("sequence") == own["sequence"]
    if stable and 0 <= FAULT - own["base"] < own["size"]:
        v.shared["mistaken"] = True
    return "done"


HANDLER: Program = {
    "sequence": remember("sequence", "base"),
    "base": remember("base", "size"),
    "size": remember("size", "compare"),
    "compare": fenced(compare),
    "done": done,
}


def mistakes(order: Order, changer: Program = NOTHING, handler: Program = NOTHING) -> Iterator[object]:
    """The states in which the handler has taken another window for its own."""
    base, size = OLD
    ends = explore(
        {"sequence": 2, "base": base, "size": size, "mistaken": False},
        [
            Start({**CHANGER, **changer}, "odd 1"),
            Start({**HANDLER, **handler}, "sequence", {"sequence": 0, "base": 0, "size": 0}),
        ],
        order,
    )
    return (end for end in ends if end["mistaken"])


@both_orders
def test_no_other_window_is_taken_for_the_one_in_which_the_fault_lies(order: Order) -> None:
    assert list(mistakes(order)) == []


@both_orders
def test_without_the_sequence_one_is(order: Order) -> None:
    assert list(mistakes(order, handler={"compare": compare_range}))


def compare_range(v: View) -> str:
    v.shared["mistaken"] |= 0 <= FAULT - v.own["base"] < v.own["size"]
    return "done"


def test_without_the_fence_behind_the_odd_sequence_one_is_where_stores_change_places() -> None:
    unfenced: Program = {
        f"base {number}": store("base", lambda _, base=base: base, f"size {number}")
        for number, base in ((1, 0), (2, NEW[0]))
    }
    assert list(mistakes(Order.WEAK, unfenced))
    assert list(mistakes(Order.TSO, unfenced)) == []
