"""Stand-ins: sockets on the queues of an interface whose pairs are not at work.

An interface spreads frames over its queues, whichever of its queue pairs a guest uses. So the pairs that are
at work share the queues of the others among themselves (`datapath/xdp_stand_in.pyx`).
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Collection, Sequence

from guestwire.datapath.window import Window
from guestwire.datapath.xdp_socket import XdpSocket
from guestwire.errors import GuestwireError
from guestwire.host.interface import Interface
from guestwire.ports import geometry
from guestwire.ports.budget import GuestBudget
from guestwire.ports.modes import Plan
from guestwire.ports.registration import Registration

MOST_FRAMES = 512  # of one stand-in; a power of two

log = logging.getLogger(__name__)


def share_out(pairs: int, working: Collection[int]) -> dict[int, tuple[int, ...]]:
    """Return for each pair at work those of the others, numbered from 0, whose queues it takes: evenly."""
    takers = sorted(working)
    idle = [pair for pair in range(pairs) if pair not in working]
    return {taker: tuple(idle[number :: len(takers)]) for number, taker in enumerate(takers)}


def describe(stand_ins: Sequence[StandIn]) -> str:
    """Say what stand-ins are for; empty if there are none."""
    if not stand_ins:
        return ""
    queues = ", ".join(map(str, sorted(one.queue for one in stand_ins)))
    return (
        f"frames that come in on {'queue' if len(stand_ins) == 1 else 'queues'} {queues} are copied "
        "(other_queue), since the guest does not use the queue pairs there"
    )


@dataclasses.dataclass(frozen=True, slots=True)
class StandIn:
    """A socket on the queue of a pair that is not at work, with that pair's share of the bounce frames.

    Attributes:
        queue: of the interface.
        registration: the socket and its memory, some of the window's bounce frames.
        frames: where these lie in the window.
    """

    queue: int
    registration: Registration
    frames: range

    @classmethod
    def open(
        cls,
        interface: Interface,
        queue: int,
        window: Window,
        frames: range,
        *,
        budget: GuestBudget,
        released_at: float,
    ) -> StandIn:
        """Register up to MOST_FRAMES of the frames and bind to the queue, in copy mode.

        Raises:
            GuestwireError: the budget or the kernel refuses.
        """
        frames = frames[: MOST_FRAMES * geometry.FRAME_BYTES]
        registration = Registration(
            window,
            Plan("bounce", geometry.copy_mode(interface.mtu)),
            interface.name,
            queue,
            ring_size=MOST_FRAMES,
            rx_size=MOST_FRAMES,
            budget=budget,
            released_at=released_at,
            frames=frames,
        )
        try:
            registration.bind(interface.index)
        except BaseException:
            registration.close()
            raise
        return cls(queue, registration, frames)

    @property
    def for_port(self) -> tuple[XdpSocket, int, int]:
        """What `XdpPort` is told of it."""
        return self.registration.socket, self.frames.start, len(self.frames) // geometry.FRAME_BYTES


def open_all(
    interface: Interface,
    window: Window,
    places: Sequence[tuple[int, range]],
    *,
    budget: GuestBudget,
    released_at: float,
) -> list[StandIn]:
    """Open a stand-in on each of these queues with these frames; where that fails there is none."""
    opened = []
    for queue, frames in places:
        try:
            stand_in = StandIn.open(interface, queue, window, frames, budget=budget, released_at=released_at)
        except GuestwireError as error:
            log.warning(
                "%s: frames that come in on queue %d do not reach the guest, which does not use that queue "
                "pair: %s; %s",
                interface.name,
                queue,
                error,
                error.remedy,
            )
        else:
            opened.append(stand_in)
    if opened:
        log.info("%s: %s", interface.name, describe(opened))
    return opened
