"""All interleavings of a few threads that share memory: what can go wrong does so in one of them.

A thread is a table of steps, by name. A step looks at or changes one thing that is shared, by way of its
`View`, and returns the name of the next step, or None while it cannot go on. Stores first wait in a buffer of
their thread. With ``Order.TSO`` they reach memory in the order in which they were made, as on x86-64; with
``Order.WEAK`` in any order but that of stores to one place, as on arm64. Loads are made where they stand.
Fences, mutexes and system calls wait until the buffer is empty.

`explore` goes through every state that can be reached, once.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

Values = tuple[Any, ...]  # in the order in which they were named at first
Buffer = tuple[tuple[str, Any], ...]


class Order(enum.Enum):
    """In which order a thread's stores reach memory."""

    TSO = "in order"
    WEAK = "in any order"


class View:
    """What a step has at hand.

    Attributes:
        shared: memory as it is; to be used directly for what a mutex guards, and for what the kernel keeps.
        own: what only this thread has.
    """

    def __init__(self, shared: dict[str, Any], own: dict[str, Any], buffer: Buffer) -> None:
        self.shared, self.own, self.buffer = shared, own, buffer

    def load(self, name: str) -> Any:
        """Read from shared memory, or what this thread has stored and nobody else can see yet."""
        for other, value in reversed(self.buffer):
            if other == name:
                return value
        return self.shared[name]

    def store(self, name: str, value: Any) -> None:
        """Write to shared memory, some time."""
        self.buffer += ((name, value),)

    @property
    def settled(self) -> bool:
        """Whether all that this thread has stored is in memory: what a full fence waits for."""
        return not self.buffer


# --- what steps are made of --------------------------------------------------------------------------

Step = Callable[[View], str | None]
Program = Mapping[str, Step]


def go(after: str) -> Step:
    """Do nothing."""
    return lambda _: after


def fenced(step: Step) -> Step:
    """A full fence, and then a step."""
    return lambda v: step(v) if v.settled else None


def locked(holder: str, step: Step) -> Step:
    """Take the mutex, and then a step."""

    def lock(v: View) -> str | None:
        if v.shared["holder"]:
            return None
        v.shared["holder"] = holder
        return step(v)

    return lock


def unlock(step: Step) -> Step:
    """Leave the mutex, and then a step."""

    def unlock(v: View) -> str | None:
        v.shared["holder"] = None
        return step(v)

    return fenced(unlock)


def signal(name: str, after: str) -> Step:
    """Write to an eventfd: who is woken sees what was stored before."""

    def write(v: View) -> str:
        v.shared[name] = True
        return after

    return fenced(write)


def sleep(name: str, after: str) -> Step:
    """Sleep until an eventfd was written to, perhaps long ago."""

    def wait(v: View) -> str | None:
        if not v.shared[name]:
            return None
        v.shared[name] = False
        return after

    return wait


def store(name: str, value: Callable[[View], int], after: str) -> Step:
    def write(v: View) -> str:
        v.store(name, value(v))
        return after

    return write


def done(_: View) -> None:
    """The end of a thread."""


# --- all that can happen ----------------------------------------------------------------------------


class Thread(NamedTuple):
    """A thread in a state: the step that it is about to make, and what it has."""

    step: str
    own: Values
    buffer: Buffer


class State(NamedTuple):
    """What memory holds, and where all threads are."""

    shared: Values
    threads: tuple[Thread, ...]


class Start(NamedTuple):
    """How a thread begins."""

    program: Program
    step: str
    own: Mapping[str, Any] = {}


def _commits(buffer: Buffer, order: Order) -> Iterator[int]:
    """Which of a thread's stores may be the next to reach memory."""
    if order is Order.TSO:
        yield from range(min(1, len(buffer)))
        return
    names = [name for name, _ in buffer]
    yield from (at for at, name in enumerate(names) if name not in names[:at])


def _moves(
    shared: dict[str, Any], thread: Thread, start: Start, order: Order
) -> Iterator[tuple[dict[str, Any], Thread]]:
    """What a thread can do next: memory and the thread as they are then."""
    for at in _commits(thread.buffer, order):
        name, value = thread.buffer[at]
        rest = thread.buffer[:at] + thread.buffer[at + 1 :]
        yield {**shared, name: value}, Thread(thread.step, thread.own, rest)
    view = View(dict(shared), dict(zip(start.own, thread.own, strict=True)), thread.buffer)
    if step := start.program[thread.step](view):
        yield view.shared, Thread(step, tuple(view.own.values()), view.buffer)


def explore(
    shared: Mapping[str, Any], starts: Sequence[Start], order: Order, *, most: int = 100_000
) -> Iterator[dict[str, Any]]:
    """Go through all states; yield what is in memory in those in which no thread can go on.

    Args:
        shared: memory at the beginning.
        starts: the threads.
        order: of stores.
        most: states, so that a mistake in a model has an end.
    """
    first = State(tuple(shared.values()), tuple(Thread(s.step, tuple(s.own.values()), ()) for s in starts))
    known, waiting = {first}, [first]
    while waiting:
        state = waiting.pop()
        memory = dict(zip(shared, state.shared, strict=True))
        ended = True
        for number, thread in enumerate(state.threads):
            for changed, moved in _moves(memory, thread, starts[number], order):
                ended = False
                threads = (*state.threads[:number], moved, *state.threads[number + 1 :])
                after = State(tuple(changed.values()), threads)
                if after not in known:
                    known.add(after)
                    waiting.append(after)
        if ended:
            yield memory
        assert len(known) < most, "more states than the model should have"
