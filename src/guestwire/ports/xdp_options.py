"""What may be said of an xdp port beside its interface."""

from __future__ import annotations

import dataclasses
from typing import Literal

from guestwire.ports.modes import Mode
from guestwire.virtio.features import GUEST_OFFLOADS, Feature

Headers = Literal["auto", "in-place", "copied"]
Offloads = Literal["auto", "yes", "no"]
Payload = Literal["auto", "in-place"]

_SENDING = (
    Feature.VIRTIO_NET_F_CSUM
    | Feature.VIRTIO_NET_F_HOST_TSO4
    | Feature.VIRTIO_NET_F_HOST_TSO6
    | Feature.VIRTIO_NET_F_HOST_ECN
    | Feature.VIRTIO_NET_F_HOST_USO
    | Feature.VIRTIO_NET_F_GUEST_CSUM
)
_MERGING = (
    Feature.VIRTIO_NET_F_GUEST_CSUM
    | Feature.VIRTIO_NET_F_GUEST_TSO4
    | Feature.VIRTIO_NET_F_GUEST_TSO6
    | Feature.VIRTIO_NET_F_GUEST_ECN
)


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
        offloads: let the guest leave checksums and segmentation to us; ``auto`` does so unless zero-copy
            mode is asked for by name, because such frames are copied there.
        guest_offloads: offer to leave checksums and merged frames to the guest (VIRTIO_NET_F_GUEST_...).
        payload: send the payload of segments ``in-place``, from the guest's pages, where the kernel takes a
            frame in several pieces; ``auto`` copies what then fits in one piece, which the kernel is faster
            with, because it copies each piece of a frame to a page of its own.
        gro: merge received segments of one flow for a guest that takes large frames.
        busy_poll: have workers that poll run the NIC's driver, in place of its interrupts.
        busy_poll_budget: how many frames it then takes in one call.
    """

    queue: int = 0
    mode: Mode = "auto"
    shared: bool = False
    steer: str | None = None
    trust_mtu: bool = False
    headers: Headers = "auto"
    source: str | None = None
    offloads: Offloads = "auto"
    guest_offloads: bool = True
    payload: Payload = "auto"
    gro: bool = False
    busy_poll: bool = False
    busy_poll_budget: int = 64

    @property
    def copies_headers(self) -> bool:
        """Whether frames are sent with copied headers."""
        return self.headers == "copied" or (self.headers == "auto" and self.source is not None)

    @property
    def features(self) -> Feature:
        """What the guest is offered on account of the port."""
        offered = Feature(0)
        if self.offloads == "yes" or (self.offloads == "auto" and self.mode != "zero-copy"):
            offered |= _SENDING
        if self.gro:
            offered |= _MERGING
        return offered if self.guest_offloads else offered & ~GUEST_OFFLOADS
