"""No wake-up is lost on a wire: the protocols of inlet.pyx in all interleavings, and with mistakes in them.

The steps bear the names of what they stand for in the code. Each model runs with mistakes as well, which it
must find: so a change to the code that is made here, too, shows whether it was one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import pytest

from model.interleavings import (
    Order,
    Program,
    Start,
    Step,
    View,
    done,
    explore,
    fenced,
    go,
    locked,
    signal,
    sleep,
    store,
    unlock,
)

both_orders = pytest.mark.parametrize("order", Order)
NOTHING: Program = {}


# --- calls -------------------------------------------------------------------------------------------
#
# Senders, one at a time, return buffers to a driver that sleeps until it is called. It is called by its
# guest's own worker, for which they leave word in call_owed.

BURSTS = 3


def wants_call(v: View) -> str:
    """EVENT_IDX: the driver wants a call for the buffer of this number."""
    return "owed?" if v.load("used_event") == v.load("used") - 1 else "unlock"


SENDER: Program = {
    "inlet_enter": locked("sender", go("ring_show")),
    "ring_show": store("used", lambda v: v.load("used") + 1, "ring_wants_call"),
    "ring_wants_call": fenced(wants_call),
    "owed?": lambda v: "unlock" if v.load("call_owed") else "owe",
    "owe": store("call_owed", lambda _: 1, "signal"),
    "signal": signal("wake", "unlock"),
    "unlock": unlock(lambda v: "inlet_enter" if v.load("used") < BURSTS else "done"),
    "done": done,
}

CALLER: Program = {
    "sleep": sleep("wake", "inlet_call"),
    "inlet_call": lambda v: "take the wish" if v.load("call_owed") else "sleep",
    "take the wish": store("call_owed", lambda _: 0, "ring_call"),
    "ring_call": signal("call", "sleep"),
}


def look_at_used(v: View) -> str:
    v.shared["seen"] = v.load("used")
    return "ask"


CALLED: Program = {
    "work": look_at_used,
    "ask": store("used_event", lambda v: v.shared["seen"], "look again"),
    "look again": fenced(lambda v: "sleep" if v.load("used") == v.shared["seen"] else "work"),
    "sleep": sleep("call", "work"),
}


def lost_calls(order: Order, sender: Program = NOTHING, caller: Program = NOTHING) -> Iterator[object]:
    """The states in which the driver sleeps for good beside buffers that it has not seen."""
    memory = {
        "used": 0,
        "used_event": 0,
        "seen": 0,
        "call_owed": 0,
        "wake": False,
        "call": False,
        "holder": None,
    }
    threads = [
        Start({**SENDER, **sender}, "inlet_enter"),
        Start({**CALLER, **caller}, "sleep"),
        Start(CALLED, "work"),
    ]
    return (end for end in explore(memory, threads, order) if end["seen"] != BURSTS)


@both_orders
def test_no_call_is_lost(order: Order) -> None:
    assert list(lost_calls(order)) == []


CALL_MISTAKES: Mapping[str, tuple[Program, Program]] = {
    "no fence after the burst is shown": ({"ring_wants_call": wants_call}, NOTHING),
    "the worker is not woken": ({"owe": store("call_owed", lambda _: 1, "unlock")}, NOTHING),
    "the worker is woken first": (
        {
            "owed?": lambda v: "unlock" if v.load("call_owed") else "signal",
            "signal": signal("wake", "owe"),
            "owe": store("call_owed", lambda _: 1, "unlock"),
        },
        NOTHING,
    ),
    "the wish is taken after the call": (
        NOTHING,
        {
            "inlet_call": lambda v: "ring_call" if v.load("call_owed") else "sleep",
            "ring_call": signal("call", "take the wish"),
            "take the wish": store("call_owed", lambda _: 0, "sleep"),
        },
    ),
}


@both_orders
@pytest.mark.parametrize("mistake", CALL_MISTAKES)
def test_a_mistake_about_calls_is_found(order: Order, mistake: str) -> None:
    assert any(lost_calls(order, *CALL_MISTAKES[mistake]))


# --- buffers -----------------------------------------------------------------------------------------
#
# Two senders need buffers, which a driver offers one by one. Who finds none waits to be woken: by whoever
# finds some there, or by the worker of the driver's guest, which the driver kicks if it was asked to.

BUFFERS = 2
NO_KICK = -1


def refill(v: View) -> bool:
    """Take what the ring offers; return whether that was anything. `fresh` is whoever's has the lock."""
    new = v.load("available") - v.shared["taken"]
    v.shared["stock"] += new
    v.shared["taken"] += new
    v.shared["fresh"] |= new > 0
    return bool(new)


