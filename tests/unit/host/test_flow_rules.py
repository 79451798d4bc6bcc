"""The layouts of ``linux/ethtool.h``, and what is made of a driver's answers."""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Callable
from typing import Any

import pytest

from guestwire.host import ethtool, flow_rules
from guestwire.host.flow_rules import FlowRule

GUEST = "52:54:00:00:00:09"

# What a compiler says of the header's structures on a 64-bit machine.
RULE_OFFSET, VALUE_OFFSET, MASK_OFFSET, COOKIE_OFFSET, LOCATION_OFFSET = 16, 4, 76, 152, 160
REQUEST_BYTES, COUNT_OFFSET, LOCATIONS_OFFSET = 192, 184, 188
ETHER_FLOW, TCP_V4_FLOW, FLOW_MAC_EXT, FLOW_RSS = 0x12, 0x01, 0x40000000, 0x20000000
DISCARD = 2**64 - 1


def test_mac_rule_request() -> None:
    request = bytes(flow_rules.mac_rule_request(GUEST, 3, 14))
    assert len(request) == REQUEST_BYTES
    expected = bytearray(REQUEST_BYTES)
    struct.pack_into("=I", expected, 0, 0x32)  # ETHTOOL_SRXCLSRLINS
    struct.pack_into("=I", expected, RULE_OFFSET, ETHER_FLOW)
    struct.pack_into("6s", expected, RULE_OFFSET + VALUE_OFFSET, bytes.fromhex("525400000009"))
    struct.pack_into("6s", expected, RULE_OFFSET + MASK_OFFSET, b"\xff" * 6)
    struct.pack_into("=QI", expected, RULE_OFFSET + COOKIE_OFFSET, 3, 14)
    assert request == bytes(expected)


class Driver:
    """Answers requests as bytes, as a driver does: it knows none of our structures."""

    def __init__(self, size: int = 16, special: bool = False) -> None:
        self.rules: dict[int, bytes] = {}
        self.contexts: dict[int, list[int]] = {0: [0, 1] * 64}
        self.size, self.special = size, special
        self.commands: list[int] = []

    def add(
        self, location: int, flow_type: int, mac: bytes, mask: bytes, cookie: int, context: int = 0
    ) -> None:
        rule = bytearray(168)
        struct.pack_into("=I", rule, 0, flow_type)
        struct.pack_into("6s", rule, VALUE_OFFSET, mac)
        struct.pack_into(f"{len(mask)}s", rule, MASK_OFFSET, mask)
        struct.pack_into("=QI", rule, COOKIE_OFFSET, cookie, location)
        self.rules[location] = bytes(rule) + struct.pack("=I", context)

    def __call__(self, _: str, argument: Any) -> None:
        memory = (ctypes.c_char * ctypes.sizeof(argument)).from_buffer(argument)
        (command,) = struct.unpack_from("=I", memory)
        self.commands.append(command)
        answers: dict[int, Callable[[Any], None]] = {
            0x2E: self._count,
            0x2F: self._rule,
            0x30: self._list,
            0x32: self._insert,
            0x39: self._set_table,
            0x46: self._table,
        }
        answers[command](memory)

    def _count(self, memory: Any) -> None:
        struct.pack_into("=Q", memory, 8, self.size | 0x80000000 if self.special else 0)
        struct.pack_into("=I", memory, COUNT_OFFSET, len(self.rules))

    def _list(self, memory: Any) -> None:
        (room,) = struct.unpack_from("=I", memory, COUNT_OFFSET)
        assert room >= len(self.rules)
        assert len(memory) >= LOCATIONS_OFFSET + 4 * room
        struct.pack_into("=Q", memory, 8, self.size)
        struct.pack_into("=I", memory, COUNT_OFFSET, len(self.rules))
        struct.pack_into(f"={len(self.rules)}I", memory, LOCATIONS_OFFSET, *self.rules)

    def _rule(self, memory: Any) -> None:
        (location,) = struct.unpack_from("=I", memory, RULE_OFFSET + LOCATION_OFFSET)
        if location not in self.rules:
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
        rule, context = self.rules[location][:168], self.rules[location][168:]
        struct.pack_into("168s", memory, RULE_OFFSET, rule)
        struct.pack_into("4s", memory, COUNT_OFFSET, context)

    def _insert(self, memory: Any) -> None:
        (location,) = struct.unpack_from("=I", memory, RULE_OFFSET + LOCATION_OFFSET)
        if location == 0xFFFFFFFF:
            location = 7
            struct.pack_into("=I", memory, RULE_OFFSET + LOCATION_OFFSET, location)
        self.rules[location] = memory.raw[RULE_OFFSET : RULE_OFFSET + 168] + bytes(4)

    def _table(self, memory: Any) -> None:
        _, context, size, key_size = struct.unpack_from("=4I", memory)
        table = self.contexts.get(context)
        if table is None:
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
        struct.pack_into("=2I", memory, 8, len(table), 40)
        if size:
            assert (size, key_size) == (len(table), 0)
            struct.pack_into(f"={size}I", memory, 24, *table)

    def _set_table(self, memory: Any) -> None:
        _, size = struct.unpack_from("=2I", memory)
        self.contexts[0] = list(struct.unpack_from(f"={size}I", memory, 8)) or [0, 1] * 64


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Driver:
    made = Driver()
    monkeypatch.setattr(ethtool, "request", made)
    return made


