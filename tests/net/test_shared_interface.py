"""Several guests of one process on the queues of one interface: none disturbs another."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from backend.house import complaints, status
from backend.process import Backend, wait_until
from guestwire.errors import GuestwireError
from guestwire.ports.xdp import XdpControl
from guestwire.testing import Wire
from net.queues import queues_by_address
from net.tenants import QUEUES, programs, tenants

pytestmark = pytest.mark.root


@pytest.fixture
def wire() -> Iterator[Wire]:
    with Wire(queues=QUEUES) as made, queues_by_address(made):
        yield made


@pytest.mark.parametrize("mode", ["direct", "bounce"])
def test_one_of_three_guests_dies_and_comes_back(wire: Wire, tmp_path: Path, mode: str) -> None:
    with tenants(tmp_path, wire, 3, f",mode={mode}") as house:
        first, mortal, third = house.all
        house.exchange(first, mortal, third)
        before = programs(wire)
        assert len(before) == 1

        def die_and_come_back() -> None:
            mortal.guest.frontend.close()
            wait_until(lambda: status(house.backend)["vm1"].state == "listening")
            mortal.guest.reconnect()

        for _ in range(3):
            house.during(die_and_come_back, first, third)
            house.exchange(first, mortal, third)
        assert programs(wire) == before
        assert [guest.port.mode for guest in status(house.backend).values()] == [mode] * 3
        assert complaints(house.backend.text()) == []
    assert programs(wire) == ()


def test_guests_change_queues(wire: Wire, tmp_path: Path) -> None:
    """Two of them crosswise, by way of the queue that is free; each goes also to another port and back."""
    with tenants(tmp_path, wire, 3) as house:
        first, second, third = house.all
        before = programs(wire)
        for tenant, queue in ((first, 3), (second, 0), (first, 1)):
            others = [other for other in house.all if other is not tenant]
            port = f"xdp:{wire.interface},queue={queue}"
            house.during(lambda: house.rebind(tenant, port), *others)  # noqa: B023
            tenant.at(queue)
            house.exchange(*house.all)
        house.during(lambda: house.rebind(third, "null"), first, second)
        house.during(lambda: house.rebind(third, f"xdp:{wire.interface},queue=2"), first, second)
        house.exchange(*house.all)
        assert programs(wire) == before
        assert complaints(house.backend.text()) == []
    assert programs(wire) == ()


def test_a_queue_that_another_guest_has(wire: Wire, tmp_path: Path) -> None:
    with tenants(tmp_path, wire, 2) as house:
        with pytest.raises(GuestwireError, match="guest vm1 has queue 1 already") as caught:
            house.rebind(house.all[0], f"xdp:{wire.interface},queue=1")
        assert caught.value.remedy == "use another queue (,queue=2)"
        house.exchange(*house.all)
        # Its own it can have otherwise.
        house.during(lambda: house.rebind(house.all[0], f"xdp:{wire.interface},mode=bounce"), house.all[1])
        house.exchange(*house.all)


def test_guests_of_a_file_that_want_the_same_queue(wire: Wire, tmp_path: Path) -> None:
    file = tmp_path / "guests.toml"
    sockets = [tmp_path / "a.sock", tmp_path / "b.sock"]
    file.write_text(
        "".join(f"[[guest]]\nsocket_path = '{path}'\nport = 'xdp:{wire.interface}'\n" for path in sockets)
    )
    with Backend(tmp_path, None, [str(file)], namespace=wire.near.name, sockets=sockets[:1]) as backend:
        wait_until(lambda: status(backend)["b"].state != "starting")  # it is opened after the other one
        states = status(backend)
        assert states["a"].state == "listening"
        assert states["b"].state == f"failed: interface {wire.interface}: guest a has queue 0 already"


def test_an_interface_of_the_same_number_in_another_namespace() -> None:
    """Numbers are given out in each namespace anew: these two interfaces share one."""
    with Wire() as one, Wire() as other:
        ports = [XdpControl(one.interface, guest="a"), XdpControl(other.interface, guest="b")]
        try:
            for port, wire in zip(ports, (one, other), strict=True):
                wire.near.call(lambda: port.open(1))  # noqa: B023
            assert ports[0].interface_index == ports[1].interface_index
            assert (len(programs(one)), len(programs(other))) == (1, 1)
            ports[0].close()
            assert (len(programs(one)), len(programs(other))) == (0, 1)
        finally:
            for port in ports:
                port.close()