def inlet_enter(v: View) -> str:
    v.shared["fresh"] = False
    refill(v)
    return "inlet_deliver"


def inlet_await(number: int) -> Step:
    def wait(v: View) -> str:
        v.shared["waiters"] += (number,)
        v.store("waited_for", 1)
        return "look_after_waiters"

    return wait


def inlet_deliver(wait: Step) -> Step:
    def deliver(v: View) -> str | None:
        if not v.shared["stock"] and not refill(v):
            return wait(v)
        v.shared["stock"] -= 1
        v.own["frames"] -= 1
        return "look_after_waiters"

    return deliver


def wake_waiters(v: View) -> None:
    for number in v.shared["waiters"]:
        v.shared[f"wake{number}"] = True
    v.shared["waiters"] = ()
    v.store("waited_for", 0)


def look_after_waiters(v: View) -> str:
    if not v.shared["waiters"]:
        return "ring_disable_notifications" if v.shared["asked"] else "unlock"
    if v.shared["fresh"]:
        wake_waiters(v)
        return "unlock"
    v.shared["asked"] = True
    return "ring_enable_notifications"


def look_again(v: View) -> str:
    if refill(v):
        wake_waiters(v)
    return "unlock"


def ring_disable_notifications(v: View) -> str:
    v.shared["asked"] = False
    if not v.shared["event_index"]:  # with it, silence says the same
        v.store("wish", NO_KICK)
    return "unlock"


LEAVE: Program = {
    "look_after_waiters": look_after_waiters,
    "ring_enable_notifications": store("wish", lambda v: v.shared["taken"], "look again"),
    "look again": fenced(look_again),
    "ring_disable_notifications": ring_disable_notifications,
}


def inlet_forget(number: int) -> Step:
    def forget(v: View) -> str:
        if number in v.shared["waiters"]:
            v.shared["waiters"] = tuple(other for other in v.shared["waiters"] if other != number)
            v.store("waited_for", int(bool(v.shared["waiters"])))
        return "unlock to submit"

    return forget


def waiting_sender(number: int) -> Program:
    def left(v: View) -> str:
        # Whoever waits was not delivered, and sleeps until it is woken; it may be woken already.
        if number in v.shared["waiters"] or v.shared[f"wake{number}"]:
            return "sleep"
        return "inlet_enter" if v.own["frames"] else "done"

    return {
        "inlet_enter": locked("sender", inlet_enter),
        "inlet_deliver": inlet_deliver(inlet_await(number)),
        **LEAVE,
        "unlock": unlock(left),
        "sleep": sleep(f"wake{number}", "inlet_forget"),
        "inlet_forget": locked("sender", inlet_forget(number)),
        "unlock to submit": unlock(go("inlet_enter")),
        "done": done,
    }


def enter_to_look(v: View) -> str:
    inlet_enter(v)
    return "look_after_waiters"


KICKED: Program = {
    "sleep": sleep("kick", "inlet_look"),
    "inlet_look": lambda v: "enter" if v.load("waited_for") else "sleep",
    "enter": locked("worker", enter_to_look),
    **LEAVE,
    "unlock": unlock(go("sleep")),
}


def offer(v: View) -> str | None:
    if v.load("available") == BUFFERS:
        return None
    v.store("available", v.load("available") + 1)
    return "wants kick?"


def wants_kick(v: View) -> str:
    wish = v.load("wish")
    wanted = wish == v.load("available") - 1 if v.shared["event_index"] else wish != NO_KICK
    return "kick" if wanted else "offer"


