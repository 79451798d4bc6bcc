"""Which receive queue a NIC puts a frame on, as the ethtool ioctl says it and changes it.

Two things decide.  A *flow rule* (``ethtool -n``) names a queue for the frames that it matches; the
first rule that matches wins.  For all others the NIC computes a hash and looks it up in the *RSS
indirection table* (``ethtool -x``), each entry of which names a queue.  A flow rule may also point
to an RSS context: a further table, over whose queues the frames of the rule are spread.

Layouts and commands are those of ``linux/ethtool.h``.
"""

from __future__ import annotations

import ctypes
import errno
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from guestwire.host import ethtool

_ETHTOOL_GRXCLSRLCNT: Final = 0x2E
_ETHTOOL_GRXCLSRULE: Final = 0x2F
_ETHTOOL_GRXCLSRLALL: Final = 0x30
_ETHTOOL_SRXCLSRLDEL: Final = 0x31
_ETHTOOL_SRXCLSRLINS: Final = 0x32
_ETHTOOL_SRXFHINDIR: Final = 0x39
_ETHTOOL_GRSSH: Final = 0x46

_ETHER_FLOW: Final = 0x12
_FLOW_RSS: Final = 0x20000000
_RX_CLS_LOC_SPECIAL: Final = 0x80000000
_RX_CLS_LOC_ANY: Final = 0xFFFFFFFF
_RING_BITS: Final = 32  # of a ring cookie; those above name a VF, or say that the frame is dropped

_SPARE_LOCATIONS: Final = 64  # for rules that appear between counting and listing them


class _EthernetHeader(ctypes.Structure):
    """``struct ethhdr``."""

    _fields_ = (
        ("destination", ctypes.c_ubyte * 6),
        ("source", ctypes.c_ubyte * 6),
        ("protocol", ctypes.c_ubyte * 2),
    )


class _FlowUnion(ctypes.Union):
    """``union ethtool_flow_union``, of which we know one member."""

    _fields_ = (("ethernet", _EthernetHeader), ("bytes", ctypes.c_ubyte * 52))


class _FlowSpecification(ctypes.Structure):
    """``struct ethtool_rx_flow_spec``."""

    _fields_ = (
        ("flow_type", ctypes.c_uint32),
        ("value", _FlowUnion),
        ("value_extension", ctypes.c_ubyte * 20),
        ("mask", _FlowUnion),
        ("mask_extension", ctypes.c_ubyte * 20),
        ("ring_cookie", ctypes.c_uint64),
        ("location", ctypes.c_uint32),
    )


class _Classification(ctypes.Structure):
    """``struct ethtool_rxnfc``; an array of locations may begin where the structure's padding is."""

    _fields_ = (
        ("cmd", ctypes.c_uint32),
        ("flow_type", ctypes.c_uint32),
        ("data", ctypes.c_uint64),
        ("rule", _FlowSpecification),
        ("count_or_context", ctypes.c_uint32),
    )


_LOCATIONS_OFFSET: Final = _Classification.count_or_context.offset + 4


class _Hash(ctypes.Structure):
    """``struct ethtool_rxfh``; the indirection table follows, then the key."""

    _fields_ = (
        ("cmd", ctypes.c_uint32),
        ("rss_context", ctypes.c_uint32),
        ("indirection_size", ctypes.c_uint32),
        ("key_size", ctypes.c_uint32),
        ("hash_function", ctypes.c_uint8),
        ("reserved", ctypes.c_uint8 * 7),
    )


class _Indirection(ctypes.Structure):
    """``struct ethtool_rxfh_indir``; the table follows."""

    _fields_ = (("cmd", ctypes.c_uint32), ("size", ctypes.c_uint32))


@dataclass(frozen=True, slots=True)
class FlowRule:
    """A flow rule of a NIC.

    Attributes:
        location: its number.
        mac: the destination address, if the rule matches all frames to one address and no others.
        queues: where its frames may land: none if the rule drops them or hands them to a VF, and
            ``None`` if the driver does not show over which queues the rule spreads them.
    """

    location: int
    mac: str | None
    queues: frozenset[int] | None


def indirection_table(name: str, context: int = 0) -> tuple[int, ...] | None:
    """The queue that each entry of the RSS indirection table names.

    Args:
        name: the interface.
        context: the number of an RSS context; 0 for the table of frames that no rule matches.

    Returns:
        ``None`` if the driver has no such table, or does not show it.

    Raises:
        OSError: with ``ENODEV`` if there is no such interface.
    """
    header = _Hash(cmd=_ETHTOOL_GRSSH, rss_context=context)
    try:
        ethtool.request(name, header)
        size: int = header.indirection_size
        if size == 0:
            return None
        # With a key size of 0 the kernel keeps the key to itself.
        buffer = ctypes.create_string_buffer(ctypes.sizeof(_Hash) + 4 * size)
        answer = _Hash.from_buffer(buffer)
        answer.cmd, answer.rss_context, answer.indirection_size = _ETHTOOL_GRSSH, context, size
        ethtool.request(name, buffer)
    except OSError as error:
        if error.errno == errno.ENODEV:
            raise
        return None
    return tuple((ctypes.c_uint32 * size).from_buffer(buffer, ctypes.sizeof(_Hash)))


def set_indirection_table(name: str, table: Sequence[int]) -> None:
    """Change the RSS indirection table, and leave hash function and key alone.

    Args:
        name: the interface.
        table: a queue for each entry; empty for the driver's default, which also lets the table
            follow the number of queues again.

    Raises:
        OSError: with ``EPERM`` without CAP_NET_ADMIN, ``EOPNOTSUPP`` or ``EINVAL`` if the driver
            does not allow it.
    """
    buffer = ctypes.create_string_buffer(ctypes.sizeof(_Indirection) + 4 * len(table))
    header = _Indirection.from_buffer(buffer)
    header.cmd, header.size = _ETHTOOL_SRXFHINDIR, len(table)
    (ctypes.c_uint32 * len(table)).from_buffer(buffer, ctypes.sizeof(_Indirection))[:] = list(table)
    ethtool.request(name, buffer)


