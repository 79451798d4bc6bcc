"""Checks of the machine and of an interface: what ``guestwire doctor`` prints, and ``run`` may ask.

A status of ``problem`` means that ``guestwire run`` refuses an ``xdp`` port for that reason.  A
check looks at facts that were collected before and does not change the machine.
"""

from __future__ import annotations

from guestwire.errors import HostError
from guestwire.host.af_xdp_probe import AfXdpProbe, probe
from guestwire.host.capabilities import HostCapabilities
from guestwire.host.checks.check import Check, Status, require, worst
from guestwire.host.checks.interface import interface_checks
from guestwire.host.checks.machine import XDP_PORT_CAPABILITIES, machine_checks
from guestwire.host.interface import Interface

__all__ = [
    "XDP_PORT_CAPABILITIES",
    "Check",
    "Status",
    "diagnose",
    "interface_checks",
    "machine_checks",
    "require",
    "worst",
]


def diagnose(interface_name: str | None, queue: int, largest_mtu: int) -> list[Check]:
    """Check the machine and, if one is named, an interface.

    Naming an interface is the permission to bind a socket to its queue for a moment, which some
    NICs answer with a reset.  The interface of the default route is never bound to.

    Args:
        interface_name: which interface; ``None`` for the machine alone.
        queue: the receive queue of the interface that is meant for a guest, counted from 0.
        largest_mtu: the largest MTU that a port accepts in any mode, in bytes.
    """
    host = HostCapabilities.read()
    checks = list(machine_checks(host))
    if interface_name is None:
        return checks
    try:
        interface = Interface.open(interface_name)
    except HostError as error:
        unusable = "it cannot be a port"
        return [*checks, Check("link", Status.PROBLEM, str(error), unusable, error.remedy)]
    found = _probe_if_harmless(host, interface, queue)
    return [*checks, *interface_checks(interface, queue, largest_mtu, found)]


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