OFFERING: Program = {
    "offer": offer,
    "wants kick?": fenced(wants_kick),
    "kick": signal("kick", "offer"),
}


def lost_buffers(
    order: Order,
    event_index: bool,
    sender: Callable[[int], Program] = lambda _: NOTHING,
    kicked: Program = NOTHING,
) -> Iterator[object]:
    """The states in which a sender sleeps for good beside buffers."""
    memory = {
        "available": 0,
        "taken": 0,
        "stock": 0,
        "wish": 0 if event_index else NO_KICK,
        "fresh": False,
        "waited_for": 0,
        "waiters": (),
        "asked": False,
        "holder": None,
        "wake0": False,
        "wake1": False,
        "kick": False,
        "event_index": event_index,
    }
    threads = [
        Start({**waiting_sender(0), **sender(0)}, "inlet_enter", {"frames": 1}),
        Start({**waiting_sender(1), **sender(1)}, "inlet_enter", {"frames": 2}),
        Start({**KICKED, **kicked}, "sleep"),
        Start(OFFERING, "offer"),
    ]
    ends = explore(memory, threads, order)
    return (end for end in ends if end["stock"] or end["taken"] != BUFFERS)


@both_orders
@pytest.mark.parametrize("event_index", [True, False], ids=["EVENT_IDX", "flags"])
def test_no_sender_sleeps_beside_buffers(order: Order, event_index: bool) -> None:
    """Although waited_for has no fence of its own: the one behind the wish for a kick is enough."""
    assert list(lost_buffers(order, event_index)) == []


def say_it_late(number: int) -> Program:
    """Note that somebody waits when the lock was left."""

    def wait(v: View) -> str:
        v.shared["waiters"] += (number,)
        return "look_after_waiters"

    def left(v: View) -> str:
        return "say it" if number in v.shared["waiters"] else str(waiting_sender(number)["unlock"](v))

    return {
        "inlet_deliver": inlet_deliver(wait),
        "unlock": unlock(left),
        "say it": store("waited_for", lambda _: 1, "sleep"),
    }


def wake_nobody(v: View) -> str:
    """Leave it to the worker to wake those who wait."""
    if v.shared["waiters"] and v.shared["fresh"]:
        return "unlock"
    return look_after_waiters(v)


def wake_one(v: View) -> str:
    if v.shared["waiters"] and v.shared["fresh"]:
        v.shared[f"wake{v.shared['waiters'][0]}"] = True
        v.shared["waiters"] = v.shared["waiters"][1:]
        v.store("waited_for", int(bool(v.shared["waiters"])))
        return "unlock"
    return look_after_waiters(v)


LOOK_FIRST: Program = {
    "look_after_waiters": lambda v: (
        "look again" if v.shared["waiters"] and not v.shared["fresh"] else look_after_waiters(v)
    ),
    "look again": lambda v: look_again(v) if v.load("available") > v.shared["taken"] else "wish",
    "wish": store("wish", lambda v: v.shared["taken"], "unlock"),
}
BUFFER_MISTAKES: Mapping[str, tuple[Callable[[int], Program], Program]] = {
    "no look after the wish": (lambda _: {"look again": go("unlock")}, NOTHING),
    "no fence after the wish": (lambda _: {"look again": look_again}, NOTHING),
    "the look comes before the wish": (lambda _: LOOK_FIRST, NOTHING),
    "waiting is said too late": (say_it_late, NOTHING),
    "senders wake nobody": (lambda _: {"look_after_waiters": wake_nobody}, NOTHING),
    "the worker wakes one": (lambda _: NOTHING, {"look_after_waiters": wake_one}),
    "the worker looks for nobody": (lambda _: NOTHING, {"inlet_look": go("sleep")}),
}


@both_orders
@pytest.mark.parametrize("event_index", [True, False], ids=["EVENT_IDX", "flags"])
@pytest.mark.parametrize("mistake", BUFFER_MISTAKES)
def test_a_mistake_about_buffers_is_found(order: Order, event_index: bool, mistake: str) -> None:
    assert any(lost_buffers(order, event_index, *BUFFER_MISTAKES[mistake]))
