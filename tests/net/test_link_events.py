"""What happens to a guest's interface, and how the guest learns of it."""

from __future__ import annotations

import os
import select
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from backend.house import complaints, status
from backend.process import Backend, wait_until
from guestwire.host.link_monitor import LinkEvent, LinkMonitor
from guestwire.testing import FakeGuest, FrameStream, Wire
from guestwire.testing.namespaces import Namespace
from guestwire.vhost_user.constants import BackendRequest, Request
from guestwire.virtio.net_config import NetConfig, NetStatus
from net.traffic import Traffic, peer_socket

pytestmark = pytest.mark.root


@pytest.fixture
def wire() -> Iterator[Wire]:
    with Wire() as made:
        yield made


def ip(namespace: Namespace, command: str) -> None:
    assert namespace.run(["ip", "link", *command.split()]).returncode == 0


def link_is_up(guest: FakeGuest) -> bool:
    return NetStatus.LINK_UP in NetConfig.decode(guest.frontend.get_config(0, 12)).status


def test_carrier_and_interface_down_and_up(wire: Wire, tmp_path: Path) -> None:
    with (
        Backend(tmp_path, f"xdp:{wire.interface}", namespace=wire.near.name) as backend,
        peer_socket(wire) as peer,
        FakeGuest(backend.socket) as guest,
        guest.frontend.open_backend_channel() as channel,
    ):
        traffic = Traffic(guest, peer)
        traffic.sender = peer
        assert link_is_up(guest)
        for namespace, name in ((wire.far, wire.peer_interface), (wire.near, wire.interface)):
            traffic.goes_on()
            for up in (False, True):
                ip(namespace, f"set {name} {'up' if up else 'down'}")
                assert channel.next().request is BackendRequest.CONFIG_CHANGE_MSG
                assert link_is_up(guest) is up
                assert status(backend)["guest"].state == "running"
        traffic.goes_on()
        traffic.end(lost=None)
        assert backend.text().count("the link is down") == backend.text().count("the link is up") == 2
        assert complaints(backend.text()) == []


def test_a_link_that_is_down_from_the_beginning(wire: Wire, tmp_path: Path) -> None:
    ip(wire.far, f"set {wire.peer_interface} down")
    with (
        Backend(tmp_path, f"xdp:{wire.interface}", namespace=wire.near.name) as backend,
        FakeGuest(backend.socket) as guest,
    ):
        assert not link_is_up(guest)
        ip(wire.far, f"set {wire.peer_interface} up")
        wait_until(lambda: link_is_up(guest))


def test_another_mtu_under_traffic(wire: Wire, tmp_path: Path) -> None:
    with (
        Backend(tmp_path, f"xdp:{wire.interface}", namespace=wire.near.name) as backend,
        peer_socket(wire) as peer,
        FakeGuest(backend.socket) as guest,
    ):
        traffic = Traffic(guest, peer)
        traffic.sender = peer
        traffic.goes_on()

        def shrink() -> None:
            ip(wire.near, f"set {wire.interface} mtu 1000")
            wait_until(lambda: "MTU of port xdp:wire0 is 1000 now, was 1500" in backend.text())

        traffic.during(shrink)
        guest.pair.send_stream(FrameStream(1514, identifier=2), 20)
        wait_until(lambda: status(backend)["guest"].counters.tx.drops.get("too_long", 0) >= 20)
        (said,) = complaints(backend.text())
        assert "longer ones than for 1000 are dropped (too_long); ip link set dev wire0 mtu 1500" in said
        assert NetConfig.decode(guest.frontend.get_config(0, 12)).mtu == 1500

        def grow() -> None:
            ip(wire.near, f"set {wire.interface} mtu 1500")
            wait_until(lambda: "is 1500 now, was 1000" in backend.text())

        traffic.during(grow)
        before = status(backend)["guest"].counters.tx.drops["too_long"]
        traffic.goes_on()
        assert status(backend)["guest"].counters.tx.drops["too_long"] == before
        # Nothing is there twice, and the rings' indexes are exact: 20 frames more have left.
        guest.pair.drain()
        rx, tx = guest.rings
        assert guest.stop_ring(tx) == (traffic.leaving.sent + 20) % 65536
        guest.stop_ring(rx)
        assert rx.driver.raw.used_index == rx.base


