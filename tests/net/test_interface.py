"""What Interface.open sees, on real interfaces in network namespaces of our own."""

from __future__ import annotations

import asyncio
import itertools
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from guestwire.errors import HostError
from guestwire.host import netlink
from guestwire.host.ethtool import Channels
from guestwire.host.interface import Interface, Peer
from guestwire.host.netlink import XdpFeature
from guestwire.testing.namespaces import Namespace
from guestwire.testing.wire import Wire

pytestmark = pytest.mark.root


@pytest.fixture
def namespace() -> Iterator[Namespace]:
    with Namespace("interface") as made:
        yield made


@pytest.fixture
def netdev_family() -> None:
    if netlink.xdp_support(1) is None:
        pytest.skip("this kernel does not say what XDP can do on an interface (before 6.3)")


def add_links(namespace: Namespace, *commands: str) -> None:
    for command in commands:
        done = namespace.run(command.split())
        if "Unknown device type" in done.stdout:
            pytest.skip(f"this kernel has no such interface: {command}")
        assert done.returncode == 0, f"{command}: {done.stdout}"


def wait_for(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.005)


def open_in(namespace: Namespace, name: str) -> Interface:
    return namespace.call(lambda: Interface.open(name))


def test_veth() -> None:
    with Wire(mtu=1400) as wire:
        interface = open_in(wire.near, wire.interface)
        assert interface.name == wire.interface
        assert interface.index == wire.near.call(lambda: socket.if_nametoindex(wire.interface))
        assert interface.mac is not None
        assert len(interface.mac.split(":")) == 6
        assert interface.mtu == 1400
        assert interface.ethernet
        assert interface.kind == "veth"
        assert interface.driver == "veth"
        assert interface.up
        assert interface.carrier
        assert interface.programs == ()
        assert interface.iommu_group_type is None
        assert not interface.carries_default_route


def test_xdp_of_veth(netdev_family: None) -> None:
    with Wire() as wire:
        xdp = open_in(wire.near, wire.interface).xdp
    assert xdp is not None
    assert xdp.native
    assert not xdp.zero_copy
    assert XdpFeature.REDIRECT in xdp.features
    assert xdp.zero_copy_segments == 1


def test_veth_peer_in_a_named_namespace() -> None:
    with Wire() as wire:
        peer = open_in(wire.near, wire.interface).peer
        assert peer is not None
        assert peer.name == wire.peer_interface
        assert peer.namespace == wire.far.name
        assert peer.transmit_queues == 1
        assert peer.transmit_checksum_offload is False
        assert peer.transmit_vlan_offload is False
        add_links(wire.far, f"ethtool -K {wire.peer_interface} tx on tx-vlan-stag-hw-insert on")
        peer = open_in(wire.near, wire.interface).peer
        assert peer is not None
        assert peer.transmit_checksum_offload is True
        assert peer.transmit_vlan_offload is True


def test_veth_peer_in_the_same_namespace(namespace: Namespace) -> None:
    add_links(namespace, "ip link add one type veth peer name two")
    peer = open_in(namespace, "one").peer
    assert peer is not None
    assert peer.name == "two"
    assert peer.namespace == ""
    assert peer.transmit_checksum_offload is True


def test_veth_peer_in_a_namespace_without_name(namespace: Namespace, tmp_path: Path) -> None:
    add_links(namespace, "ip link add one type veth peer name two")
    holder = namespace.spawn(["unshare", "--net", "sleep", "60"], tmp_path / "log")
    try:
        wait_for(lambda: Path(f"/proc/{holder.pid}/comm").read_text() == "sleep\n", "no namespace")
        add_links(namespace, f"ip link set two netns {holder.pid}")
        peer = open_in(namespace, "one").peer
    finally:
        holder.kill()
        holder.wait()
    assert peer == Peer(name="two", namespace=None, transmit_queues=None, transmit_checksum_offload=None)


def test_queues(namespace: Namespace) -> None:
    add_links(
        namespace,
        "ip link add one numrxqueues 4 numtxqueues 3 type veth peer name two",
        "ethtool -L one rx 2 tx 3",
    )
    interface = open_in(namespace, "one")
    assert (interface.receive_queues, interface.transmit_queues) == (2, 3)
    assert interface.channels == Channels(receive=2, transmit=3, maximum_receive=4, setting="rx")
    interface.require_queue(1)
    with pytest.raises(HostError, match="no receive queue 2: it has queues 0 to 1") as caught:
        interface.require_queue(2)
    assert caught.value.remedy == "ethtool -L one rx 3"
    for beyond in (4, -1):
        with pytest.raises(HostError, match="allows no more") as caught:
            interface.require_queue(beyond)
        assert caught.value.remedy == "ethtool -l one"
    add_links(namespace, "ethtool -L one rx 3")
    open_in(namespace, "one").require_queue(2)


def test_queues_without_channels(namespace: Namespace) -> None:
    interface = open_in(namespace, "lo")
    assert interface.channels is None
    assert interface.receive_queues == 1
    with pytest.raises(HostError, match="no receive queue 1: it has only queue 0"):
        interface.require_queue(1)


def test_unknown_name(namespace: Namespace) -> None:
    add_links(namespace, "ip link add wire0 type veth peer name wire1")
    with pytest.raises(HostError) as caught:
        open_in(namespace, "wire9")
    message = str(caught.value)
    assert "no interface 'wire9'" in message
    assert "did you mean wire" in message
    assert "lo, wire0, wire1" in message
    assert caught.value.remedy == "ip -brief link"


