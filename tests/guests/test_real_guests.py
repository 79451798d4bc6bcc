"""Real Linux guests on a wire through guestwire: QEMU machines and User-Mode Linux."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from backend.process import Backend, wait_until
from guests.attached import Attached, Place, booted, booted_on_demand
from guests.networks import TapHost
from guestwire.testing import Wire, transfer
from guestwire.testing.guests import Guest, QemuGuest, VhostUserDevice

pytestmark = [pytest.mark.root, pytest.mark.slow]

MIB = 1 << 20
DRIVERS: dict[str, dict[str, str]] = {
    "usual": {},
    "not mergeable": {"mrg_rxbuf": "off"},
    "simple": {"indirect_desc": "off", "event_idx": "off"},
    "packed": {"packed": "on"},
}
# The interfaces of the guests that are booted once: the port's mode, and which of the drivers.
INTERFACES: dict[str, list[tuple[str, str]]] = {
    "uml": [("direct", "usual"), ("bounce", "usual")],
    "qemu": [("bounce", "usual"), *(("direct", driver) for driver in DRIVERS)],
}
Interfaces = Mapping[tuple[str, str], Attached]


def port_on(wire: type[Wire] | Wire, mode: str) -> str:
    # Offloads have tests of their own: here a frame in the guest is a frame on the wire.
    return f"xdp:{wire.interface},mode={mode},offloads=no"


@contextlib.contextmanager
def backend_on(wire: Wire, folder: Path, mode: str = "direct", *arguments: str) -> Iterator[Backend]:
    with Backend(folder, port_on(wire, mode), arguments, namespace=wire.near.name) as backend:
        yield backend


def make_guest(socket: Path, *, listen: bool = False) -> Guest:
    return QemuGuest([VhostUserDevice(socket, listen=listen)], memory_mib=256)


def configure(guest: Guest, wire: Wire) -> None:
    guest.check(f"ip addr add {wire.guest_address}/{wire.prefix_length} dev eth0 && ip link set eth0 up")


def ping_both_ways(guest: Guest, wire: TapHost | Wire) -> None:
    guest.wait_until(f"ping -c 1 -W 1 {wire.peer_address}")
    # The host may have no ping: an answer to the guest's question proves the way back as well.
    guest.check(f"ping -c 3 -i 0.2 -W 2 {wire.peer_address}")


@pytest.fixture(scope="module")
def boot(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Interfaces]]:
    def interfaces(kind: str) -> AbstractContextManager[Interfaces]:
        places = {
            (mode, driver): Place(port_on(Wire, mode), options=DRIVERS[driver])
            for mode, driver in INTERFACES[kind]
        }
        return booted(kind, places, tmp_path_factory.mktemp("guests"))

    with booted_on_demand(interfaces) as boot:
        yield boot


@pytest.mark.parametrize("kind", ["uml", "qemu"])
@pytest.mark.parametrize("mode", ["direct", "bounce"])
def test_a_guest_pings_and_moves_files(boot: Callable[[str], Interfaces], kind: str, mode: str) -> None:
    interface = boot(kind)[mode, "usual"]
    guest, wire = interface.guest, interface.network
    with interface.configured():
        ping_both_ways(guest, wire)
        for move in (transfer.to_guest, transfer.from_guest):
            moved = move(wire, guest, 16 * MIB)
            assert moved.intact
        counted = interface.backend.guest()["counters"]
        for direction in ("rx", "tx"):
            one = counted[direction]
            assert one["bytes"] > 16 * MIB
            copied = one["copied_frames"]
            assert one["direct_frames"] + sum(copied.values()) == one["frames"]
            if mode == "bounce":
                assert copied == {"bounce_mode": one["frames"]}
            else:
                # What the guest leaves to us is copied once, behind the headers that we make.
                assert set(copied) <= ({"checksum", "segmentation"} if direction == "tx" else set())


@pytest.mark.parametrize("driver", [driver for driver in DRIVERS if driver != "usual"])
def test_a_driver_with_other_features(boot: Callable[[str], Interfaces], driver: str) -> None:
    interface = boot("qemu")["direct", driver]
    guest, wire = interface.guest, interface.network
    with interface.configured():
        negotiated = interface.backend.guest()["features"]
        assert ("VIRTIO_F_RING_PACKED" in negotiated) is (driver == "packed")
        assert ("VIRTIO_NET_F_MRG_RXBUF" in negotiated) is (driver != "not mergeable")
        assert ("VIRTIO_F_EVENT_IDX" in negotiated) is (driver != "simple")
        assert ("VIRTIO_F_INDIRECT_DESC" in negotiated) is (driver != "simple")
        ping_both_ways(guest, wire)
        assert transfer.to_guest(wire, guest, 4 * MIB).intact
        assert transfer.from_guest(wire, guest, 4 * MIB).intact
        assert interface.backend.guest()["counters"]["rx"]["copied_frames"] == {}


def test_a_killed_guest_makes_room_for_the_next(tmp_path: Path) -> None:
    with Wire() as wire, backend_on(wire, tmp_path) as backend:
        for visit in range(2):
            with make_guest(backend.socket) as guest:
                configure(guest, wire)
                ping_both_ways(guest, wire)
                guest.kill()
            wait_until(lambda: backend.text().count("the frontend is gone") > visit)  # noqa: B023
            assert backend.guest()["state"] == "listening"


def test_a_guest_outlives_its_backend_where_qemu_is_the_server(tmp_path: Path) -> None:
    with Wire() as wire:
        socket = tmp_path / "guest.sock"
        with make_guest_that_listens(socket) as guest:
            for visit in range(2):
                with backend_on(wire, tmp_path, "direct", "--connect"):
                    if visit == 0:
                        guest.wait_ready()
                        configure(guest, wire)
                    ping_both_ways(guest, wire)


@contextlib.contextmanager
def make_guest_that_listens(socket: Path) -> Iterator[Guest]:
    """QEMU waits for its backend before it boots: the guest is started and not waited for."""
    guest = make_guest(socket, listen=True)
    try:
        guest.start()
        yield guest
    finally:
        guest.close()
