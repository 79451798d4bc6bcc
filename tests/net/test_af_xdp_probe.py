"""Binding to find out, on real interfaces in network namespaces of our own."""

from __future__ import annotations

import mmap
import socket
import sys
from collections.abc import Iterator

import pytest

from guestwire.errors import HostError
from guestwire.host import af_xdp, netlink
from guestwire.host.af_xdp_probe import AfXdpProbe, prepared_socket, probe
from guestwire.host.interface import Interface
from guestwire.testing.wire import Wire

pytestmark = pytest.mark.root


@pytest.fixture
def wire() -> Iterator[Wire]:
    with Wire() as made:
        yield made


def probe_near(wire: Wire, queue: int = 0) -> AfXdpProbe:
    return wire.near.call(lambda: probe(Interface.open(wire.interface), queue))


def bind_near(wire: Wire, area: mmap.mmap) -> socket.socket:
    def inside() -> socket.socket:
        made = prepared_socket(area)
        af_xdp.bind(made, socket.if_nametoindex(wire.interface), 0, af_xdp.XDP_COPY)
        return made

    return wire.near.call(inside)


def listed(wire: Wire) -> bool | None:
    def inside() -> bool | None:
        return netlink.socket_on_queue(socket.if_nametoindex(wire.interface), 0)

    return wire.near.call(inside)


def test_veth_has_copy_mode_only(wire: Wire) -> None:
    before = wire.near.call(lambda: Interface.open(wire.interface))
    found = probe_near(wire)
    assert found.queue == 0
    assert found.copy.available
    assert not found.zero_copy.available
    assert "veth has no zero-copy mode" in found.zero_copy.reason
    assert not listed(wire)
    assert wire.near.call(lambda: Interface.open(wire.interface)) == before


def test_queue_in_use(wire: Wire) -> None:
    with mmap.mmap(-1, 16 * 4096) as area, bind_near(wire, area):
        found = probe_near(wire)
        assert not found.copy.available
        assert f"holds queue 0 of {wire.interface}" in found.copy.reason
        assert not found.zero_copy.available


def test_listing_of_sockets(wire: Wire) -> None:
    if listed(wire) is None:
        pytest.skip("this kernel does not list AF_XDP sockets (before 6.14)")
    with mmap.mmap(-1, 16 * 4096) as area, bind_near(wire, area):
        assert listed(wire) is True

    def released() -> bool:
        return netlink.wait_until_released(socket.if_nametoindex(wire.interface), 0)

    assert wire.near.call(released)
    assert listed(wire) is False


def test_waiting_for_a_socket_that_stays(wire: Wire) -> None:
    def released() -> bool:
        index = socket.if_nametoindex(wire.interface)
        return netlink.wait_until_released(index, 0, timeout_s=0.02)

    with mmap.mmap(-1, 16 * 4096) as area, bind_near(wire, area):
        assert not wire.near.call(released)


def test_unknown_queue(wire: Wire) -> None:
    with pytest.raises(HostError, match="no receive queue 63"):
        probe_near(wire, 63)


def test_default_route_is_not_probed(wire: Wire) -> None:
    for command in (
        f"ip addr add {wire.guest_address}/24 dev {wire.interface}",
        f"ip route add default via {wire.peer_address}",
    ):
        assert wire.near.run(command.split()).returncode == 0
    with pytest.raises(HostError, match="carries this host's default route"):
        probe_near(wire)


def test_locked_memory_is_used_up(wire: Wire) -> None:
    script = (
        "from guestwire.host.af_xdp_probe import probe\n"
        "from guestwire.host.interface import Interface\n"
        f"print(probe(Interface.open({wire.interface!r})).copy.reason)\n"
    )
    limited = ["prlimit", "--memlock=4096", "setpriv", "--bounding-set=-ipc_lock", "--"]
    done = wire.near.run([*limited, sys.executable, "-c", script])
    assert done.returncode == 0, done.stdout
    assert "RLIMIT_MEMLOCK" in done.stdout
