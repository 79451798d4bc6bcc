"""What is measured: scenarios, and for each of them the cases that it is swept over."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

RingLayout = Literal["split", "packed"]

BURST = 32
"""Frames that testpmd moves at once."""

CIRCULATING = 192
"""Frames on their way in each ring, where they circulate: fewer than entries, so that no ring is full."""

LARGE_FRAME = 65536


@dataclass(frozen=True)
class Work:
    """What both sides of a scenario do, in the words of each.

    Attributes:
        backend: forwarding mode of the backend, if it is testpmd.
        port: the port of the backend, if it is guestwire.
        guest: forwarding mode of the guest's testpmd; empty if the guest is our own driver.
        received_by: who counts: where frames arrive.
        circulates: whether the guest only sends on what it receives, and has to begin.
        paired: whether two guests send to each other; else each gets its own frames back.
        interface: whether the backend also has a network interface.
        polling: the sides that can use all of their CPU, and must get it.
    """

    backend: str
    port: str
    guest: str = ""
    received_by: Literal["guest", "backend", "far end"] = "guest"
    circulates: bool = False
    paired: bool = False
    interface: bool = False
    polling: tuple[str, ...] = ("backend", "guest")


WIRE = "wire:lan,wait_us=1000000"
NIC = "xdp:{interface},mode=direct"

WORKS = {
    "loop": Work("io", "echo", "io", circulates=True),
    "sink": Work("rxonly", "null", "txonly", "backend"),
    "source": Work("txonly", "pcap:{capture},repeat=yes", "rxonly"),
    "wire": Work("io", WIRE, "io", circulates=True, paired=True),
    "guest to NIC": Work("io", NIC, "txonly", "far end", interface=True),
    # The generator takes the guest's CPU away, and interrupts take the backend's.
    "NIC to guest": Work("io", NIC, "rxonly", interface=True, polling=()),
    "round trip": Work("io", "echo"),
    "idle": Work("io", "echo", polling=()),
    "large frames": Work("io", WIRE, paired=True),
}


@dataclass(frozen=True)
class Case:
    """One row of the results.

    Attributes:
        scenario: its name.
        work: what the sides do, of `WORKS`.
        size: bytes of a frame.
        ring: layout of the rings.
        mergeable: whether VIRTIO_NET_F_MRG_RXBUF is negotiated.
        queue_size: entries of a ring.
        queue_pairs: of each guest.
        guests: how many.
    """

    scenario: str
    work: str
    size: int
    ring: RingLayout = "split"
    mergeable: bool = True
    queue_size: int = 256
    queue_pairs: int = 1
    guests: int = 1

    @property
    def rings(self) -> int:
        """How many rings there are in each direction."""
        return self.queue_pairs * self.guests

    def described(self) -> str:
        """Say in words what tells it from others of its scenario and size."""
        words = [self.work] if self.work != self.scenario else []
        words.append(f"{self.ring} {self.queue_size}" if self.queue_size != Case.queue_size else self.ring)
        if not self.mergeable:
            words.append("not mergeable")
        if self.queue_pairs > 1:
            words.append(f"{self.queue_pairs} queue pairs")
        if self.guests > 1 and not WORKS[self.work].paired:
            words.append(f"{self.guests} guests")
        return ", ".join(words)


@dataclass(frozen=True)
class Sweep:
    """What the user may narrow.

    Attributes:
        sizes: bytes of a frame.
        rings: layouts.
        mergeable: on, off or both, where a scenario tells them apart.
    """

    sizes: Sequence[int] = (64, 1500)
    rings: Sequence[RingLayout] = ("split", "packed")
    mergeable: Sequence[bool] = (True, False)


def _loop(sweep: Sweep) -> Iterator[Case]:
    for ring, mergeable, size in itertools.product(sweep.rings, sweep.mergeable, sweep.sizes):
        yield Case("loop", "loop", size, ring, mergeable)


def _each(scenario: str, *works: str, guests: int = 1) -> Callable[[Sweep], Iterator[Case]]:
    def cases(sweep: Sweep) -> Iterator[Case]:
        for work, ring, size in itertools.product(works, sweep.rings, sweep.sizes):
            yield Case(scenario, work, size, ring, guests=guests)

    return cases


def _veth(sweep: Sweep) -> Iterator[Case]:
    # Rings are not what decides there.
    for work, size in itertools.product(("guest to NIC", "NIC to guest"), sweep.sizes):
        yield Case("veth", work, size, sweep.rings[0])


def _wire(sweep: Sweep) -> Iterator[Case]:
    yield from _each("wire", "wire", guests=2)(sweep)
    yield Case("wire", "large frames", LARGE_FRAME, sweep.rings[0], guests=2)


def _latency(sweep: Sweep) -> Iterator[Case]:
    yield from _each("latency", "round trip")(sweep)
    yield Case("latency", "idle", sweep.sizes[0], sweep.rings[0])


def _scaling(sweep: Sweep) -> Iterator[Case]:
    for ring in sweep.rings:
        first = Case("scaling", "loop", sweep.sizes[0], ring)
        yield first
        for many in (2, 4):
            yield replace(first, queue_pairs=many)
        for many in (2, 4):
            yield replace(first, guests=many)
        for entries in (1024, 4096):
            yield replace(first, queue_size=entries)


SCENARIOS: dict[str, Callable[[Sweep], Iterable[Case]]] = {
    "loop": _loop,
    "sink": _each("sink", "sink"),
    "source": _each("source", "source"),
    "veth": _veth,
    "wire": _wire,
    "latency": _latency,
    "scaling": _scaling,
}
"""The cases of each scenario; those with the same contenders come one after the other."""


def cases(names: Iterable[str], sweep: Sweep) -> list[list[Case]]:
    """Return the cases of some scenarios, those together that differ in nothing but the size."""
    found = (case for name in names for case in SCENARIOS[name](sweep))
    return [list(group) for _, group in itertools.groupby(found, _contenders)]


def _contenders(case: Case) -> Case:
    """What is equal for cases that can have the same contenders: these are told the size of frames."""
    # But not guestwire with its file of frames.
    return case if case.work == "source" else replace(case, size=0)
