"""The limit on pinned memory, from the command line to the mode that a guest gets."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from backend.process import Backend, wait_until
from guestwire.testing import BackendError, FakeGuest, SharedMemory, Wire

pytestmark = pytest.mark.root

MIB = 1 << 20


@pytest.fixture
def wire() -> Iterator[Wire]:
    with Wire() as made:
        yield made


def pinned(backend: Backend, name: str = "guest") -> int:
    return int(backend.guests()[name]["memory"]["pinned_bytes"])


def test_within_the_budget(tmp_path: Path, wire: Wire) -> None:
    port, limit = f"xdp:{wire.interface}", ["--max-pinned", "64M"]
    with Backend(tmp_path, port, limit, namespace=wire.near.name) as backend:
        memory = backend.guest()["memory"]
        assert memory == {"guest_bytes": 0, "pinned_bytes": 0, "budget_bytes": 64 * MIB, "taken": 0}
        for _ in range(3):  # what a guest held is there for the next one
            with SharedMemory(32 * MIB) as shared, FakeGuest(backend.socket, memory=shared) as guest:
                guest.frontend.get_features()
                state = backend.guest()
                assert state["port"]["mode"] == "direct"
                assert 32 * MIB < state["memory"]["pinned_bytes"] <= 64 * MIB
            wait_until(lambda: backend.guest()["state"] == "listening")
        assert pinned(backend) == 0


def test_over_the_budget_auto_comes_to_bounce(tmp_path: Path, wire: Wire) -> None:
    port, limit = f"xdp:{wire.interface}", ["--max-pinned", "32M"]
    with (
        Backend(tmp_path, port, limit, namespace=wire.near.name) as backend,
        SharedMemory(32 * MIB) as shared,
        FakeGuest(backend.socket, memory=shared) as guest,
    ):
        guest.frontend.get_features()
        state = backend.guest()
        assert state["port"]["mode"] == "bounce"
        assert "hold 0 bytes of the 32 MiB that they may" in state["port"]["mode_reason"]
        assert 0 < state["memory"]["pinned_bytes"] < 32 * MIB


def test_over_the_budget_a_mode_by_name_is_refused(tmp_path: Path, wire: Wire) -> None:
    port, limit = f"xdp:{wire.interface},mode=direct", ["--max-pinned", "32M"]
    with (
        Backend(tmp_path, port, limit, namespace=wire.near.name) as backend,
        SharedMemory(32 * MIB) as shared,
    ):
        guest = FakeGuest(backend.socket, memory=shared)
        with pytest.raises(BackendError, match="the backend refused"), guest:
            pass
        wait_until(lambda: "would have to be pinned" in backend.text())
        assert "allow 37M or more (--max-pinned" in backend.text()


def test_guests_share_the_budget_of_their_process(tmp_path: Path, wire: Wire) -> None:
    sockets = [tmp_path / f"{name}.sock" for name in ("one", "other")]
    file = tmp_path / "guests.toml"
    second = "ip link add more0 up type veth peer name more1"
    assert wire.near.run(second.split()).returncode == 0
    guests = (
        f"[[guest]]\nsocket_path = '{path}'\nport = 'xdp:{interface}'\n"
        for path, interface in zip(sockets, (wire.interface, "more0"), strict=True)
    )
    file.write_text("max_pinned = '64M'\n" + "".join(guests) + "max_pinned = '50M'\n")
    with Backend(tmp_path, None, [str(file)], sockets=sockets, namespace=wire.near.name) as backend:
        budgets = {name: guest["memory"]["budget_bytes"] for name, guest in backend.guests().items()}
        assert budgets == {"one": 64 * MIB, "other": 50 * MIB}
        with SharedMemory(32 * MIB) as shared, SharedMemory(32 * MIB) as more:
            with FakeGuest(sockets[1], memory=shared) as guest:
                guest.frontend.get_features()
                with FakeGuest(sockets[0], memory=more) as late:
                    late.frontend.get_features()
                    modes = {name: state["port"]["mode"] for name, state in backend.guests().items()}
                    assert modes == {"one": "bounce", "other": "direct"}
            wait_until(lambda: pinned(backend, "other") == 0)
            with FakeGuest(sockets[0], memory=more) as late:
                late.frontend.get_features()
                assert backend.guests()["one"]["port"]["mode"] == "direct"
