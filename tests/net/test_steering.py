"""What Linux says of steering, on interfaces in network namespaces of our own: none has RSS or flow rules."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from guestwire.errors import HostError
from guestwire.host import ethtool, flow_rules
from guestwire.host.ethtool import Feature
from guestwire.host.flow_steering import FlowSteering
from guestwire.host.interface import Interface
from guestwire.host.steering import Steering
from guestwire.testing.namespaces import Namespace
from guestwire.testing.wire import Wire

pytestmark = pytest.mark.root


@pytest.fixture
def namespace() -> Iterator[Namespace]:
    with Namespace("steering") as made:
        yield made


def add_links(namespace: Namespace, *commands: str) -> None:
    for command in commands:
        done = namespace.run(command.split())
        if "Unknown device type" in done.stdout:
            pytest.skip(f"this kernel has no such interface: {command}")
        assert done.returncode == 0, f"{command}: {done.stdout}"


def read(namespace: Namespace, name: str) -> Steering:
    return namespace.call(lambda: Steering.read(Interface.open(name)))


def test_one_queue() -> None:
    with Wire() as wire:
        near = read(wire.near, wire.interface)
        far = read(wire.far, wire.peer_interface)
    assert near.receive_queues == 1
    assert near.indirection_table is None
    assert near.rules is None
    assert near.sampling_remedy is None
    assert near.addresses == near.upper_interfaces == ()
    assert near.virtual_functions == 0
    assert near.why_shared(range(1)) is None
    assert near.receives_all(range(1))
    assert far.addresses == (f"{wire.peer_address}/{wire.prefix_length}",)
    why = far.why_shared(range(1))
    assert why == f"this host uses {wire.peer_interface} itself: address {wire.peer_address}/24"
    assert far.remedy(range(1)) == "an interface that this host does not use itself: ip -brief address"


def test_queues_that_are_in_use(namespace: Namespace) -> None:
    add_links(
        namespace,
        "ip link add one numrxqueues 4 numtxqueues 4 type veth peer name two",
        "ethtool -L one rx 3",
    )
    steering = read(namespace, "one")
    assert steering.receive_queues == 3
    assert steering.why_shared(range(3)) is None
    why = steering.why_shared(range(1, 2))
    assert why is not None
    assert "does not show how it spreads frames over queues 0 to 2 of one, and only queue 1 is" in why
    command, _, _ = steering.remedy(range(1, 2)).partition(",")
    add_links(namespace, command)
    assert read(namespace, "one").why_shared(range(1)) is None


def test_addresses(namespace: Namespace) -> None:
    add_links(
        namespace,
        "ip link add one type veth peer name two",
        "ip address add 192.0.2.1/24 dev one",
        "ip address add 198.51.100.1 peer 198.51.100.2/30 dev one",
        "ip address add 203.0.113.1/24 dev two",
    )
    assert read(namespace, "one").addresses == ("192.0.2.1/24", "198.51.100.1/30")


def test_ipv6_addresses_of_scope_link_do_not_count(namespace: Namespace) -> None:
    enable = "sysctl -qw net.ipv6.conf.one.disable_ipv6=0"
    add_links(namespace, "ip link add one type veth peer name two")
    if namespace.run(enable.split()).returncode != 0:
        pytest.skip("this kernel has no IPv6")
    add_links(
        namespace,
        "ip address add fe80::7/64 dev one",
        "ip address add 2001:db8::7/64 dev one",
        "ip link set one up",
    )
    assert read(namespace, "one").addresses == ("2001:db8::7/64",)


def test_upper_interfaces(namespace: Namespace) -> None:
    add_links(
        namespace,
        "ip link add one type veth peer name two",
        "ip link add three type veth peer name four",
        "ip link add bridge0 type bridge",
        "ip link add link two name above type macvlan",
        "ip link set one master bridge0",
    )
    # The ends of a pair name each other as their link; neither stands on the other.
    assert read(namespace, "three").upper_interfaces == ()
    assert read(namespace, "one").upper_interfaces == ("bridge0",)
    assert read(namespace, "two").upper_interfaces == ("above",)
    assert read(namespace, "bridge0").upper_interfaces == ()
    assert (
        read(namespace, "one").why_shared(range(1)) == "this host uses one itself: interface bridge0 above it"
    )


def test_vlan_above(namespace: Namespace) -> None:
    add_links(
        namespace,
        "ip link add one type veth peer name two",
        "ip link add link one name one.5 type vlan id 5",
    )
    assert read(namespace, "one").upper_interfaces == ("one.5",)


def test_cannot_be_steered(namespace: Namespace) -> None:
    add_links(namespace, "ip link add one numrxqueues 2 numtxqueues 2 type veth peer name two")

    def steer() -> None:
        with pytest.raises(HostError, match="one cannot be steered: its driver shows no RSS table"):
            FlowSteering(Interface.open("one"), range(1, 2), "52:54:00:00:00:09")

    namespace.call(steer)


@pytest.mark.parametrize(
    "change",
    [
        lambda: flow_rules.set_indirection_table("one", [0]),
        lambda: flow_rules.insert_mac_rule("one", "52:54:00:00:00:09", 0),
        lambda: flow_rules.delete_rule("one", 0),
    ],
)
def test_changes_that_are_refused(namespace: Namespace, change) -> None:
    add_links(namespace, "ip link add one type veth peer name two")
    with pytest.raises(OSError, match="not supported"):
        namespace.call(change)


def test_features(namespace: Namespace) -> None:
    add_links(namespace, "ip link add one type veth peer name two")
    printed = namespace.run(["ethtool", "-k", "one"]).stdout
    lines = re.findall(r"^\s*(\S+): (on|off)( \[fixed\])?", printed, re.MULTILINE)
    listed = {name: (state, fixed) for name, state, fixed in lines}
    known = namespace.call(lambda: {name: ethtool.feature("one", name) for name in listed})
    # ethtool prints groups under names of its own.
    compared = {name: feature for name, feature in known.items() if feature is not None}
    assert compared == {
        name: Feature(active=listed[name][0] == "on", changeable=not listed[name][1]) for name in compared
    }
    assert len(set(compared.values())) > 2
    assert namespace.call(lambda: ethtool.feature("one", "no-such-feature")) is None
    assert namespace.call(lambda: ethtool.feature("nosuch0", "rx-checksum")) is None
    assert namespace.call(lambda: ethtool.private_flag_active("one", "flow-director-atr")) is None


def test_unknown_interface(namespace: Namespace) -> None:
    for ask in (flow_rules.indirection_table, flow_rules.flow_rules):
        with pytest.raises(OSError, match="No such device"):
            namespace.call(lambda ask=ask: ask("nosuch0"))
