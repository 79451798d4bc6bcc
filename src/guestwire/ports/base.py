"""What the control side asks of a port."""

from __future__ import annotations

import dataclasses
from typing import Protocol

import guestwire.datapath.port
from guestwire.datapath.window import Window


@dataclasses.dataclass(frozen=True, slots=True)
class PortStatus:
    """What a port is and does, as ``guestwire status`` shows it.

    Attributes:
        kind: ``xdp``, ``echo``, ``null`` or ``pcap``.
        interface: the network interface; None if the port has none.
        mode: an ``xdp`` port's mode in use; None for other ports, or while no guest is attached.
        mode_reason: why it is this mode and not a better one.
        pinned_bytes: memory that the kernel keeps pinned for the port.
        kernel: what the kernel counted for its sockets.
    """

    kind: str
    interface: str | None = None
    mode: str | None = None
    mode_reason: str | None = None
    pinned_bytes: int = 0
    kernel: dict[str, int] = dataclasses.field(default_factory=dict)


class Port(Protocol):
    """Where a guest's frames enter and leave, for all of its queue pairs.

    ``open`` comes first and ``close`` last. In between, ``attach`` and ``detach`` follow the guest's
    rings: each queue pair is attached while both of its rings run.
    """

    mtu: int
    """The largest payload of a frame, in bytes, without the 14 bytes of the Ethernet header."""

    max_queue_pairs: int
    """How many queue pairs the port can serve."""

    bounce_frames: int
    """How many frames of 4,096 bytes of our own the window shall have for each queue pair."""

    def open(self, queue_pairs: int) -> None:
        """Get hold of what the port is made of.

        Raises:
            GuestwireError: it is not there, is in use, or may not be used.
        """

    def attach(self, pair: int, window: Window, queue_size: int) -> guestwire.datapath.port.Port:
        """Join a queue pair to the port; `queue_size` is the larger of its rings'.

        Raises:
            GuestwireError: the machine refuses.
        """

    def resume(self, pair: int) -> None:
        """Let frames arrive for a queue pair; its first buffers are posted."""

    def quiesce(self, pair: int) -> None:
        """Let no more frames arrive for a queue pair; its worker still runs."""

    def detach(self, pair: int) -> None:
        """Release what `attach` made, after the worker has ended. Harmless if nothing is attached."""

    def announce(self, mac: bytes) -> None:
        """Tell the network that the guest with this address is here now (VHOST_USER_SEND_RARP).

        Raises:
            GuestwireError: the machine refuses.
        """

    def status(self) -> PortStatus:
        """Describe the port now."""

    def close(self) -> None:
        """Release everything. Closing twice is harmless."""
