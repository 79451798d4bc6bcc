"""Real Linux guests on a wire through guestwire: QEMU machines and User-Mode Linux."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from backend.process import Backend, wait_until
from guestwire.testing import Wire, transfer
from guestwire.testing.guests import Guest, QemuGuest, UmlGuest, VhostUserDevice

pytestmark = [pytest.mark.root, pytest.mark.slow]

MIB = 1 << 20
NO_OPTIONS: Mapping[str, str] = {}


@contextlib.contextmanager
def backend_on(wire: Wire, folder: Path, mode: str = "direct", *arguments: str) -> Iterator[Backend]:
    # Offloads have tests of their own: here a frame in the guest is a frame on the wire.
    port = f"xdp:{wire.interface},mode={mode},offloads=no"
    with Backend(folder, port, arguments, namespace=wire.near.name) as backend:
        yield backend


def make_guest(kind: str, socket: Path, options: Mapping[str, str] = NO_OPTIONS, **more: bool) -> Guest:
    device = VhostUserDevice(socket, options=options, **more)
    return UmlGuest([device], memory_mib=256) if kind == "uml" else QemuGuest([device], memory_mib=256)


def configure(guest: Guest, wire: Wire) -> None:
    guest.check(f"ip addr add {wire.guest_address}/{wire.prefix_length} dev eth0 && ip link set eth0 up")


def ping_both_ways(guest: Guest, wire: Wire) -> None:
    guest.wait_until(f"ping -c 1 -W 1 {wire.peer_address}")
    # The host may have no ping: an answer to the guest's question proves the way back as well.
    guest.check(f"ping -c 3 -i 0.2 -W 2 {wire.peer_address}")


@pytest.mark.parametrize("kind", ["uml", "qemu"])
@pytest.mark.parametrize("mode", ["direct", "bounce"])
def test_a_guest_pings_and_moves_files(tmp_path: Path, kind: str, mode: str) -> None:
    with (
        Wire() as wire,
        backend_on(wire, tmp_path, mode) as backend,
        make_guest(kind, backend.socket) as guest,
    ):
        configure(guest, wire)
        ping_both_ways(guest, wire)
        for move in (transfer.to_guest, transfer.from_guest):
            moved = move(wire, guest, 16 * MIB)
            assert moved.intact
        counted = backend.guest()["counters"]
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


@pytest.mark.parametrize(
    "options", [{"mrg_rxbuf": "off"}, {"indirect_desc": "off", "event_idx": "off"}, {"packed": "on"}]
)
def test_a_driver_with_other_features(tmp_path: Path, options: Mapping[str, str]) -> None:
    with (
        Wire() as wire,
        backend_on(wire, tmp_path) as backend,
        make_guest("qemu", backend.socket, options) as guest,
    ):
        configure(guest, wire)
        packed = "VIRTIO_F_RING_PACKED" in backend.guest()["features"]
        assert packed is (options.get("packed") == "on")
        ping_both_ways(guest, wire)
        assert transfer.to_guest(wire, guest, 4 * MIB).intact
        assert transfer.from_guest(wire, guest, 4 * MIB).intact
        assert backend.guest()["counters"]["rx"]["copied_frames"] == {}


def test_a_killed_guest_makes_room_for_the_next(tmp_path: Path) -> None:
    with Wire() as wire, backend_on(wire, tmp_path) as backend:
        for visit in range(2):
            with make_guest("qemu", backend.socket) as guest:
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
    guest = make_guest("qemu", socket, listen=True)
    try:
        guest.start()
        yield guest
    finally:
        guest.close()
