"""From the words of a port's description to the port: ``xdp:eth1,queue=2,mode=direct``."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, get_args

from guestwire.errors import ConfigurationError
from guestwire.ports.base import Port
from guestwire.ports.budget import GuestBudget
from guestwire.ports.modes import MODES
from guestwire.ports.simple import PcapControl, SimplePort
from guestwire.ports.xdp import XdpControl
from guestwire.ports.xdp_options import Headers, XdpOptions

SYNTAX = (
    "xdp:IFNAME[,queue=N][,mode=auto|zero-copy|direct|bounce][,shared=yes][,steer=MAC][,trust-mtu=yes]"
    "[,headers=auto|in-place|copied][,source=MAC]  pcap:IN[,OUT]  echo  null"
)

_MAC = re.compile("([0-9a-fA-F]{2}:){5}[0-9a-fA-F]{2}")


def _xdp(arguments: str, budget: GuestBudget | None) -> XdpControl:
    interface, *options = arguments.split(",")
    if not interface:
        raise ConfigurationError("port xdp: which interface?", f"use {SYNTAX}")
    chosen: dict[str, Any] = {}
    for option in options:
        key, _, value = option.partition("=")
        name = key.replace("-", "_")
        if name in chosen or key not in _OPTIONS or (meaning := _OPTIONS[key](value)) is None:
            raise ConfigurationError(f"port xdp:{interface}: cannot understand {option!r}", f"use {SYNTAX}")
        chosen[name] = meaning
    if "source" in chosen and chosen.get("headers") == "in-place":
        raise ConfigurationError(
            f"port xdp:{interface}: a source can only be checked in a copied header, which the guest cannot "
            "change afterwards",
            "use headers=copied, or leave headers out",
        )
    return XdpControl(interface, XdpOptions(**chosen), budget=budget)


def _mac(value: str) -> str | None:
    """Return the address of one station, in small letters."""
    return value.lower() if _MAC.fullmatch(value) and not int(value[:2], 16) & 1 else None


# What each option's words mean; None if nothing.
_OPTIONS: dict[str, Callable[[str], object]] = {
    "queue": lambda value: int(value) if re.fullmatch("[0-9]{1,5}", value) else None,
    "mode": lambda value: value if value in MODES else None,
    "shared": {"yes": True, "no": False}.get,
    "steer": _mac,
    "trust-mtu": {"yes": True, "no": False}.get,
    "headers": lambda value: value if value in get_args(Headers) else None,
    "source": _mac,
}


def parse_port(description: str, budget: GuestBudget | None = None) -> Port:
    """Make the port that `description` names; nothing is opened yet.

    Args:
        description: in the words of `SYNTAX`.
        budget: what the guest may have pinned; without one, any amount.

    Raises:
        ConfigurationError: it is none.
    """
    kind, _, arguments = description.partition(":")
    if kind in {"echo", "null"} and not arguments:
        return SimplePort(kind)
    if kind == "xdp":
        return _xdp(arguments, budget)
    if kind == "pcap":
        source, _, sink = arguments.partition(",")
        if not source and not sink:
            raise ConfigurationError("port pcap: which files?", f"use {SYNTAX}")
        return PcapControl(source, sink)
    raise ConfigurationError(f"unknown port {description!r}", f"use {SYNTAX}")
