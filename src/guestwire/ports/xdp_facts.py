"""What an ``xdp`` port finds out about an interface and a guest before it decides how to attach."""

from __future__ import annotations

import dataclasses

from guestwire.datapath.window import Window
from guestwire.host import ethtool
from guestwire.host.interface import Interface
from guestwire.host.steering import Steering
from guestwire.host.xdp_program import XdpProgram
from guestwire.ports import geometry, modes
from guestwire.ports.modes import Facts, Obstacle, Plan
from guestwire.ports.pinning import TAKEN, unplugged_obstacle
from guestwire.ports.registration import Registration, contiguous_share
from guestwire.ports.xdp_options import XdpOptions
from guestwire.virtio.features import Feature

BOUNCE_FRAMES = 1024
SEND_FRAMES = 64  # bounce frames that are kept for sending (datapath/xdp.pxd, SEND_RESERVE)

# For drivers whose fill ring must never run dry. While the worker is not there to look, the NIC takes a new
# buffer for each frame until the rx ring is full, so what must be posted beyond the NIC's own ring is a
# full rx ring: the smaller it is, the fewer.
SHORT_RX_ENTRIES = 128
FILL_MARGIN = 64  # the driver refills in batches of up to so many

HUGE_SHARE = 0.99  # of borders between pages that a frame may cross: memory is in large pieces


def gather(
    interface: Interface,
    program: XdpProgram,
    options: XdpOptions,
    queues: range,
    window: Window | None,
    features: Feature,
) -> Facts:
    """Look at everything that the choice of a mode hangs on (`guestwire.ports.modes`).

    Args:
        interface: the interface.
        program: the XDP program on it.
        options: what was asked for.
        queues: those of the guest.
        window: its memory; None before there is any.
        features: what its driver accepted.

    Raises:
        HostError: the kernel does not let us look.
    """
    facts = Facts(
        interface=interface,
        generic_reason="" if program.mode == "native" else program.mode_reason,
        mergeable=Feature.VIRTIO_NET_F_MRG_RXBUF in features,
        # Whoever names a mode that pins has memory for all of it.
        pinning=unplugged_obstacle(window) if window is not None and options.mode == "auto" else None,
        taken=TAKEN if window is not None and window.pages.lost else "",
    )
    if facts.taken or facts.pinning is not None:
        return facts  # to look further would populate memory
    if options.mode not in {"auto", "zero-copy"} or modes.zero_copy_obstacle(facts) is not None:
        return facts
    steering = Steering.read(interface)
    return dataclasses.replace(
        facts,
        shared_reason=None if options.shared else steering.why_shared(queues),
        shared_remedy=steering.remedy(queues),
        starving=_starving(interface),
        huge_pages=window is None or contiguous_share(window) >= HUGE_SHARE,
        trust_mtu=options.trust_mtu,
    )


def _never_starve(interface: Interface, plan: Plan) -> bool:
    return plan.mode == "zero-copy" and geometry.known(interface.driver).repeats_when_starved


def rx_ring_size(interface: Interface, plan: Plan) -> int | None:
    """Return how many entries the rx ring must not exceed; None if that does not matter."""
    return SHORT_RX_ENTRIES if _never_starve(interface, plan) else None


def buffers_needed(interface: Interface, plan: Plan) -> int:
    """Return how many buffers the kernel must have at any time; 0 if the driver can do with fewer."""
    return _reserve(interface) if _never_starve(interface, plan) else 0


def _reserve(interface: Interface) -> int:
    return (ethtool.receive_ring_size(interface.name) or 0) + SHORT_RX_ENTRIES + FILL_MARGIN


def _starving(interface: Interface) -> Obstacle | None:
    """Say why a driver that may never run out of buffers could."""
    if not geometry.known(interface.driver).repeats_when_starved:
        return None
    ring = ethtool.receive_ring_size(interface.name)
    if ring is not None and _reserve(interface) <= BOUNCE_FRAMES - SEND_FRAMES:
        return None
    return Obstacle(
        f"driver {interface.driver} must never run out of buffers, and its ring has "
        f"{'an unknown number' if ring is None else ring} of them",
        f"ethtool -G {interface.name} rx 256",
    )


def why_copies(interface: Interface, registration: Registration, queue_size: int, reserve: int) -> str:
    """Say what keeps frames from going in zero copy although the mode is; empty if nothing does."""
    plan = registration.plan
    notes = []
    if plan.mode == "zero-copy" and plan.geometry.chunk < geometry.LARGEST_CHUNK:
        notes.append(
            f"the guest's memory lies in scattered pages, {registration.share:.0%} of the borders "
            "between them can be crossed: give it huge pages"
        )
    if queue_size < reserve:
        notes.append(
            f"driver {interface.driver} must always have {reserve} buffers, the guest's ring has "
            f"{queue_size}, so received frames are copied: start the guest with rx_queue_size=1024"
        )
    return "; ".join(notes)