def test_an_interface_with_another_name_is_the_same(wire: Wire, tmp_path: Path) -> None:
    with (
        Backend(tmp_path, f"xdp:{wire.interface}", namespace=wire.near.name) as backend,
        FakeGuest(backend.socket) as guest,
        peer_socket(wire) as peer,
    ):
        ip(wire.near, f"set {wire.interface} down")
        wait_until(lambda: not link_is_up(guest))
        ip(wire.near, f"set {wire.interface} name other0")
        ip(wire.near, "set other0 up")
        wait_until(lambda: link_is_up(guest))
        assert status(backend)["guest"].port.interface == "other0"
        traffic = Traffic(guest, peer)
        traffic.sender = peer
        traffic.goes_on()


def test_a_frontend_that_makes_the_channel_block(wire: Wire, tmp_path: Path) -> None:
    ours, theirs = socket.socketpair()
    with (
        ours,
        theirs,
        Backend(tmp_path, f"xdp:{wire.interface}", namespace=wire.near.name) as backend,
        FakeGuest(backend.socket) as guest,
    ):
        guest.frontend.request(Request.SET_BACKEND_REQ_FD, fds=[theirs.fileno()])
        theirs.setblocking(False)
        while select.select([], [theirs], [], 0)[1]:
            theirs.send(bytes(4096))
        # O_NONBLOCK belongs to the open file: now a write of the backend's waits as well.
        theirs.setblocking(True)
        for up in (False, True, False, True):
            ip(wire.far, f"set {wire.peer_interface} {'up' if up else 'down'}")
            wait_until(lambda: link_is_up(guest) is up)  # noqa: B023
            assert status(backend)["guest"].state == "running"
        ours.close()


# --- the monitor -----------------------------------------------------------------------------------------


@pytest.fixture
def monitor(wire: Wire) -> Iterator[LinkMonitor]:
    with wire.near.call(LinkMonitor) as made:
        yield made


def hear(monitor: LinkMonitor, name: str) -> LinkEvent:
    """Wait for events of an interface; return the newest."""
    heard: list[LinkEvent] = []

    def anything() -> bool:
        events = monitor.read()
        assert events is not None
        heard.extend(event for event in events if event.name == name)
        return bool(heard)

    wait_until(anything)
    return heard[-1]


def test_what_the_monitor_hears(wire: Wire, monitor: LinkMonitor) -> None:
    index = wire.near.call(lambda: socket.if_nametoindex(wire.interface))
    ip(wire.near, f"set {wire.interface} mtu 1400")
    assert hear(monitor, wire.interface) == LinkEvent(index, wire.interface, True, True, 1400, False)
    ip(wire.far, f"set {wire.peer_interface} down")
    wait_until(lambda: not hear(monitor, wire.interface).carrier)  # the first event may be an earlier one
    ip(wire.near, f"set {wire.interface} down")
    assert not hear(monitor, wire.interface).up
    ip(wire.near, f"del {wire.interface}")
    assert hear(monitor, wire.interface).gone
    assert monitor.read() == []


def test_leaving_a_bridge_is_not_leaving(wire: Wire, monitor: LinkMonitor) -> None:
    ip(wire.near, "add bridge0 type bridge")
    ip(wire.near, f"set {wire.interface} master bridge0")
    ip(wire.near, f"set {wire.interface} nomaster")
    events = monitor.read()
    assert events is not None
    assert {event.name for event in events} >= {wire.interface, "bridge0"}
    assert not any(event.gone for event in events)


def test_more_events_than_are_kept(wire: Wire, monitor: LinkMonitor) -> None:
    with socket.socket(fileno=os.dup(monitor.fileno())) as same:
        same.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
    for mtu in range(1400, 1420):
        ip(wire.near, f"set {wire.interface} mtu {mtu}")
    assert monitor.read() is None
    while monitor.read() != []:
        pass
    ip(wire.near, f"set {wire.interface} mtu 1500")
    assert hear(monitor, wire.interface).mtu == 1500