def flow_rules(name: str) -> tuple[FlowRule, ...] | None:
    """All flow rules of interface ``name``, or ``None`` if its driver knows no such thing.

    Raises:
        OSError: with ``ENODEV`` if there is no such interface; others if there are rules and they
            cannot be read.
    """
    try:
        locations, _ = _locations(name)
    except OSError as error:
        if error.errno in {errno.EOPNOTSUPP, errno.EINVAL}:
            return None
        raise
    found = (flow_rule(name, location) for location in locations)
    return tuple(rule for rule in found if rule)


def flow_rule(name: str, location: int) -> FlowRule | None:
    """The flow rule at a location, or ``None`` if there is none.

    Raises:
        OSError: it cannot be read.
    """
    request = _Classification(cmd=_ETHTOOL_GRXCLSRULE, rule=_FlowSpecification(location=location))
    try:
        ethtool.request(name, request)
    except OSError as error:
        # Drivers differ in how they say that there is none.
        if error.errno in {errno.ENOENT, errno.EINVAL}:
            return None
        raise
    rule: Any = request.rule
    context: int | None = request.count_or_context if rule.flow_type & _FLOW_RSS else None
    return FlowRule(location, _only_destination(rule), _queues(name, rule.ring_cookie, context))


def insert_mac_rule(name: str, mac: str, queue: int) -> FlowRule:
    """Lead all frames to one destination address to a receive queue.

    Args:
        name: the interface.
        mac: the address, such as ``02:00:00:00:00:01``.
        queue: the receive queue, counted from 0.

    Returns:
        The rule as the driver has stored it.

    Raises:
        OSError: with ``EPERM`` without CAP_NET_ADMIN, ``EOPNOTSUPP`` or ``EINVAL`` if the driver
            has no rules of that kind, ``EEXIST`` if it has one for that address, ``ENOSPC`` if it
            has no place for another one.
    """
    request = mac_rule_request(mac, queue, _free_location(name))
    ethtool.request(name, request)
    rule: Any = request.rule
    stored = flow_rule(name, rule.location)
    if stored is None:
        raise OSError(errno.EIO, "the driver took the flow rule and does not show it", name)
    return stored


def delete_rule(name: str, location: int) -> None:
    """Delete the flow rule at a location.

    Raises:
        OSError: there is none (the error differs by driver), or ``EPERM`` without CAP_NET_ADMIN.
    """
    rule = _FlowSpecification(location=location)
    ethtool.request(name, _Classification(cmd=_ETHTOOL_SRXCLSRLDEL, rule=rule))


def mac_rule_request(mac: str, queue: int, location: int) -> ctypes.Structure:
    """The request that inserts a rule for a destination address."""
    rule = _FlowSpecification(flow_type=_ETHER_FLOW, ring_cookie=queue, location=location)
    rule.value.ethernet.destination[:] = list(bytes.fromhex(mac.replace(":", "")))
    rule.mask.ethernet.destination[:] = [0xFF] * 6
    return _Classification(cmd=_ETHTOOL_SRXCLSRLINS, rule=rule)


def _locations(name: str) -> tuple[tuple[int, ...], int]:
    """The locations of the rules, and the number of locations, 0 if the driver does not say."""
    count = _Classification(cmd=_ETHTOOL_GRXCLSRLCNT)
    ethtool.request(name, count)
    room: int = count.count_or_context + _SPARE_LOCATIONS
    buffer = ctypes.create_string_buffer(_LOCATIONS_OFFSET + 4 * room)
    listing = _Classification.from_buffer(buffer)
    listing.cmd, listing.count_or_context = _ETHTOOL_GRXCLSRLALL, room
    ethtool.request(name, buffer)
    found = (ctypes.c_uint32 * room).from_buffer(buffer, _LOCATIONS_OFFSET)
    return tuple(found[: min(room, listing.count_or_context)]), listing.data


def _free_location(name: str) -> int:
    """Where to put a rule: the driver's choice if it wants to choose, else the last free location.

    The last one has the lowest priority, so that whoever makes a rule after us still can have his
    way.
    """
    count = _Classification(cmd=_ETHTOOL_GRXCLSRLCNT)
    ethtool.request(name, count)
    if count.data & _RX_CLS_LOC_SPECIAL:
        return _RX_CLS_LOC_ANY
    taken, size = _locations(name)
    free = next((location for location in reversed(range(size)) if location not in taken), None)
    if free is None:
        raise OSError(errno.ENOSPC, f"all {size} places for flow rules are taken", name)
    return free


def _only_destination(rule: _FlowSpecification) -> str | None:
    """The destination address, if the rule compares that, all of it, and nothing else."""
    if rule.flow_type & ~_FLOW_RSS != _ETHER_FLOW:
        return None
    mask = bytes(rule.mask.bytes)[: ctypes.sizeof(_EthernetHeader)]
    if mask != b"\xff" * 6 + bytes(8):
        return None
    return bytes(rule.value.ethernet.destination).hex(":")


def _queues(name: str, ring_cookie: int, context: int | None) -> frozenset[int] | None:
    if ring_cookie >> _RING_BITS:
        return frozenset()
    if context is None:
        return frozenset({ring_cookie})
    table = indirection_table(name, context)
    return None if table is None else frozenset(ring_cookie + entry for entry in table)
