"""What is measured: ports, and for each of them every combination of what is swept."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from guestwire.errors import ConfigurationError

LARGE_FRAME = 65536
"""A frame of 64 KiB, which crosses whole where the port takes offloads (TSO)."""

LONGEST_PLAIN_FRAME = 9018
"""Longer frames are sent as a guest with offloads sends them: their virtio_net_hdr asks for segmentation."""

SHORTEST_FRAME = 60
SMALLEST_RING, LARGEST_RING = 64, 32768  # mergeable buffers for a large frame fit in the smallest
MOST_QUEUE_PAIRS = 64

RING_LAYOUTS: Mapping[str, Mapping[str, Any]] = {"split": {}}
"""Kinds of rings, and the arguments that make `guestwire.testing.FakeGuest` use them."""


@dataclass(frozen=True)
class Kind:
    """A way to measure a port.

    Attributes:
        port: as ``guestwire run --port`` takes it.
        name: for tables and pictures.
        returning: whether the port gives every frame back to the guest, in order; they are verified then.
        trips: what a round trip is; empty if the port has none worth measuring.
        expected_drops: reasons for which the port drops frames by design.
    """

    port: str
    name: str
    returning: bool = False
    trips: str = ""
    expected_drops: frozenset[str] = frozenset()


LOOPBACK = {
    "echo": Kind("echo", "echo", returning=True, trips="until the frame is back"),
    "null": Kind("null", "null", trips="until the buffer is back", expected_drops=frozenset({"no_receiver"})),
}
"""Ports that need nothing of the machine, by name: what is measured if no port is named."""


def kind_of(port: str) -> Kind:
    """Return how a port is measured: a named interface takes what is sent, and what arrives is counted."""
    return LOOPBACK.get(port) or Kind(port, port.split(",", maxsplit=1)[0])


@dataclass(frozen=True)
class Case:
    """One combination: a line of the table.

    Attributes:
        kind: which port, and how.
        layout: which kind of ring, of `RING_LAYOUTS`.
        frame_bytes: length of a frame, without FCS.
        ring_size: entries of each ring.
        queue_pairs: how many.
        with_trips: whether the round trip of single frames is measured, too.
    """

    kind: Kind
    layout: str
    frame_bytes: int
    ring_size: int
    queue_pairs: int
    with_trips: bool

    @property
    def is_large(self) -> bool:
        """Whether it takes offloads."""
        return self.frame_bytes > LONGEST_PLAIN_FRAME

    def __str__(self) -> str:
        pairs = f"{self.queue_pairs} queue pair{'s' if self.queue_pairs > 1 else ''}"
        return f"{self.kind.name}, {self.frame_bytes} bytes, {self.layout} ring of {self.ring_size}, {pairs}"


class Plan(msgspec.Struct, frozen=True):
    """All that is swept, and for how long.

    Attributes:
        kinds: the ports.
        layouts: kinds of rings.
        frame_bytes: lengths of frames.
        ring_sizes: entries of each ring.
        queue_pairs: numbers of queue pairs.
        windows: windows for each figure.
        seconds: length of a window.
        most_seconds: no case is begun later than this; None for no limit.
    """

    kinds: Sequence[Kind]
    layouts: Sequence[str] = tuple(RING_LAYOUTS)
    frame_bytes: Sequence[int] = (64, 256, 1500, LARGE_FRAME)
    ring_sizes: Sequence[int] = (256, 1024)
    queue_pairs: Sequence[int] = (1, 4)
    windows: int = 5
    seconds: float = 0.15
    most_seconds: float | None = None

    def cases(self, kind: Kind) -> list[Case]:
        """Return the cases of a port: what is asked first comes first."""
        swept = itertools.product(self.layouts, self.queue_pairs, self.ring_sizes, self.frame_bytes)
        return [
            Case(
                kind,
                layout,
                frame_bytes,
                ring_size,
                pairs,
                bool(kind.trips) and ring_size == self.ring_sizes[0] and pairs == self.queue_pairs[0],
            )
            for layout, pairs, ring_size, frame_bytes in swept
        ]

    @property
    def count(self) -> int:
        """How many cases there are."""
        return sum(len(self.cases(kind)) for kind in self.kinds)


def check(plan: Plan) -> Plan:
    """Return a plan that can be carried out.

    Raises:
        ConfigurationError: a number in it is out of range.
    """
    ranges = (
        ("--sizes", plan.frame_bytes, SHORTEST_FRAME, LARGE_FRAME),
        ("--rings", plan.ring_sizes, SMALLEST_RING, LARGEST_RING),
        ("--queue-pairs", plan.queue_pairs, 1, MOST_QUEUE_PAIRS),
    )
    for option, numbers, least, most in ranges:
        for number in numbers:
            if not least <= number <= most:
                raise ConfigurationError(f"{option}: {number} is not between {least} and {most}")
    for size in plan.ring_sizes:
        if size & (size - 1):
            raise ConfigurationError(f"--rings: {size} is no power of two", "--rings 256,1024")
    return plan
