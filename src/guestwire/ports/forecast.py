"""What a guest of a given size would cost and get on this machine, said before anything is started."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence

from guestwire.host.af_xdp_probe import AfXdpProbe
from guestwire.host.checks import Check, Findings, Status
from guestwire.host.checks.guest_memory import GuestMemory, check_guest_memory, check_mode
from guestwire.host.checks.interface import check_queue, generic_reason
from guestwire.host.interface import Interface
from guestwire.host.pinned_memory import locked_memory_limit, registration_cost
from guestwire.host.steering import Steering
from guestwire.ports import geometry
from guestwire.ports.modes import Facts, Mode, Obstacle, plans
from guestwire.ports.pinning import pinning_obstacle, window_bytes
from guestwire.ports.xdp_facts import BOUNCE_FRAMES
from guestwire.sizes import format_size


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PlannedGuest:
    """A guest that is thought of.

    Attributes:
        memory_bytes: its memory.
        queue_pairs: how many queue pairs it is to have.
        max_pinned: the limit on pinned memory that is to hold for it, in bytes; None for none.
    """

    memory_bytes: int
    queue_pairs: int = 1
    max_pinned: int | None = None


def guest_checks(findings: Findings, guest: PlannedGuest, checks: Sequence[Check]) -> list[Check]:
    """Check what the guest's memory would cost and, if an interface was named, which mode it would get.

    Args:
        findings: the machine and the interface.
        guest: which guest.
        checks: what they came to; with a problem among them, there is no mode.
    """
    bounce_frames = guest.queue_pairs * BOUNCE_FRAMES
    window = window_bytes(guest.memory_bytes, bounce_frames)
    obstacle = _pinning(findings, guest, window)
    memory = GuestMemory(
        guest_bytes=guest.memory_bytes,
        queue_pairs=guest.queue_pairs,
        direct=registration_cost(window, geometry.LARGEST_CHUNK, zero_copy=False),
        zero_copy=registration_cost(window, geometry.SMALLEST_CHUNK, zero_copy=True),
        limit=_limits(findings, guest),
    )
    bounce_obstacle = _pinning(findings, guest, bounce_frames * geometry.FRAME_BYTES)
    pinned = check_guest_memory(memory, _words(obstacle), _words(bounce_obstacle))
    if findings.interface is None:
        return [pinned]
    queues = range(findings.queue, findings.queue + guest.queue_pairs)
    answers = [pinned]
    if guest.queue_pairs > 1:
        last = check_queue(findings.interface, queues[-1])
        answers.append(dataclasses.replace(last, name="guest-queues"))
    problems = [check.name for check in (*checks, *answers) if check.status is Status.PROBLEM]
    if problems:
        return [*answers, check_mode(None, f"an xdp port is refused: see {', '.join(problems)}")]
    facts = _facts(findings.interface, findings.steering, queues, obstacle)
    return [*answers, check_mode(*_decide(facts, findings.probe))]


def _pinning(findings: Findings, guest: PlannedGuest, size: int) -> Obstacle | None:
    return pinning_obstacle(
        size,
        geometry.LARGEST_CHUNK,
        registrations=guest.queue_pairs,
        machine_bytes=os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        locked_limit=locked_memory_limit(findings.host),
        budget=guest.max_pinned,
    )


def _limits(findings: Findings, guest: PlannedGuest) -> str:
    limits = []
    if (locked := locked_memory_limit(findings.host)) is not None:
        limits.append(f"the limit on locked memory is {format_size(locked)}")
    if guest.max_pinned is not None:
        limits.append(f"max_pinned is {format_size(guest.max_pinned)}")
    return " and ".join(limits) or "no limit stands against it"


def _words(obstacle: Obstacle | None) -> tuple[str, str] | None:
    return None if obstacle is None else (obstacle.why, obstacle.remedy)


def _facts(interface: Interface, steering: Steering | None, queues: range, pinning: Obstacle | None) -> Facts:
    if steering is None:
        shared: str | None = "the driver does not say whose frames can reach the queues"
        remedy = f"ethtool -n {interface.name}"
    else:
        shared, remedy = steering.why_shared(queues), steering.remedy(queues)
    return Facts(
        interface=interface,
        generic_reason=generic_reason(interface),
        shared_reason=shared,
        shared_remedy=remedy,
        pinning=pinning,
    )


def _decide(facts: Facts, probe: AfXdpProbe | None) -> tuple[Mode, str]:
    """Decide as ``run`` does, and add what a bind showed; return the mode, and why it is no better one."""
    best, *others = plans("auto", facts)
    if best.mode == "zero-copy" and probe is not None and not probe.zero_copy.available:
        return others[0].mode, f"zero-copy: {probe.zero_copy.reason}"
    return best.mode, best.reason
