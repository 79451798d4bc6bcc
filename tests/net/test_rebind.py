"""A guest that is bound to another port while frames pass: it goes on, and nothing is there twice."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from backend.house import complaints, status
from backend.process import Backend, wait_until
from guestwire.host.interface import Interface
from guestwire.testing import BackendChannel, FakeGuest, SharedMemory, Wire
from guestwire.vhost_user.constants import BackendRequest
from guestwire.virtio.net_config import NetConfig, NetStatus
from net.traffic import Traffic, connect, peer_socket, rebind, second_wire

pytestmark = pytest.mark.root

DESCRIPTION, HOST = 2, 3  # exit statuses (docs/reference.md)
MIB = 1 << 20
LITTLE_TO_LOCK = (
    *("setpriv", "--inh-caps", "-ipc_lock", "--bounding-set", "-ipc_lock", "--"),
    *("prlimit", f"--memlock={6 * MIB}:{6 * MIB}", "--"),
)


@pytest.fixture
def wire() -> Iterator[Wire]:
    with Wire() as made:
        yield made


def programs(wire: Wire, interface: str) -> int:
    return len(wire.near.call(lambda: Interface.open(interface)).programs)


def config(guest: FakeGuest) -> NetConfig:
    return NetConfig.decode(guest.frontend.get_config(0, 12))


def hear(channel: BackendChannel) -> None:
    assert channel.next().request is BackendRequest.CONFIG_CHANGE_MSG


def test_from_echo_to_an_interface_and_back(wire: Wire, tmp_path: Path) -> None:
    with (
        Backend(tmp_path, "echo", namespace=wire.near.name) as backend,
        peer_socket(wire) as peer,
        FakeGuest(backend.socket) as guest,
    ):
        traffic = Traffic(guest, peer)
        traffic.goes_on()
        traffic.during(lambda: rebind(backend, f"xdp:{wire.interface}"))
        returned, _ = traffic.counts()
        traffic.sender = peer
        traffic.goes_on()
        assert traffic.counts()[0] == returned
        state = status(backend)["guest"]
        assert (state.port.description, state.port.kind) == (f"xdp:{wire.interface}", "xdp")
        assert (state.port.interface, state.state) == (wire.interface, "running")
        traffic.end()
        answer = backend.run("rebind", "guest", "echo")
        assert answer.returncode == 0, answer.stderr
        assert re.fullmatch(r"guest: xdp:wire0 -> echo, \d+\.\d ms without a port\n", answer.stdout)
        assert programs(wire, wire.interface) == 0
        assert complaints(backend.text()) == []


@pytest.mark.parametrize("modes", [("direct", "direct"), ("bounce", "direct"), ("direct", "bounce")])
def test_from_one_wire_to_another(wire: Wire, tmp_path: Path, modes: tuple[str, str]) -> None:
    near, far = second_wire(wire)
    with (
        Backend(tmp_path, f"xdp:{wire.interface},mode={modes[0]}", namespace=wire.near.name) as backend,
        peer_socket(wire) as one,
        peer_socket(wire, far) as other,
        FakeGuest(backend.socket) as guest,
    ):
        traffic = Traffic(guest, one, other)
        traffic.sender = one
        traffic.goes_on()
        port = f"xdp:{near},mode={modes[1]}"
        milliseconds = traffic.during(lambda: rebind(backend, port))
        assert 0 < milliseconds < 1000
        traffic.sender = other
        before = traffic.counts()[1]
        traffic.goes_on()
        assert traffic.counts()[1] == before
        assert status(backend)["guest"].port.mode == modes[1]
        assert (programs(wire, wire.interface), programs(wire, near)) == (0, 1)
        # Every frame of the guest's has left, by one wire or by the other.
        traffic.end()
        assert complaints(backend.text()) == []


def test_another_mode_of_the_same_interface(wire: Wire, tmp_path: Path) -> None:
    with (
        Backend(tmp_path, f"xdp:{wire.interface},mode=direct", namespace=wire.near.name) as backend,
        peer_socket(wire) as peer,
        FakeGuest(backend.socket) as guest,
    ):
        traffic = Traffic(guest, peer)
        traffic.sender = peer
        before = backend.resources_at_rest()
        for mode in ("bounce", "direct", "bounce", "direct"):
            traffic.goes_on()
            traffic.during(lambda: rebind(backend, f"xdp:{wire.interface},mode={mode}"))  # noqa: B023
            traffic.goes_on()
            assert status(backend)["guest"].port.mode == mode
        wait_until(lambda: backend.resources() == before)
        traffic.end()
        assert complaints(backend.text()) == []


def test_memory_that_may_be_locked_only_once(wire: Wire, tmp_path: Path) -> None:
    near, far = second_wire(wire)
    with (
        Backend(
            tmp_path, f"xdp:{wire.interface},mode=direct", namespace=wire.near.name, wrapper=LITTLE_TO_LOCK
        ) as backend,
        SharedMemory(MIB) as memory,
        peer_socket(wire) as one,
        peer_socket(wire, far) as other,
        FakeGuest(backend.socket, memory=memory, queue_size=64) as guest,
    ):
        traffic = Traffic(guest, one, other)
        traffic.goes_on()
        traffic.during(lambda: rebind(backend, f"xdp:{near},mode=direct"))
        traffic.goes_on()
        assert status(backend)["guest"].port.mode == "direct"
        traffic.end()


def test_what_is_refused_disturbs_nobody(wire: Wire, tmp_path: Path) -> None:
    near, _ = second_wire(wire)
    assert wire.near.run(["ip", "link", "set", near, "mtu", "1400"]).returncode == 0
    with (
        Backend(tmp_path, f"xdp:{wire.interface}", namespace=wire.near.name) as backend,
        peer_socket(wire) as peer,
        FakeGuest(backend.socket) as guest,
    ):
        traffic = Traffic(guest, peer)
        traffic.sender = peer
        traffic.goes_on()
        for name, port, code, words in (
            ("nobody", "echo", DESCRIPTION, "no guest named nobody is served by a running process"),
            ("guest", "wire0", DESCRIPTION, "unknown port 'wire0'"),
            ("guest", "xdp:wire9", HOST, "there is no interface 'wire9'"),
            ("guest", f"xdp:{near}", HOST, "an MTU of 1500, port xdp:wire1 carries 1400"),
            ("guest", f"xdp:{near},queue=7", HOST, "interface wire1 has no receive queue 7"),
            ("guest", f"xdp:{wire.interface},queue=7", HOST, "interface wire0 has no receive queue 7"),
            ("guest", f"xdp:{wire.interface},mode=zero-copy", HOST, "wire0 cannot do mode=zero-copy"),
        ):
            answer = traffic.during(lambda: backend.run("rebind", name, port))  # noqa: B023
            assert answer.returncode == code, answer.stderr
            assert words in answer.stderr
            assert "to do: " in answer.stderr
            traffic.goes_on()
            state = status(backend)["guest"]
            assert (state.state, state.port.description) == ("running", f"xdp:{wire.interface}")
            assert state.port.mode == "direct"
        assert programs(wire, near) == 0
        traffic.end()


def test_an_interface_that_goes_and_comes_back(wire: Wire, tmp_path: Path) -> None:
    port = f"xdp:{wire.interface}"
    with (
        Backend(tmp_path, port, namespace=wire.near.name) as backend,
        peer_socket(wire) as peer,
        FakeGuest(backend.socket) as guest,
        guest.frontend.open_backend_channel() as channel,
    ):
        traffic = Traffic(guest, peer)
        traffic.sender = peer
        traffic.goes_on()
        traffic.sender = None
        assert wire.near.run(["ip", "link", "del", wire.interface]).returncode == 0
        hear(channel)
        assert NetStatus.LINK_UP not in config(guest).status
        state = status(backend)["guest"]
        assert state.state == f"failed: the interface of port {port} is gone; guestwire rebind guest PORT"
        assert state.port.mode is None
        # What the guest sends is dropped, its buffers come back.
        guest.pair.send_stream(traffic.leaving, 100)
        assert status(backend)["guest"].counters.tx.drops["no_receiver"] >= 100
        answer = backend.run("rebind", "guest", port)
        assert answer.returncode == HOST
        assert "there is no interface 'wire0'" in answer.stderr
        connect(wire, wire.interface, wire.peer_interface)
        rebind(backend, port)
        hear(channel)
        assert NetStatus.LINK_UP in config(guest).status
        with peer_socket(wire) as new_peer:
            traffic.peers[0] = traffic.sender = new_peer
            traffic.goes_on()
            assert status(backend)["guest"].state == "running"
            traffic.end(lost=None)
        (said,) = complaints(backend.text())
        assert f"the interface of port {port} is gone; guestwire rebind guest PORT" in said


def test_a_guest_that_starts_without_its_interface_has_no_link(wire: Wire, tmp_path: Path) -> None:
    port = f"xdp:{wire.interface}"
    with Backend(tmp_path, port, namespace=wire.near.name) as backend:
        assert wire.near.run(["ip", "link", "del", wire.interface]).returncode == 0
        wait_until(lambda: "is gone" in status(backend)["guest"].state)
        with FakeGuest(backend.socket) as guest:
            assert NetStatus.LINK_UP not in config(guest).status
            rebind(backend, "echo")
            assert NetStatus.LINK_UP in config(guest).status
            Traffic(guest).goes_on()
