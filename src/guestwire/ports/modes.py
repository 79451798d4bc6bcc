"""Which mode an ``xdp`` port gets: one decision, for ``run`` and for ``doctor``.

Facts in, plans out, best first; whoever carries them out tries one after the other.
"""

from __future__ import annotations

import dataclasses
from typing import Literal, get_args

from guestwire.errors import HostError
from guestwire.host.interface import Interface
from guestwire.ports import geometry
from guestwire.ports.geometry import Geometry

Mode = Literal["auto", "zero-copy", "direct", "bounce"]
MODES: tuple[Mode, ...] = get_args(Mode)

PINNING_MODES = frozenset({"zero-copy", "direct"})


@dataclasses.dataclass(frozen=True, slots=True)
class Obstacle:
    """Why a mode is not to be had, and what to do about it.

    Attributes:
        why: half a sentence, to stand behind the mode's name and a colon.
        remedy: the next command to type.
    """

    why: str
    remedy: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What the decision hangs on.

    Attributes:
        interface: the interface now.
        generic_reason: why its XDP program runs, or would run, in generic mode; empty if in the driver.
        shared_reason: who else's frames can reach the queues; None if they are the guest's alone.
        shared_remedy: what makes them the guest's alone.
        starving: why a driver could run out of buffers that may not.
        pinning: what stands against pinning the guest's memory, if anything does.
        taken: why none of it may be pinned, whatever is asked for: pages of it were taken away.
        huge_pages: the guest's memory is, as a device sees it, in pieces much larger than a frame.
        trust_mtu: no frame longer than the interface's MTU allows ever comes from the wire.
        mergeable: the guest takes a frame over several buffers (VIRTIO_NET_F_MRG_RXBUF).
    """

    interface: Interface
    generic_reason: str = ""
    shared_reason: str | None = None
    shared_remedy: str = ""
    starving: Obstacle | None = None
    pinning: Obstacle | None = None
    taken: str = ""
    huge_pages: bool = True
    trust_mtu: bool = False
    mergeable: bool = True


@dataclasses.dataclass(frozen=True, slots=True)
class Plan:
    """One way to attach: a mode, its geometry, and why no better one was taken."""

    mode: Mode
    geometry: Geometry
    reason: str = ""

    @property
    def pins(self) -> bool:
        """Whether it registers the guest's memory, which pins all of it."""
        return self.mode in PINNING_MODES


def plans(wanted: Mode, facts: Facts) -> list[Plan]:
    """List the ways to attach, best first, each with why a better one is not on the list.

    Memory that is taken away is not pinned, also where a mode was asked for by name: the NIC would go on with
    pages that the guest no longer has, and send what they held.

    Raises:
        HostError: the mode that is asked for by name is not to be had.
    """
    if facts.taken and wanted != "bounce":
        return [Plan("bounce", _geometry("bounce", facts), facts.taken)]
    candidates = MODES[1:] if wanted == "auto" else (wanted,)
    found: list[Plan] = []
    reasons: list[str] = []
    for mode in candidates:
        obstacle = _obstacle(mode, facts)
        if obstacle is None:
            found.append(Plan(mode, _geometry(mode, facts), "; ".join(reasons)))
        elif wanted == mode:
            raise HostError(
                f"interface {facts.interface.name} cannot do mode={mode}: {obstacle.why}", obstacle.remedy
            )
        else:
            reasons.append(f"{mode}: {obstacle.why}")
    return found


def _geometry(mode: Mode, facts: Facts) -> Geometry:
    interface = facts.interface
    if mode == "zero-copy":
        lies = geometry.zero_copy_mode(
            interface.mtu, interface.driver, huge_pages=facts.huge_pages, trust_mtu=facts.trust_mtu
        )
        assert lies is not None, "an MTU too large is an obstacle"
        return lies
    return geometry.copy_mode(interface.mtu, mergeable=facts.mergeable, in_place=mode == "direct")


def _obstacle(mode: Mode, facts: Facts) -> Obstacle | None:
    if mode == "zero-copy" and (obstacle := zero_copy_obstacle(facts)):
        return obstacle
    return facts.pinning if mode in PINNING_MODES else None


def zero_copy_obstacle(facts: Facts) -> Obstacle | None:
    """Say why zero-copy mode need not even be tried; what the kernel says when it is tried comes later."""
    interface = facts.interface
    name = interface.name
    if interface.xdp is not None and not interface.xdp.zero_copy:
        return Obstacle(
            f"driver {interface.driver} does not offer it",
            f"use mode=direct, or another NIC or a newer kernel: guestwire doctor {name}",
        )
    if facts.generic_reason:
        return Obstacle(f"it needs native XDP: {facts.generic_reason}", f"guestwire doctor {name}")
    if geometry.zero_copy_mode(interface.mtu, interface.driver) is None:
        return Obstacle(
            f"frames of MTU {interface.mtu} do not fit in one chunk as driver {interface.driver} lays them "
            "out",
            f"ip link set dev {name} mtu {geometry.largest_zero_copy_mtu(interface.driver)}",
        )
    if interface.iommu_group_type not in {None, "identity"}:
        return Obstacle(
            f"the IOMMU translates for it (group type {interface.iommu_group_type}), which scatters the "
            "guest's memory",
            "boot with iommu.passthrough=1",
        )
    if facts.shared_reason is not None:
        return Obstacle(
            f"{facts.shared_reason}, and a frame for somebody else would lie in the guest's memory",
            facts.shared_remedy,
        )
    return facts.starving
