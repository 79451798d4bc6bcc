"""From the words of a port's description to the port: ``xdp:eth1,queue=2,mode=direct``."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, get_args

from guestwire.errors import ConfigurationError
from guestwire.ports.base import Port
from guestwire.ports.budget import GuestBudget
from guestwire.ports.modes import MODES
from guestwire.ports.simple import PcapControl, SimplePort
from guestwire.ports.tap import LONGEST_TAP_MTU, TapControl, TapOptions
from guestwire.ports.wire import WireControl, WireOptions
from guestwire.ports.xdp import XdpControl
from guestwire.ports.xdp_options import Headers, Offloads, Payload, XdpOptions

SYNTAX = (
    "xdp:IFNAME[,queue=N][,mode=auto|zero-copy|direct|bounce][,shared=yes][,steer=MAC][,trust-mtu=yes]"
    "[,headers=auto|in-place|copied][,source=MAC][,offloads=auto|yes|no][,guest-offloads=no]"
    "[,payload=auto|in-place][,gro=yes][,busy-poll=yes][,busy-poll-budget=N]  "
    "tap:IFNAME|fd=N[+M...][,netns=NS][,bridge=BR][,mtu=N][,offloads=yes|no][,guest-offloads=no]  "
    "wire:NAME[,source=MAC][,ageing=S][,wait_us=N][,guest-offloads=no]  "
    "pcap:IN[,OUT][,repeat=yes]  echo  null"
)

_MAC = re.compile("([0-9a-fA-F]{2}:){5}[0-9a-fA-F]{2}")
_INTERFACE = re.compile("[^/:%\\s]{1,127}")  # own names have up to 15 bytes, alternative ones up to 127
_NETWORK = re.compile("[A-Za-z0-9_.-]{1,64}")
_LEAST_AGEING_SECONDS, _MOST_AGEING_SECONDS = 10, 1_000_000  # IEEE 802.1Q
_MOST_WAIT_US = 1_000_000


def _xdp(arguments: str, budget: GuestBudget | None, guest: str) -> XdpControl:
    interface, *options = arguments.split(",")
    if not interface:
        raise ConfigurationError("port xdp: which interface?", f"use {SYNTAX}")
    chosen = _understand(f"port xdp:{interface}", options, _XDP_OPTIONS)
    if "source" in chosen and chosen.get("headers") == "in-place":
        raise ConfigurationError(
            f"port xdp:{interface}: a source can only be checked in a copied header, which the guest cannot "
            "change afterwards",
            "use headers=copied, or leave headers out",
        )
    if chosen.get("gro") and not chosen.get("guest_offloads", True):
        raise ConfigurationError(
            f"port xdp:{interface}: frames are merged only for a guest that is offered large ones",
            "leave gro or guest-offloads out",
        )
    return XdpControl(interface, XdpOptions(**chosen), budget=budget, guest=guest)


def _tap(arguments: str) -> TapControl:
    interface, *options = arguments.split(",")
    if interface.startswith("fd="):
        chosen = _understand("port tap", [interface, *options], {"fd": _numbers, **_TAP_OPTIONS})
        if "netns" in chosen:
            raise ConfigurationError(
                "port tap: the network namespace of an open descriptor is that of its interface",
                "leave netns out",
            )
        return TapControl("", TapOptions(fds=chosen.pop("fd"), **chosen))
    if not _INTERFACE.fullmatch(interface) or interface in {".", ".."}:
        raise ConfigurationError(
            f"port tap: {interface!r} is no name for an interface"
            if interface
            else "port tap: which interface?",
            f"use {SYNTAX}",
        )
    return TapControl(interface, TapOptions(**_understand(f"port tap:{interface}", options, _TAP_OPTIONS)))


def _wire(arguments: str, guest: str) -> WireControl:
    network, *options = arguments.split(",")
    if not _NETWORK.fullmatch(network):
        raise ConfigurationError(
            f"port wire: {network!r} is no name for a wire: letters, digits and _.- are, up to 64"
            if network
            else "port wire: which one?",
            f"use {SYNTAX}; the guests of a process that name the same wire are joined",
        )
    chosen = _understand(f"port wire:{network}", options, _WIRE_OPTIONS)
    return WireControl(network, WireOptions(**chosen), guest=guest)


def _pcap(arguments: str) -> PcapControl:
    source, *options = arguments.split(",")
    sink = options.pop(0) if options and options[0].partition("=")[0] not in _PCAP_OPTIONS else ""
    if not source and not sink:
        raise ConfigurationError("port pcap: which files?", f"use {SYNTAX}")
    chosen = _understand(f"port pcap:{source}", options, _PCAP_OPTIONS)
    if chosen.get("repeat") and not source:
        raise ConfigurationError("port pcap: there is no input to repeat", f"use {SYNTAX}")
    return PcapControl(source, sink, **chosen)


def _understand(
    port: str, options: Iterable[str], meanings: Mapping[str, Callable[[str], object]]
) -> dict[str, Any]:
    """Return what the options of a port mean, by name."""
    chosen: dict[str, Any] = {}
    for option in options:
        key, _, value = option.partition("=")
        name = key.replace("-", "_")
        if name in chosen or key not in meanings or (meaning := meanings[key](value)) is None:
            raise ConfigurationError(f"{port}: cannot understand {option!r}", f"use {SYNTAX}")
        chosen[name] = meaning
    return chosen


def _numbers(value: str) -> tuple[int, ...] | None:
    """Return different descriptors."""
    if not re.fullmatch(r"[0-9]{1,9}(\+[0-9]{1,9})*", value):
        return None
    numbers = tuple(map(int, value.split("+")))
    return numbers if len(set(numbers)) == len(numbers) else None


def _mtu(value: str) -> int | None:
    """Return an MTU that a guest can be told (virtio 1.3, 5.1.4.1: 68 at least)."""
    return int(value) if re.fullmatch("[0-9]{1,5}", value) and 68 <= int(value) <= LONGEST_TAP_MTU else None


def _number(value: str, least: int, most: int) -> int | None:
    """Return a number within these limits."""
    return int(value) if re.fullmatch("[0-9]{1,9}", value) and least <= int(value) <= most else None


def _mac(value: str) -> str | None:
    """Return the address of one station, in small letters."""
    return value.lower() if _MAC.fullmatch(value) and not int(value[:2], 16) & 1 else None


# What each option's words mean; None if nothing.
_XDP_OPTIONS: dict[str, Callable[[str], object]] = {
    "queue": lambda value: int(value) if re.fullmatch("[0-9]{1,5}", value) else None,
    "mode": lambda value: value if value in MODES else None,
    "shared": {"yes": True, "no": False}.get,
    "steer": _mac,
    "trust-mtu": {"yes": True, "no": False}.get,
    "headers": lambda value: value if value in get_args(Headers) else None,
    "source": _mac,
    "offloads": lambda value: value if value in get_args(Offloads) else None,
    "guest-offloads": {"yes": True, "no": False}.get,
    "payload": lambda value: value if value in get_args(Payload) else None,
    "gro": {"yes": True, "no": False}.get,
    "busy-poll": {"yes": True, "no": False}.get,
    "busy-poll-budget": lambda value: _number(value, 1, 65535),
}
_TAP_OPTIONS: dict[str, Callable[[str], object]] = {
    "netns": lambda value: value or None,
    "bridge": lambda value: value if _INTERFACE.fullmatch(value) else None,
    "mtu": _mtu,
    "offloads": {"yes": True, "no": False}.get,
    "guest-offloads": {"yes": True, "no": False}.get,
}
_WIRE_OPTIONS: dict[str, Callable[[str], object]] = {
    "source": _mac,
    "ageing": lambda value: _number(value, _LEAST_AGEING_SECONDS, _MOST_AGEING_SECONDS),
    "wait_us": lambda value: _number(value, 0, _MOST_WAIT_US),
    "guest-offloads": {"yes": True, "no": False}.get,
}
_PCAP_OPTIONS: dict[str, Callable[[str], object]] = {
    "repeat": {"yes": True, "no": False}.get,
}


def parse_port(description: str, budget: GuestBudget | None = None, guest: str = "") -> Port:
    """Make the port that `description` names; nothing is opened yet.

    Args:
        description: in the words of `SYNTAX`.
        budget: what the guest may have pinned; without one, any amount.
        guest: what the guest is called.

    Raises:
        ConfigurationError: it is none.
    """
    kind, _, arguments = description.partition(":")
    if kind in {"echo", "null"} and not arguments:
        return SimplePort(kind)
    if kind == "xdp":
        return _xdp(arguments, budget, guest)
    if kind == "tap":
        return _tap(arguments)
    if kind == "wire":
        return _wire(arguments, guest)
    if kind == "pcap":
        return _pcap(arguments)
    raise ConfigurationError(f"unknown port {description!r}", f"use {SYNTAX}")
