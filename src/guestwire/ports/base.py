"""What the control side asks of a port."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence
from typing import Protocol

import guestwire.datapath.port
from guestwire.datapath.window import Window
from guestwire.errors import HostError
from guestwire.virtio.features import Feature

POLL_US = 50  # where polling only reads memory


def require_source(source: str | None, mac: bytes) -> None:
    """Make sure that a guest may have an address announced as its own.

    Args:
        source: the only one that it may send from; None for any.
        mac: the one to announce.

    Raises:
        HostError: it is another.
    """
    if source is not None and mac != bytes.fromhex(source.replace(":", "")):
        raise HostError(
            f"the guest may not announce {mac.hex(':')}: it may send from {source} alone",
            f"give its network device mac={source}, or the port source={mac.hex(':')}",
        )


@dataclasses.dataclass(frozen=True, slots=True)
class PortStatus:
    """What a port is and does, as ``guestwire status`` shows it.

    Attributes:
        kind: ``xdp``, ``tap``, ``wire``, ``echo``, ``null`` or ``pcap``.
        interface: the network interface; None if the port has none.
        mode: an ``xdp`` port's mode in use; None for other ports, or while no guest is attached.
        mode_reason: why it is this mode and not a better one, or what else is to be known.
        pinned_bytes: memory that the kernel keeps pinned for the port.
        kernel: what the kernel counted for its sockets.
        asked_mode: the mode that an ``xdp`` port was asked for.
        network: the name of the wire that a ``wire`` port is on.
        members: the other guests on it.
    """

    kind: str
    interface: str | None = None
    mode: str | None = None
    mode_reason: str | None = None
    pinned_bytes: int = 0
    kernel: dict[str, int] = dataclasses.field(default_factory=dict)
    asked_mode: str | None = None
    network: str | None = None
    members: tuple[str, ...] = ()


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
    """How many frames of 4,096 bytes of our own the window shall have for each queue pair; known from the
    beginning."""

    poll_us: int
    """The longest time that a worker polls the port before it sleeps, unless the user says otherwise, in
    microseconds."""

    in_order: bool
    """Whether the port returns buffers in the order in which the guest made them available."""

    offloads: Feature
    """The offloads that the port can do, as features of the device; known once it is open."""

    @property
    def interface_index(self) -> int | None:
        """The number of the port's network interface; None if it has none, or has not opened it."""

    @property
    def link_up(self) -> bool:
        """Whether frames can pass: what VIRTIO_NET_S_LINK_UP shall say."""

    @property
    def gone(self) -> bool:
        """Whether the interface that was opened is no more. It does not come back, also not by its name."""

    @property
    def trouble(self) -> str | None:
        """Why no frames arrive although the interface is there, as `refresh` has found; None if they can."""

    @property
    def disturbed(self) -> bool:
        """Whether `refresh` has something to mend that no event of the interface has told of."""

    def open(self, queue_pairs: int, leaving: Port | None = None) -> None:
        """Get hold of what the port is made of, and refuse now whatever can be known to be refused later.

        Args:
            queue_pairs: of the guest.
            leaving: the guest's present port, which it leaves for this one, and stays with if this one is
                refused. It is at work: what both need they share, and nothing of it is changed.

        Raises:
            GuestwireError: it is not there, is in use, or may not be used.
        """

    def configure(self, leaving: Port | None = None) -> None:
        """Change what the port is made of as its options say; after `open`, before `attach`.

        Args:
            leaving: the port that had what both share, open and at rest. It may have it back: then this is
                called the other way around.

        Raises:
            GuestwireError: the machine refuses.
        """

    def prepare(self, pair: int, window: Window, queue_size: int, features: Feature) -> None:
        """Do now what takes long in attaching a queue pair: it is to be attached so next, and still works.

        It may work on this port or on another. What cannot be done beforehand is left to `attach`.

        Raises:
            GuestwireError: `attach` is certain to be refused.
        """

    def forget(self) -> None:
        """Give up what was prepared and not attached."""

    def attach(
        self, pair: int, window: Window, queue_size: int, features: Feature
    ) -> guestwire.datapath.port.Port:
        """Join a queue pair to the port.

        Args:
            pair: its number.
            window: the guest's memory.
            queue_size: entries of the larger of its rings.
            features: what the guest's driver accepted.

        Raises:
            GuestwireError: the machine refuses.
        """

    def cover(self, working: Collection[int]) -> Sequence[int]:
        """See to it that what comes in for pairs that are not at work reaches those that are.

        Returns:
            the pairs at work that must be attached anew for that, all detached before the first is attached.
        """

    def uncover(self, pair: int) -> Sequence[int]:
        """Leave to a pair that goes to work next what comes in for it; returns the same as `cover`."""

    def resume(self, pair: int) -> None:
        """Let frames arrive for a queue pair; its first buffers are posted."""

    def quiesce(self, pair: int) -> None:
        """Let no more frames arrive for a queue pair; its worker still runs."""

    def detach(self, pair: int) -> None:
        """Release what `attach` made; no worker has the pair any more. Harmless if nothing is attached."""

    def refresh(self) -> bool:
        """Look at the interface again: at its link, its MTU, and whether it is there.

        Returns:
            whether what is attached must be attached anew, because `mtu` has changed.
        """

    def announce(self, mac: bytes) -> None:
        """Tell the network that the guest with this address is here now (VHOST_USER_SEND_RARP).

        Raises:
            GuestwireError: the machine refuses.
        """

    def status(self) -> PortStatus:
        """Describe the port now."""

    def close(self) -> None:
        """Release everything. Closing twice is harmless."""


class CoversItself:
    """Of a port where frames come in only for pairs that are at work, whichever those are."""

    def cover(self, working: Collection[int]) -> Sequence[int]:
        """Nothing is to be done."""
        return ()

    def uncover(self, pair: int) -> Sequence[int]:
        """Nothing is to be done."""
        return ()