def test_down_without_carrier(namespace: Namespace) -> None:
    add_links(namespace, "ip link add one type veth peer name two")
    interface = open_in(namespace, "one")
    assert not interface.up
    assert not interface.carrier


def test_interface_without_ethernet_header(namespace: Namespace) -> None:
    if not Path("/dev/net/tun").exists():
        pytest.skip("there is no /dev/net/tun")
    add_links(namespace, "ip tuntap add tun0 mode tun", "ip tuntap add tap0 mode tap")
    tun = open_in(namespace, "tun0")
    assert not tun.ethernet
    assert tun.mac is None
    tap = open_in(namespace, "tap0")
    assert tap.ethernet
    assert tap.kind == "tun"


def test_generic_only_interface(namespace: Namespace, netdev_family: None) -> None:
    interface = open_in(namespace, "lo")
    assert interface.xdp is not None
    assert not interface.xdp.native
    assert interface.xdp.names == ()
    assert interface.kind is None
    assert interface.peer is None


@pytest.mark.parametrize(
    "route",
    [
        "ip route add default via 198.51.100.2",
        "ip route add default via 198.51.100.2 table 77",
        "ip route add default dev one scope link",
        "ip route add default nexthop via 198.51.100.2 nexthop via 203.0.113.2",
    ],
)
def test_default_route(namespace: Namespace, route: str) -> None:
    add_links(
        namespace,
        "ip link add one type veth peer name far1",
        "ip link add two type veth peer name far2",
        "ip link add spare type veth peer name far3",
        "ip addr add 198.51.100.1/24 dev one",
        "ip addr add 203.0.113.1/24 dev two",
        *(f"ip link set {name} up" for name in ("one", "two", "far1", "far2")),
    )
    assert not open_in(namespace, "one").carries_default_route
    add_links(namespace, route)
    assert open_in(namespace, "one").carries_default_route
    assert open_in(namespace, "two").carries_default_route == ("nexthop" in route)
    assert not open_in(namespace, "spare").carries_default_route


@pytest.mark.parametrize("route", ["-6 route add default dev one", "-6 route add default dev one table 77"])
def test_default_route_of_ipv6(namespace: Namespace, route: str) -> None:
    add_links(
        namespace,
        *("ip link add one type veth peer name far1", "ip link add spare type veth peer name far2"),
        *(f"sysctl -q net.ipv6.conf.{name}.disable_ipv6=0" for name in ("one", "spare")),
        *(f"ip link set {name} up" for name in ("one", "far1", "spare", "far2")),
        "ip -6 route add unreachable default metric 5000",
    )
    assert not open_in(namespace, "one").carries_default_route
    add_links(namespace, f"ip {route}")
    assert open_in(namespace, "one").carries_default_route
    assert not open_in(namespace, "spare").carries_default_route


def test_default_route_by_a_nexthop_object(namespace: Namespace) -> None:
    add_links(
        namespace,
        "ip link add one type veth peer name far1",
        "ip link add spare type veth peer name far2",
        "ip addr add 198.51.100.1/24 dev one",
        *(f"ip link set {name} up" for name in ("one", "far1", "spare", "far2")),
        "sysctl -q net.ipv4.nexthop_compat_mode=0",
        "ip nexthop add id 1 via 198.51.100.2 dev one",
        "ip route add default nhid 1",
    )
    assert open_in(namespace, "one").carries_default_route
    assert not open_in(namespace, "spare").carries_default_route


def test_a_table_of_many_routes_takes_no_time(namespace: Namespace, tmp_path: Path) -> None:
    """Of 100,000 routes half are this interface's. Time is that of the CPU, whatever else runs on it."""
    add_links(
        namespace,
        *("ip link add one type veth peer name far1", "ip link add two type veth peer name far2"),
        *(f"ip link set {name} up" for name in ("one", "far1", "two", "far2")),
    )
    batch = tmp_path / "routes"
    batch.write_text(
        "".join(
            f"route add {10 + number // 65536}.{number // 256 % 256}.{number % 256}.0/24 dev {name}\n"
            for number, name in zip(range(100_000), itertools.cycle(("one", "two")))
        )
    )
    add_links(namespace, f"ip -batch {batch}")
    before = time.process_time()
    assert not open_in(namespace, "one").carries_default_route
    add_links(namespace, "ip route add default dev two")
    assert not open_in(namespace, "one").carries_default_route
    assert open_in(namespace, "two").carries_default_route
    assert time.process_time() - before < 5


def test_default_route_above(namespace: Namespace) -> None:
    """A member of a bridge under a macvlan with the route carries it as well."""
    add_links(
        namespace,
        "ip link add bridge0 type bridge",
        "ip link add one type veth peer name far1",
        "ip link add spare type veth peer name far2",
        "ip link set one master bridge0",
        "ip link add link bridge0 name above type macvlan",
        "ip addr add 198.51.100.1/24 dev above",
        *(f"ip link set {name} up" for name in ("bridge0", "one", "far1", "above")),
        "ip route add default via 198.51.100.2",
    )
    for name in ("above", "bridge0", "one"):
        assert open_in(namespace, name).carries_default_route, name
    assert not open_in(namespace, "spare").carries_default_route


def test_inside_an_event_loop() -> None:
    with Wire() as wire:
        outside = open_in(wire.near, wire.interface)

        async def inside() -> Interface:
            return Interface.open(wire.interface)

        assert wire.near.call(lambda: asyncio.run(inside())) == outside


def test_xdp_support_of_an_unknown_index(netdev_family: None) -> None:
    with pytest.raises(OSError, match="No such device"):
        netlink.xdp_support(0x7FFFFFFF)
