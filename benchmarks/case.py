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
        guest: forwarding mode of the guest's testpmd.
        backend: forwarding mode of the backend, if it is testpmd.
        port: the port of the backend, if it is guestwire.
        received_by: who counts: the side that frames arrive at.
        circulates: whether the guest only sends on what it receives, and has to begin.
    """

    guest: str
    backend: str
    port: str
    received_by: Literal["guest", "backend"]
    circulates: bool = False


WORKS = {
    "loop": Work("io", "io", "echo", "guest", circulates=True),
    "sink": Work("txonly", "rxonly", "null", "backend"),
    "source": Work("rxonly", "txonly", "pcap:{capture},repeat=yes", "guest"),
    "wire": Work("io", "io", "wire:lan,wait_us=1000000", "guest", circulates=True),
    "guest-to-nic": Work("txonly", "io", "xdp:{interface},mode=direct", "backend"),
    "nic-to-guest": Work("rxonly", "io", "xdp:{interface},mode=direct", "guest"),
}


@dataclass(frozen=True)
class Case:
    """One row of the results.

    Attributes:
        scenario: its name.
        work: what the sides do, of `WORKS`; empty if testpmd is not the driver.
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
        words = [self.work] if self.work not in {"", self.scenario} else []
        words.append(f"{self.ring} {self.queue_size}" if self.queue_size != Case.queue_size else self.ring)
        if not self.mergeable:
            words.append("not mergeable")
        if self.queue_pairs > 1:
            words.append(f"{self.queue_pairs} queue pairs")
        if self.guests > 1 and self.scenario != "wire":
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


def _one_way(name: str) -> Callable[[Sweep], Iterator[Case]]:
    def cases(sweep: Sweep) -> Iterator[Case]:
        for ring, size in itertools.product(sweep.rings, sweep.sizes):
            yield Case(name, name, size, ring)

    return cases


SCENARIOS: dict[str, Callable[[Sweep], Iterable[Case]]] = {
    "loop": _loop,
    "sink": _one_way("sink"),
    "source": _one_way("source"),
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
