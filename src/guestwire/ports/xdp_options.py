"""What may be said of an xdp port beside its interface."""

from __future__ import annotations

import dataclasses
from typing import Literal

from guestwire.ports.modes import Mode

Headers = Literal["auto", "in-place", "copied"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class XdpOptions:
    """How an interface's queues are to be used.

    Attributes:
        queue: that of the first queue pair; the others follow.
        mode: what is asked for; ``auto`` takes the best that works and says why it is not better.
        shared: use zero-copy mode also on queues that others' frames can reach.
        steer: make the queues the guest's alone by a flow rule for this address, ``02:00:00:00:00:01``
            for example, as long as the port is open.
        trust_mtu: no frame longer than the interface's MTU allows ever comes from the wire, because the
            switch sees to it. Then buffers that hold just such a frame, as Linux guests post them, are
            used in zero-copy mode, too.
        headers: send frames ``in-place``, or their first 128 bytes ``copied``; ``auto`` copies if they are
            looked at.
        source: the only address that the guest may send from; None for any.
    """

    queue: int = 0
    mode: Mode = "auto"
    shared: bool = False
    steer: str | None = None
    trust_mtu: bool = False
    headers: Headers = "auto"
    source: str | None = None

    @property
    def copies_headers(self) -> bool:
        """Whether frames are sent with copied headers."""
        return self.headers == "copied" or (self.headers == "auto" and self.source is not None)
