"""Whose frames can reach a queue: the decision, on facts."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from guestwire.host.checks import Status
from guestwire.host.checks.interface import check_steering
from guestwire.host.flow_rules import FlowRule
from guestwire.host.steering import Steering, queue_names

GUEST = "52:54:00:00:00:09"
OWN = "02:00:00:00:00:07"

FOUR_QUEUES = Steering(
    interface="eth7",
    mac=OWN,
    receive_queues=4,
    queue_setting="combined",
    indirection_table=(0, 1, 2, 3) * 32,
    rules=(),
    sampling_remedy=None,
    addresses=(),
    upper_interfaces=(),
    virtual_functions=0,
)
SPREAD_OVER_TWO = (0, 1) * 64


def rule(queues: set[int] | None, mac: str | None = GUEST) -> FlowRule:
    return FlowRule(5, mac, None if queues is None else frozenset(queues))


def steering(**changes: Any) -> Steering:
    return dataclasses.replace(FOUR_QUEUES, **changes)


@pytest.mark.parametrize(
    ("changes", "queues"),
    [
        ({}, range(4)),
        ({"receive_queues": 1, "indirection_table": None}, range(1)),
        ({"receive_queues": 1, "indirection_table": (0,) * 128}, range(1)),
        ({"indirection_table": None}, range(4)),
        ({"indirection_table": (2,) * 128}, range(2, 3)),
        ({"indirection_table": SPREAD_OVER_TWO}, range(2, 3)),
        ({"indirection_table": SPREAD_OVER_TWO}, range(2, 4)),
        ({"indirection_table": SPREAD_OVER_TWO, "rules": (rule({2}), rule({0}))}, range(2, 4)),
        ({"indirection_table": SPREAD_OVER_TWO, "rules": (rule({2, 3}),)}, range(2, 4)),
        ({"indirection_table": SPREAD_OVER_TWO, "rules": (rule(set()),)}, range(2, 4)),
        ({"indirection_table": SPREAD_OVER_TWO, "rules": (rule({2}, mac=OWN),)}, range(2, 3)),
        # What the host has is on other queues.
        ({"indirection_table": SPREAD_OVER_TWO, "addresses": ("192.0.2.1/24",)}, range(2, 3)),
        ({"indirection_table": SPREAD_OVER_TWO, "upper_interfaces": ("br0",)}, range(2, 3)),
        # Every frame goes to the guest anyway.
        ({"sampling_remedy": "stop it"}, range(4)),
    ],
)
def test_exclusive(changes: dict[str, Any], queues: range) -> None:
    assert steering(**changes).why_shared(queues) is None


@pytest.mark.parametrize(
    ("changes", "queues", "why"),
    [
        (
            {},
            range(2, 3),
            "RSS spreads the frames of eth7 over queues 0 to 3, and only queue 2 is the guest's",
        ),
        (
            {},
            range(1, 3),
            "RSS spreads the frames of eth7 over queues 0 to 3, and only queues 1 to 2 are the guest's",
        ),
        ({"indirection_table": (0, 2) * 64}, range(2, 3), "RSS spreads the frames of eth7 over queues 0, 2,"),
        (
            {"indirection_table": None},
            range(2, 3),
            "the driver does not show how it spreads frames over queues 0 to 3",
        ),
        ({"indirection_table": (1, 2) * 64}, range(1), "cannot hash, such as ARP, land on queue 0"),
        (
            {"addresses": ("192.0.2.1/24",), "upper_interfaces": ("br0",)},
            range(4),
            "this host uses eth7 itself: address 192.0.2.1/24, interface br0 above it",
        ),
        ({"indirection_table": (2,) * 128, "upper_interfaces": ("br0",)}, range(2, 3), "br0 above it"),
        (
            {"indirection_table": SPREAD_OVER_TWO, "sampling_remedy": "stop it"},
            range(2, 3),
            "on the queue that their answers leave by, and that may be queue 2",
        ),
        (
            {"indirection_table": SPREAD_OVER_TWO, "rules": (rule({0}), rule({0, 2}, mac=None))},
            range(2, 3),
            "flow rule 5 of eth7 spreads frames over queues 0, 2",
        ),
        (
            {"indirection_table": SPREAD_OVER_TWO, "rules": (rule(None),)},
            range(2, 3),
            "flow rule 5 of eth7 spreads frames over queues that the driver does not show",
        ),
        (
            {
                "indirection_table": SPREAD_OVER_TWO,
                "rules": (rule({2}, mac=OWN),),
                "addresses": ("192.0.2.1/24",),
            },
            range(2, 3),
            "the interface's own address there, and this host uses eth7 itself: address 192.0.2.1/24",
        ),
    ],
)
def test_shared(changes: dict[str, Any], queues: range, why: str) -> None:
    said = steering(**changes).why_shared(queues)
    assert said is not None
    assert why in said


@pytest.mark.parametrize(
    ("changes", "queues", "remedy"),
    [
        (
            {},
            range(3, 4),
            (
                f"ethtool -X eth7 equal 3 && ethtool -N eth7 flow-type ether dst {GUEST} action 3 "
                f"(guestwire does both if the port says ,steer={GUEST})"
            ),
        ),
        (
            {},
            range(1, 3),
            (
                f"ethtool -X eth7 weight 1 0 0 1 && ethtool -N eth7 flow-type ether dst {GUEST} action 1 "
                f"(guestwire does both if the port says ,steer={GUEST})"
            ),
        ),
        ({}, range(1), f"another queue: ,queue=3,steer={GUEST}"),
        (
            {"virtual_functions": 7},
            range(1),
            (
                f"another queue: ,queue=3,steer={GUEST}, or a VF: echo 1 > "
                "/sys/class/net/eth7/device/sriov_numvfs"
            ),
        ),
        (
            {"rules": None, "queue_setting": "rx"},
            range(2, 3),
            "ethtool -L eth7 rx 1, which gives the guest the whole interface",
        ),
        (
            {"indirection_table": None},
            range(2, 4),
            "ethtool -L eth7 combined 2, which gives the guest the whole interface",
        ),
        (
            {"indirection_table": None, "addresses": ("192.0.2.1/24",)},
            range(2, 4),
            "an interface that this host does not use itself: ip -brief address",
        ),
        (
            {"addresses": ("192.0.2.1/24",), "upper_interfaces": ("br0",)},
            range(4),
            "an interface that this host does not use itself: ip -brief address",
        ),
    ],
)
def test_remedy(changes: dict[str, Any], queues: range, remedy: str) -> None:
    assert steering(**changes).remedy(queues, GUEST) == remedy


def test_sampling_is_stopped_first() -> None:
    remedy = steering(sampling_remedy="ethtool -K eth7 ntuple on").remedy(range(3, 4))
    assert remedy.startswith("ethtool -K eth7 ntuple on && ethtool -X eth7 equal 3 && ")
    assert "dst MAC action 3" in remedy


@pytest.mark.parametrize(
    ("queues", "words"),
    [({2}, "queue 2"), ({3, 1, 2}, "queues 1 to 3"), ({0, 2, 3}, "queues 0, 2, 3")],
)
def test_queue_names(queues: set[int], words: str) -> None:
    assert queue_names(queues) == words


@pytest.mark.parametrize(
    ("facts", "status", "words"),
    [
        (steering(indirection_table=(2,) * 128), Status.OK, "it gets every frame"),
        (steering(), Status.WARNING, "mode zero-copy is refused there"),
        (steering(), Status.WARNING, "ethtool -X eth7 weight 1 1 0 1"),
        (None, Status.WARNING, "ethtool -n eth7"),
    ],
)
def test_check(facts: Steering | None, status: Status, words: str) -> None:
    check = check_steering("eth7", facts, range(2, 3))
    assert check.status is status
    assert words in f"{check.found} {check.meaning} {check.remedy}"


def test_check_of_a_queue_that_only_flow_rules_lead_to() -> None:
    exclusive = steering(indirection_table=SPREAD_OVER_TWO)
    nothing = check_steering("eth7", exclusive, range(2, 3))
    assert nothing.status is Status.WARNING
    assert nothing.meaning == "no frame reaches the guest"
    assert nothing.remedy is not None
    assert "action 2" in nothing.remedy
    led = check_steering("eth7", dataclasses.replace(exclusive, rules=(rule({2}),)), range(2, 3))
    assert led.status is Status.OK
    assert f"5 ({GUEST})" in led.found
