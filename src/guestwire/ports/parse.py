"""From the words of a port's description to the port: ``xdp:eth1,queue=2,mode=direct``."""

from __future__ import annotations

from guestwire.errors import ConfigurationError
from guestwire.ports.base import Port
from guestwire.ports.simple import PcapControl, SimplePort
from guestwire.ports.xdp import MODES, Mode, XdpControl

SYNTAX = "xdp:IFNAME[,queue=N][,mode=auto|zero-copy|direct|bounce]  pcap:IN[,OUT]  echo  null"


def _xdp(arguments: str) -> XdpControl:
    interface, *options = arguments.split(",")
    if not interface:
        raise ConfigurationError("port xdp: which interface?", f"use {SYNTAX}")
    queue, mode = 0, MODES[0]
    for option in options:
        key, _, value = option.partition("=")
        if key == "queue" and value.isascii() and value.isdigit():
            queue = int(value)
        elif key == "mode" and value in MODES:
            mode = _mode(value)
        else:
            raise ConfigurationError(f"port xdp:{interface}: cannot understand {option!r}", f"use {SYNTAX}")
    return XdpControl(interface, queue, mode)


def _mode(value: str) -> Mode:
    return next(mode for mode in MODES if mode == value)


def parse_port(description: str) -> Port:
    """Make the port that `description` names; nothing is opened yet.

    Raises:
        ConfigurationError: it is none.
    """
    kind, _, arguments = description.partition(":")
    if kind in {"echo", "null"} and not arguments:
        return SimplePort(kind)
    if kind == "xdp":
        return _xdp(arguments)
    if kind == "pcap":
        source, _, sink = arguments.partition(",")
        if not source and not sink:
            raise ConfigurationError("port pcap: which files?", f"use {SYNTAX}")
        return PcapControl(source, sink)
    raise ConfigurationError(f"unknown port {description!r}", f"use {SYNTAX}")
