"""Checks of the machine and of an interface: what ``guestwire doctor`` prints, and ``run`` may ask.

A status of ``problem`` means that ``guestwire run`` refuses an ``xdp`` port for that reason.  A
check looks at facts that were collected before and does not change the machine.
"""

from __future__ import annotations

from dataclasses import dataclass

from guestwire.errors import HostError
from guestwire.host.af_xdp_probe import AfXdpProbe, probe
from guestwire.host.capabilities import HostCapabilities
from guestwire.host.checks.check import Check, Status, require, worst
from guestwire.host.checks.interface import interface_checks
from guestwire.host.checks.machine import XDP_PORT_CAPABILITIES, machine_checks
from guestwire.host.interface import Interface
from guestwire.host.steering import Steering

__all__ = [
    "XDP_PORT_CAPABILITIES",
    "Check",
    "Findings",
    "Status",
    "diagnose",
    "inspect",
    "interface_checks",
    "machine_checks",
    "require",
    "worst",
]


@dataclass(frozen=True, slots=True)
class Findings:
    """The facts that checks look at.

    Attributes:
        host: the machine.
        queue: the receive queue of the interface that is meant for a guest, counted from 0.
        interface: the interface; ``None`` if none was asked for, or it could not be read.
        unreadable: why it could not be read.
        probe: what binding to the queue showed; ``None`` if it was not tried.
        steering: how frames reach its queues; ``None`` if that could not be read.
    """

    host: HostCapabilities
    queue: int = 0
    interface: Interface | None = None
    unreadable: HostError | None = None
    probe: AfXdpProbe | None = None
    steering: Steering | None = None


def inspect(interface_name: str | None, queue: int) -> Findings:
    """Look at the machine and, if one is named, at an interface.

    Naming an interface is the permission to bind a socket to its queue for a moment, which some
    NICs answer with a reset.  The interface of the default route is never bound to.

    Args:
        interface_name: which interface; ``None`` for the machine alone.
        queue: the receive queue of the interface that is meant for a guest, counted from 0.
    """
    host = HostCapabilities.read()
    if interface_name is None:
        return Findings(host, queue)
    try:
        interface = Interface.open(interface_name)
    except HostError as error:
        return Findings(host, queue, unreadable=error)
    found = _probe_if_harmless(host, interface, queue)
    return Findings(host, queue, interface, probe=found, steering=_steering(interface))


def diagnose(findings: Findings, largest_mtu: int, queue_pairs: int = 1) -> list[Check]:
    """Check the machine and, if one was named, an interface.

    Args:
        findings: what `inspect` saw.
        largest_mtu: the largest MTU that a port accepts in any mode, in bytes.
        queue_pairs: how many queues are meant for a guest.
    """
    checks = list(machine_checks(findings.host))
    if (error := findings.unreadable) is not None:
        checks.append(Check("link", Status.PROBLEM, str(error), "it cannot be a port", error.remedy))
    if findings.interface is not None:
        checks += interface_checks(
            findings.interface,
            findings.queue,
            largest_mtu,
            findings.probe,
            findings.steering,
            queue_pairs,
        )
    return checks


def _probe_if_harmless(host: HostCapabilities, interface: Interface, queue: int) -> AfXdpProbe | None:
    permitted = host.capabilities >= XDP_PORT_CAPABILITIES
    # With a program attached somebody else is at work on the interface.
    if not permitted or interface.carries_default_route or interface.programs:
        return None
    try:
        return probe(interface, queue)
    except HostError:
        # What is missing has a check of its own: the queue, or the family.
        return None


def _steering(interface: Interface) -> Steering | None:
    try:
        return Steering.read(interface)
    except HostError:
        return None
