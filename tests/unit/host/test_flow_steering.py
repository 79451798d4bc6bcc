"""FlowSteering changes a NIC and puts it back, whatever goes wrong on the way."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Iterator, Sequence
from typing import Any, cast

import pytest

from guestwire.errors import ConfigurationError, HostError
from guestwire.host import ethtool, flow_rules, flow_steering, netlink
from guestwire.host.ethtool import Channels, Feature
from guestwire.host.flow_rules import FlowRule
from guestwire.host.flow_steering import FlowSteering, require_steerable
from guestwire.host.interface import Interface
from guestwire.host.steering import Steering
from guestwire.host.xdp_program import XdpProgram
from guestwire.ports.xdp import XdpControl
from guestwire.ports.xdp_interface import SharedInterface
from guestwire.ports.xdp_options import XdpOptions

GUEST = "52:54:00:00:00:09"
OTHER_GUEST = "52:54:00:00:00:0a"
OWN = "02:00:00:00:00:07"
QUEUES = 4
DEFAULT = [0, 1, 2, 3] * 4

INTERFACE = Interface(
    name="eth7",
    index=7,
    mac=OWN,
    mtu=1500,
    ethernet=True,
    kind=None,
    driver="ice",
    up=True,
    carrier=True,
    receive_queues=QUEUES,
    transmit_queues=QUEUES,
    channels=Channels(receive=QUEUES, transmit=QUEUES, maximum_receive=8, setting="combined"),
    carries_default_route=False,
    xdp=None,
    programs=(),
    peer=None,
    iommu_group_type=None,
)


class Nic:
    """A NIC as ``flow_rules`` shows it; ``failures`` says what its driver refuses."""

    def __init__(self) -> None:
        self.table = list(DEFAULT)
        self.rules: dict[int, FlowRule] = {}
        self.failures: dict[str, int] = {}
        self.table_written = 0

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(flow_steering, "if_indextoname", lambda index: INTERFACE.name)
        monkeypatch.setattr(flow_rules, "indirection_table", lambda name: tuple(self.table))
        monkeypatch.setattr(flow_rules, "set_indirection_table", self.set_table)
        monkeypatch.setattr(flow_rules, "flow_rules", lambda name: tuple(self.rules.values()))
        monkeypatch.setattr(flow_rules, "flow_rule", lambda name, location: self.rules.get(location))
        monkeypatch.setattr(flow_rules, "insert_mac_rule", self.insert)
        monkeypatch.setattr(flow_rules, "delete_rule", self.delete)
        monkeypatch.setattr(netlink, "addresses", lambda index: ())
        monkeypatch.setattr(netlink, "links", list)
        monkeypatch.setattr(ethtool, "driver", lambda name: None)
        monkeypatch.setattr(ethtool, "feature", lambda name, word: Feature(active=True, changeable=True))

    def _may_fail(self, what: str) -> None:
        if number := self.failures.get(what):
            raise OSError(number, os.strerror(number))

    def set_table(self, name: str, table: Sequence[int]) -> None:
        self._may_fail("set_table")
        self.table = list(table) or list(DEFAULT)
        self.table_written += 1

    def insert(self, name: str, mac: str, queue: int) -> FlowRule:
        self._may_fail("insert")
        location = max(set(range(16)) - set(self.rules))
        self.rules[location] = FlowRule(location, mac, frozenset({queue}))
        return self.rules[location]

    def delete(self, name: str, location: int) -> None:
        self._may_fail("delete")
        del self.rules[location]


@pytest.fixture
def nic(monkeypatch: pytest.MonkeyPatch) -> Iterator[Nic]:
    made = Nic()
    made.install(monkeypatch)
    yield made
    # No test may leave another guest's queue in the table or an entry that names no queue.
    assert all(0 <= queue < QUEUES for queue in made.table)


def test_makes_a_queue_exclusive_and_undoes_it(nic: Nic) -> None:
    assert Steering.read(INTERFACE).why_shared(range(2, 3))
    with FlowSteering(INTERFACE, range(2, 3), GUEST.upper()):
        assert Steering.read(INTERFACE).why_shared(range(2, 3)) is None
        assert set(nic.table) == {0, 1, 3}
        # Whatever was not the guest's stays where it was.
        assert all(now == before for now, before in zip(nic.table, DEFAULT, strict=True) if before != 2)
        assert list(nic.rules.values()) == [FlowRule(15, GUEST, frozenset({2}))]
    assert nic.table == DEFAULT
    assert nic.rules == {}


def test_several_queues(nic: Nic) -> None:
    with FlowSteering(INTERFACE, range(2, 4), GUEST):
        assert set(nic.table) == {0, 1}
        assert nic.rules[15].queues == {2}
    assert nic.table == DEFAULT


def test_an_even_table_becomes_the_default(nic: Nic) -> None:
    """It is what igb has as its default; only the default follows ``ethtool -L``."""
    nic.table = [0] * 4 + [1] * 4 + [2] * 4 + [3] * 4
    with FlowSteering(INTERFACE, range(2, 3), GUEST):
        assert 2 not in nic.table
    assert nic.table == DEFAULT


def test_a_table_with_weights_is_kept(nic: Nic) -> None:
    nic.table = weighted = [0] * 10 + [1, 2] * 3
    with FlowSteering(INTERFACE, range(2, 3), GUEST):
        assert 2 not in nic.table
    assert nic.table == weighted


def test_close_twice(nic: Nic) -> None:
    steering = FlowSteering(INTERFACE, range(2, 3), GUEST)
    steering.close()
    written = nic.table_written
    nic.rules[15] = FlowRule(15, GUEST, frozenset({2}))
    steering.close()
    assert nic.table_written == written
    assert list(nic.rules) == [15]


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_two_guests_end_in_any_order(nic: Nic, order: tuple[int, int]) -> None:
    guests = [
        FlowSteering(INTERFACE, range(2, 3), GUEST),
        FlowSteering(INTERFACE, range(3, 4), OTHER_GUEST),
    ]
    first, last = (guests[number] for number in order)
    first.close()
    assert Steering.read(INTERFACE).why_shared(last.queues) is None
    last.close()
    assert nic.rules == {}
    # An entry that went from the one's queue over the other's to a third comes back by halves only.
    assert set(nic.table) == {0, 1, 2, 3}
    assert (nic.table == DEFAULT) == (order == (1, 0))


def test_a_guest_that_comes_and_goes_beside_another(nic: Nic) -> None:
    with FlowSteering(INTERFACE, range(3, 4), OTHER_GUEST):
        with FlowSteering(INTERFACE, range(1, 3), GUEST):
            assert set(nic.table) == {0}
        assert Steering.read(INTERFACE).why_shared(range(3, 4)) is None
    assert nic.table == DEFAULT


def test_a_table_that_names_only_the_guests_queue(nic: Nic) -> None:
    nic.table = [2] * 16
    with FlowSteering(INTERFACE, range(2, 3), GUEST):
        assert set(nic.table) == {0}
    assert nic.table == [2] * 16


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.EOPNOTSUPP, "ethtool -L eth7 combined 1, which gives the guest the whole interface"),
        (errno.ENOSPC, "ethtool -n eth7; dmesg | tail"),
    ],
)
def test_undone_if_the_rule_is_refused(nic: Nic, number: int, remedy: str) -> None:
    nic.failures["insert"] = number
    refused = f"its driver did not add a flow rule that leads {GUEST} to queue 2: {os.strerror(number)}"
    with pytest.raises(HostError, match=refused) as caught:
        FlowSteering(INTERFACE, range(2, 3), GUEST)
    assert caught.value.remedy == remedy
    assert nic.table == DEFAULT
    assert nic.table_written == 2


def test_rules_that_are_turned_off(nic: Nic, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ethtool, "feature", lambda name, word: Feature(active=False, changeable=True))
    nic.failures["insert"] = errno.EOPNOTSUPP
    with pytest.raises(HostError) as caught:
        FlowSteering(INTERFACE, range(2, 3), GUEST)
    assert caught.value.remedy == "ethtool -K eth7 ntuple on"


def test_not_permitted(nic: Nic) -> None:
    nic.failures["set_table"] = errno.EPERM
    with pytest.raises(HostError, match="steering interface eth7 is not permitted"):
        FlowSteering(INTERFACE, range(2, 3), GUEST)
    assert nic.rules == {}


def test_undone_if_the_driver_does_not_do_what_it_says(nic: Nic, monkeypatch: pytest.MonkeyPatch) -> None:
    def half(name: str, table: Sequence[int]) -> None:
        nic.table = list(DEFAULT)

    monkeypatch.setattr(flow_rules, "set_indirection_table", half)
    with pytest.raises(HostError, match="queue 2 cannot be kept to one guest: RSS spreads"):
        FlowSteering(INTERFACE, range(2, 3), GUEST)
    assert nic.rules == {}


def test_leaves_alone_what_somebody_changed_meanwhile(nic: Nic) -> None:
    steering = FlowSteering(INTERFACE, range(2, 3), GUEST)
    nic.rules[15] = FlowRule(15, OTHER_GUEST, frozenset({1}))
    nic.table = [1] * 16
    changed = [slot for slot, queue in enumerate(DEFAULT) if queue == 2]
    kept = [slot for slot in changed if steering._replaced[slot][1] != 1]
    assert kept
    steering.close()
    assert list(nic.rules.values()) == [FlowRule(15, OTHER_GUEST, frozenset({1}))]
    assert all(nic.table[slot] == 1 for slot in range(16) if slot not in changed or slot in kept)


def test_a_rule_that_was_there_stays(nic: Nic) -> None:
    nic.rules[3] = FlowRule(3, GUEST, frozenset({2}))
    with FlowSteering(INTERFACE, range(2, 3), GUEST):
        assert list(nic.rules) == [3]
    assert list(nic.rules) == [3]


@pytest.mark.parametrize("queues", [frozenset({1}), frozenset({1, 2}), frozenset(), None])
def test_a_rule_that_leads_elsewhere(nic: Nic, queues: frozenset[int] | None) -> None:
    nic.rules[3] = FlowRule(3, GUEST, queues)
    with pytest.raises(HostError, match=f"flow rule 3 leads frames for {GUEST} to") as caught:
        FlowSteering(INTERFACE, range(2, 3), GUEST)
    assert caught.value.remedy == "ethtool -n eth7 shows it; if it is nobody's, ethtool -N eth7 delete 3"
    assert nic.table_written == 0


def test_queue_0_is_refused(nic: Nic) -> None:
    with pytest.raises(HostError, match="queue 0 cannot be kept to one guest: frames that RSS cannot hash"):
        FlowSteering(INTERFACE, range(2), GUEST)
    assert nic.table_written == 0


@pytest.mark.parametrize(
    ("missing", "message"), [("indirection_table", "no RSS table"), ("flow_rules", "no flow rules")]
)
def test_a_driver_without(nic: Nic, monkeypatch: pytest.MonkeyPatch, missing: str, message: str) -> None:
    monkeypatch.setattr(flow_rules, missing, lambda name: None)
    with pytest.raises(HostError, match=message) as caught:
        FlowSteering(INTERFACE, range(2, 3), GUEST)
    assert caught.value.remedy == "ethtool -L eth7 combined 1, which gives the guest the whole interface"


@pytest.mark.parametrize(
    "mac", ["", "52:54:00:00:00", "ff:ff:ff:ff:ff:ff", "01:00:5e:00:00:01", "52-54-00-00-00-09"]
)
def test_not_an_address(nic: Nic, mac: str) -> None:
    with pytest.raises(ConfigurationError, match="is not the address of one network device"):
        FlowSteering(INTERFACE, range(2, 3), mac)


@pytest.mark.parametrize(
    ("failure", "words"), [("delete", "ethtool -n eth7 rule 15"), ("set_table", "ethtool -x eth7")]
)
def test_what_cannot_be_undone_is_said(
    nic: Nic, caplog: pytest.LogCaptureFixture, failure: str, words: str
) -> None:
    steering = FlowSteering(INTERFACE, range(2, 3), GUEST)
    nic.failures[failure] = errno.EIO
    with caplog.at_level(logging.WARNING):
        steering.close()
    assert words in caplog.text
    # The other half is undone all the same.
    assert (nic.rules == {}) == (failure != "delete")
    assert (nic.table == DEFAULT) == (failure != "set_table")


def test_an_interface_that_is_gone(nic: Nic, caplog: pytest.LogCaptureFixture) -> None:
    steering = FlowSteering(INTERFACE, range(2, 3), GUEST)
    nic.failures = {"delete": errno.ENODEV, "set_table": errno.ENODEV}
    steering.close()
    assert caplog.text == ""


def test_unreadable(nic: Nic, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(name: str) -> Any:
        raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))

    monkeypatch.setattr(flow_rules, "indirection_table", gone)
    with pytest.raises(HostError, match="interface eth7: its steering could not be read: No such device"):
        Steering.read(INTERFACE)


# --- before anything is changed, and from one port to the next -----------------------------------------


def test_what_will_be_refused_is_known_before(nic: Nic) -> None:
    nic.failures["insert"] = errno.EOPNOTSUPP
    with pytest.raises(HostError, match=f"did not add a flow rule that leads {GUEST} to queue 2"):
        require_steerable(INTERFACE, range(2, 3), GUEST)
    with pytest.raises(HostError, match="queue 0 cannot be kept to one guest"):
        require_steerable(INTERFACE, range(1), GUEST)
    assert (nic.rules, nic.table, nic.table_written) == ({}, DEFAULT, 0)


def test_what_will_be_possible_leaves_no_trace(nic: Nic) -> None:
    require_steerable(INTERFACE, range(2, 3), GUEST)
    assert (nic.rules, nic.table, nic.table_written) == ({}, DEFAULT, 0)
    with FlowSteering(INTERFACE, range(2, 3), GUEST) as present:
        require_steerable(INTERFACE, range(3, 4), GUEST, present)
        with pytest.raises(HostError, match=f"leads frames for {GUEST} to queue 2"):
            require_steerable(INTERFACE, range(3, 4), GUEST)
        assert list(nic.rules.values()) == [present.rule]


def steered(shared: SharedInterface, queue: int, mac: str | None) -> XdpControl:
    """A port as it is once it is open."""
    port = XdpControl(INTERFACE.name, XdpOptions(queue=queue, steer=mac))
    port._interface, port._queues, port._shared = INTERFACE, range(queue, queue + 1), shared
    return port


@pytest.mark.parametrize("queue", [2, 3])
@pytest.mark.parametrize("mac", [GUEST, OTHER_GUEST, None])
def test_a_guest_takes_its_rule_along(nic: Nic, queue: int, mac: str | None) -> None:
    shared = SharedInterface((0, 0, INTERFACE.index), cast("XdpProgram", None))
    old, new = steered(shared, 2, GUEST), steered(shared, queue, mac)

    def led() -> list[tuple[str | None, frozenset[int] | None]]:
        return [(rule.mac, rule.queues) for rule in nic.rules.values()]

    old.configure()
    assert led() == [(GUEST, {2})]
    written = nic.table_written
    new.configure(old)
    assert led() == ([(mac, {queue})] if mac else [])
    if (queue, mac) == (2, GUEST):
        assert nic.table_written == written  # nothing was changed
    old.configure(new)  # back again
    assert led() == [(GUEST, {2})]
    for port in (new, old):
        port._shared = None
        port.close()
    assert (nic.rules, nic.table) == ({}, DEFAULT)
