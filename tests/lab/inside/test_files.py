"""Files arrive as they were sent over a zero-copy port: a User-Mode Linux guest, its memory on huge pages."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from guests import checksums
from guests.networks import add_ipv6
from guestwire.testing import transfer
from guestwire.testing.guests import UmlGuest, VhostUserDevice
from guestwire.testing.namespaces import NamedNamespace
from lab.inside.commands import LabBackend
from lab.inside.peer import ADDRESS, GUEST_ADDRESS, MIB, PREFIX_LENGTH, wait_for_carrier
from lab.machine import NAMESPACE, NIC, PEER

pytestmark = pytest.mark.timeout(1800)

SIZE = 256 * MIB
MEMORY_MIB = 768
TIMEOUT = 600.0
MTU = 1500
# The only sender on this cable has the same MTU: see test_nested.
PORTS = {
    "plain": f"xdp:{NIC},mode=zero-copy,trust-mtu=yes",
    "offloads": f"xdp:{NIC},mode=zero-copy,trust-mtu=yes,offloads=yes",
}


@dataclass(frozen=True)
class Cable:
    """What a transfer needs to know of a wire."""

    far: NamedNamespace
    peer_address: str = ADDRESS


@pytest.fixture
def cable() -> Cable:
    far = NamedNamespace(NAMESPACE)
    for command in (
        f"ip address flush dev {PEER}",
        f"ip address add {ADDRESS}/{PREFIX_LENGTH} dev {PEER}",
        # Frames that a kernel has merged have no checksum of their own to be looked at.
        f"ethtool -K {PEER} gro off",
    ):
        done = far.run(command.split())
        assert done.returncode == 0, done.stdout
    return Cable(far)


@pytest.fixture(autouse=True)
def huge_pages() -> Iterator[None]:
    """Shared memory in huge pages: User-Mode Linux keeps its memory in a file there."""
    subprocess.run(["mount", "-o", f"remount,huge=always,size={2 * MEMORY_MIB}M", "/dev/shm"], check=True)
    yield
    subprocess.run(["mount", "-o", "remount,huge=never", "/dev/shm"], check=True)


def make_guest(socket: Path) -> UmlGuest:
    return UmlGuest(
        [VhostUserDevice(socket)],
        memory_mib=MEMORY_MIB,
        modules=["ipv6"],
        boot_seconds=600,
    )


@pytest.mark.parametrize("port", PORTS)
def test_files_arrive_and_checksums_are_right(tmp_path: Path, cable: Cable, port: str) -> None:
    with LabBackend(tmp_path, PORTS[port]) as backend, make_guest(backend.socket) as guest:
        guest.check(f"ip addr add {GUEST_ADDRESS}/{PREFIX_LENGTH} dev eth0; ip link set eth0 up")
        wait_for_carrier()
        for peer in (cable, add_ipv6(cable.far, PEER, guest)):
            guest.wait_until(f"ping -c 1 -W 1 {peer.peer_address}")
            with checksums.Watch(cable.far, PEER, tmp_path, 2 * SIZE) as seen:
                # A checksum of so much takes ten minutes in a guest here.
                there, back = transfer.there_and_back(peer, guest, SIZE, TIMEOUT)
            assert back.intact
            assert seen.bad == []
            assert seen.good > SIZE / MTU / 2
            seconds = f"{there.seconds:.0f} s to the guest, {back.seconds:.0f} s from it"
            print(f"\n{port}, {peer.peer_address}: {SIZE >> 20} MiB each way, {seconds}")
        assert checksums.errors(guest.check(checksums.COUNTERS)) == {}
        assert checksums.errors(cable.far.run(["sh", "-c", checksums.COUNTERS]).stdout) == {}
        state = backend.guest()
    assert state["port"]["mode"] == "zero-copy", state["port"]
    for direction in ("rx", "tx"):
        counted = state["counters"][direction]
        print(f"{direction}: {json.dumps(counted)}")
        assert counted["zero_copy_frames"] > 0, f"{state}\n{backend.text()}"
    assert bool(state["counters"]["tx"]["gso_frames"]) == (port == "offloads")
