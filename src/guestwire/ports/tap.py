"""The tap port: a TAP interface, whose kernel does in software what the guest does not accept.

The interface may exist, be made for the port's life, or come as open queues from whoever started us. A queue
of an interface for several is detached while its queue pair is not at work, so that no flow is steered to
nobody; that of any other interface keeps what arrives, as many frames as its queue length allows, for the
next attachment.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging

import guestwire.datapath.port
from guestwire.datapath.tap import TapPort
from guestwire.datapath.window import Window
from guestwire.errors import ConfigurationError, GuestwireError, HostError
from guestwire.host.tap import (
    SEGMENTATION,
    UDP_SEGMENTATION,
    Offload,
    TapInterface,
)
from guestwire.host.tap_opening import adopt_tap, open_tap, own_name
from guestwire.ports.base import CoversItself, Port, PortStatus
from guestwire.virtio.features import GUEST_OFFLOADS, Feature, names, net_header_size

log = logging.getLogger(__name__)

MOST_QUEUE_PAIRS = 64
USUAL_MTU = 1500
LONGEST_TAP_MTU = 65521  # to the kernel, the Ethernet header counts
ETHERNET_AND_VLANS = 22  # 14 bytes and two tags
LONGEST_GSO_FRAME = 65535 + ETHERNET_AND_VLANS

# What a guest may ask of the kernel goes with what the kernel may leave to the guest. UFO, which Linux can
# no longer send, is not among it.
_OFFLOADS = {
    SEGMENTATION: (
        Feature.VIRTIO_NET_F_CSUM
        | Feature.VIRTIO_NET_F_GUEST_CSUM
        | Feature.VIRTIO_NET_F_HOST_TSO4
        | Feature.VIRTIO_NET_F_HOST_TSO6
        | Feature.VIRTIO_NET_F_HOST_ECN
        | Feature.VIRTIO_NET_F_GUEST_TSO4
        | Feature.VIRTIO_NET_F_GUEST_TSO6
        | Feature.VIRTIO_NET_F_GUEST_ECN
    ),
    UDP_SEGMENTATION: (
        Feature.VIRTIO_NET_F_HOST_USO | Feature.VIRTIO_NET_F_GUEST_USO4 | Feature.VIRTIO_NET_F_GUEST_USO6
    ),
}

_LARGE_FRAMES = (
    Feature.VIRTIO_NET_F_GUEST_TSO4
    | Feature.VIRTIO_NET_F_GUEST_TSO6
    | Feature.VIRTIO_NET_F_GUEST_USO4
    | Feature.VIRTIO_NET_F_GUEST_USO6
)


def features_of(offloads: Offload) -> Feature:
    """Return what a guest can be offered with these offloads."""
    offered = Feature(0)
    for needed, features in _OFFLOADS.items():
        if needed in offloads:
            offered |= features
    return offered


def offloads_for(accepted: Feature) -> Offload:
    """Return what the kernel may leave to a guest that accepted these features, and no more."""
    if Feature.VIRTIO_NET_F_GUEST_CSUM not in accepted:
        return Offload(0)
    offloads = Offload.TUN_F_CSUM
    if Feature.VIRTIO_NET_F_GUEST_TSO4 in accepted:
        offloads |= Offload.TUN_F_TSO4
    if Feature.VIRTIO_NET_F_GUEST_TSO6 in accepted:
        offloads |= Offload.TUN_F_TSO6
    if offloads != Offload.TUN_F_CSUM and Feature.VIRTIO_NET_F_GUEST_ECN in accepted:
        offloads |= Offload.TUN_F_TSO_ECN
    if Feature.VIRTIO_NET_F_GUEST_USO4 | Feature.VIRTIO_NET_F_GUEST_USO6 in accepted:
        offloads |= UDP_SEGMENTATION
    return offloads


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TapOptions:
    """Which interface, and how.

    Attributes:
        fds: open queues to use, in the order of the queue pairs; empty to open the interface by its name.
        netns: the network namespace that it is in: a name under /run/netns or a path; None for ours.
        bridge: a bridge in that namespace to add it to; None for none.
        mtu: its MTU, to be set; None to leave it.
        offloads: offer what the kernel can do.
        guest_offloads: also of that the half which the guest has to understand (VIRTIO_NET_F_GUEST_...).
    """

    fds: tuple[int, ...] = ()
    netns: str | None = None
    bridge: str | None = None
    mtu: int | None = None
    offloads: bool = True
    guest_offloads: bool = True

    def of(self, possible: Feature) -> Feature:
        """Return what is offered of what the kernel can do."""
        if not self.offloads:
            return Feature(0)
        return possible if self.guest_offloads else possible & ~GUEST_OFFLOADS


class TapControl(CoversItself):
    """A TAP interface, one queue for each queue pair.

    Args:
        interface: its name; empty if the options name descriptors.
        options: which one, and how.
    """

    bounce_frames = 0
    trouble = None
    disturbed = False
    poll_us = 0  # each poll would be a system call
    in_order = True

    def __init__(self, interface: str, options: TapOptions | None = None) -> None:
        self.name = interface
        self.options = options = options or TapOptions()
        self.max_queue_pairs = len(options.fds) or MOST_QUEUE_PAIRS
        self.mtu = options.mtu or USUAL_MTU
        self.offloads = Feature(0)
        self._interface: TapInterface | None = None
        self._owner = False  # of the interface, which a port that the guest leaves for this one may share
        self._next_mtu: int | None = None
        self._bridge: str | None = None
        self._up = False
        self._gone = False
        self._attached: dict[int, TapPort] = {}

    # --- the port's life -----------------------------------------------------------------------------

    def open(self, queue_pairs: int, leaving: Port | None = None) -> None:
        """Open or make the interface, or share it with the port that the guest leaves.

        Raises:
            GuestwireError: it is of another kind, in use, or otherwise made; or the machine refuses.
        """
        interface = self._of(leaving)
        self._owner = interface is None
        self._interface = interface = interface or self._take(queue_pairs)
        self._gone, self.name = False, interface.name
        if self._owner:
            for queue in range(len(interface.queues)):
                interface.detach_queue(queue)
            log.info("%s TAP interface %s", "made" if interface.created else "opened", self.name)
        self.offloads = self.options.of(features_of(interface.supported_offloads))
        self.refresh()
        if self._gone:
            raise HostError(f"TAP interface {self.name} is gone already", "ip -brief link")
        self._foresee(interface)

    def _of(self, leaving: Port | None) -> TapInterface | None:
        """Return the interface of another port of the guest, if this one means the same."""
        if not isinstance(leaving, TapControl) or leaving._interface is None:
            return None
        mine, other = self.options, leaving.options
        if (mine.fds, mine.netns) != (other.fds, other.netns) or leaving._interface.look() is None:
            return None
        same = bool(mine.fds) or own_name(self.name, mine.netns) == leaving._interface.name
        return leaving._interface if same else None

    def _foresee(self, interface: TapInterface) -> None:
        """Look whether `configure` will be refused, and which MTU it will set."""
        bridge, mtu = self.options.bridge, self.options.mtu
        if bridge is not None:
            if interface.ours or self.options.netns is not None:
                bridge = own_name(bridge, self.options.netns)
            interface.require_joinable(bridge)
            if mtu is None and interface.created:
                # A bridge takes the smallest MTU of its members.
                mtu = interface.mtu_of(bridge)
        if mtu is not None:
            interface.set_mtu(interface.mtu_of(self.name))  # changes nothing, but asks whether we may
            self.mtu = mtu
        self._next_mtu, self._bridge = mtu, bridge

    def _take(self, queue_pairs: int) -> TapInterface:
        fds = self.options.fds
        if not fds:
            return open_tap(self.name, queue_pairs, self.options.netns)
        if len(fds) != queue_pairs:
            raise ConfigurationError(
                f"port tap: {len(fds)} descriptors for {queue_pairs} queue pairs",
                f"use --queue-pairs {len(fds)}",
            )
        return adopt_tap(fds)

    def configure(self, leaving: Port | None = None) -> None:
        """Give the interface what the options say.

        Raises:
            GuestwireError: the machine refuses.
        """
        interface = self._interface
        assert interface is not None
        if isinstance(leaving, TapControl) and leaving._interface is interface:
            self._owner, leaving._owner = True, False
        if self._next_mtu is not None:
            interface.set_mtu(self._next_mtu)
        if self._bridge is not None:
            interface.join(self._bridge)
        if interface.created:
            interface.set_up()
        self.refresh()
        log.info("TAP interface %s, offloads: %s", self.name, ", ".join(names(self.offloads)) or "none")
        if not self.link_up:
            log.warning("TAP interface %s is down; ip link set dev %s up", self.name, self.name)

    def close(self) -> None:
        """Close the queues; an interface that was made here goes with them."""
        for pair in list(self._attached):
            self.detach(pair)
        if self._interface is not None and self._owner:
            self._interface.close()
        self._interface = None

    # --- a queue pair's attachment -------------------------------------------------------------------

    def prepare(self, pair: int, window: Window, queue_size: int, features: Feature) -> None:
        """Nothing takes long."""

    def forget(self) -> None:
        """Nothing is prepared."""

    def attach(
        self, pair: int, window: Window, queue_size: int, features: Feature
    ) -> guestwire.datapath.port.Port:
        """Have the interface talk to the guest as it has negotiated.

        Raises:
            GuestwireError: the interface is gone.
        """
        assert self._interface is not None
        accepted = features & self.offloads  # from this port; from another it may have accepted more
        self._interface.set_header_size(net_header_size(features))
        self._interface.set_offloads(offloads_for(accepted))
        longest = self.mtu + ETHERNET_AND_VLANS
        self._attached[pair] = port = TapPort(
            self._interface.queues[pair],
            longest_frame=longest,
            longest_received=LONGEST_GSO_FRAME if accepted & _LARGE_FRAMES else longest,
        )
        return port

    def resume(self, pair: int) -> None:
        """Let frames come to the pair's queue."""
        assert self._interface is not None
        self._interface.attach_queue(pair)

    def quiesce(self, pair: int) -> None:
        """Let them come to other queues, if there are any."""
        if self._interface is not None:
            with contextlib.suppress(GuestwireError):  # it is gone
                self._interface.detach_queue(pair)

    def detach(self, pair: int) -> None:
        """Leave the pair's queue alone."""
        port = self._attached.pop(pair, None)
        if port is not None:
            self.quiesce(pair)
            port.close()

    def announce(self, mac: bytes) -> None:
        """Send a gratuitous RARP from the guest's end of the interface."""
        if self._interface is not None:
            self._interface.announce(mac)

    # --- what it says of itself ----------------------------------------------------------------------

    def status(self) -> PortStatus:
        """Describe the port."""
        note = None
        if self._interface is not None and not self._interface.ours:
            note = "in another network namespace: its link and its MTU are not followed"
        return PortStatus("tap", self.name or None, mode_reason=note)

    def takes_along(self, interface_index: int) -> bool:
        """Whether an interface goes when this port is closed, because it was made here."""
        interface = self._interface
        return interface is not None and interface.created and interface_index == self.interface_index

    @property
    def interface_index(self) -> int | None:
        """The interface's number, if it is open and in our namespace."""
        interface = self._interface
        return interface.index if interface is not None and interface.ours else None

    @property
    def link_up(self) -> bool:
        """Whether the interface was up when it was last looked at; taken for up where nobody tells us."""
        return self._up or (self._interface is not None and not self._interface.ours and not self._gone)

    @property
    def gone(self) -> bool:
        """Whether the interface was no more when it was last looked at."""
        return self._gone

    def refresh(self) -> bool:
        """Look at the interface again, under the name that it has now.

        Returns:
            whether the MTU has changed, so that longer frames may come and go, or only shorter ones.
        """
        assert self._interface is not None
        link = self._interface.look()
        if link is None:
            self._gone, self._up = True, False
            return False
        before = self.mtu
        self.name, self._up = link.name, link.up is not False
        if link.mtu is not None:
            self.mtu = link.mtu
        return self.mtu != before