def test_rules_of_all_kinds(driver: Driver) -> None:
    mac, exact = bytes.fromhex("525400000009"), b"\xff" * 6
    driver.contexts[3] = [0, 1, 0, 1]
    driver.add(2, ETHER_FLOW, mac, exact, 1)
    driver.add(3, ETHER_FLOW, mac, exact + b"\xff" * 6, 1)  # the source address as well
    driver.add(4, ETHER_FLOW, mac, b"\xff" * 5, 1)  # only part of the address
    driver.add(5, ETHER_FLOW | FLOW_MAC_EXT, mac, exact, 1)
    driver.add(6, TCP_V4_FLOW, mac, exact, 3)
    driver.add(7, ETHER_FLOW, mac, exact, DISCARD)
    driver.add(8, ETHER_FLOW, mac, exact, 1 << 32 | 2)  # queue 2 of VF 1
    driver.add(9, ETHER_FLOW | FLOW_RSS, mac, exact, 2, context=3)
    driver.add(10, ETHER_FLOW | FLOW_RSS, mac, exact, 2, context=4)
    assert flow_rules.flow_rules("eth7") == (
        FlowRule(2, GUEST, frozenset({1})),
        FlowRule(3, None, frozenset({1})),
        FlowRule(4, None, frozenset({1})),
        FlowRule(5, None, frozenset({1})),
        FlowRule(6, None, frozenset({3})),
        FlowRule(7, GUEST, frozenset()),
        FlowRule(8, GUEST, frozenset()),
        FlowRule(9, GUEST, frozenset({2, 3})),
        FlowRule(10, GUEST, None),
    )


def test_insert_takes_the_last_free_location(driver: Driver) -> None:
    driver.add(15, TCP_V4_FLOW, bytes(6), bytes(6), 0)
    assert flow_rules.insert_mac_rule("eth7", GUEST, 2) == FlowRule(14, GUEST, frozenset({2}))
    driver.size = 0
    with pytest.raises(OSError, match="all 0 places"):
        flow_rules.insert_mac_rule("eth7", GUEST, 2)


def test_insert_where_the_driver_chooses(driver: Driver) -> None:
    driver.special = True
    assert flow_rules.insert_mac_rule("eth7", GUEST, 2) == FlowRule(7, GUEST, frozenset({2}))


def test_table(driver: Driver) -> None:
    assert flow_rules.indirection_table("eth7") == (0, 1) * 64
    flow_rules.set_indirection_table("eth7", [0, 0, 1])
    assert flow_rules.indirection_table("eth7") == (0, 0, 1)
    flow_rules.set_indirection_table("eth7", [])
    assert flow_rules.indirection_table("eth7") == (0, 1) * 64
    driver.contexts[0] = []
    assert flow_rules.indirection_table("eth7") is None
    assert flow_rules.indirection_table("eth7", context=9) is None


@pytest.mark.parametrize(("number", "expected"), [(errno.EOPNOTSUPP, None), (errno.EINVAL, None)])
def test_a_driver_without(monkeypatch: pytest.MonkeyPatch, number: int, expected: None) -> None:
    def refuse(_: str, argument: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(ethtool, "request", refuse)
    assert flow_rules.flow_rules("eth7") is expected
    assert flow_rules.indirection_table("eth7") is expected


def test_an_interface_that_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: str, argument: Any) -> None:
        raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))

    monkeypatch.setattr(ethtool, "request", refuse)
    for ask in (flow_rules.flow_rules, flow_rules.indirection_table):
        with pytest.raises(OSError, match="No such device"):
            ask("eth7")
