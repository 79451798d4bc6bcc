"""Two real guests of one process, on a wire: files cross intact, and large frames whole."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from backend.house import status
from backend.process import Backend
from guests import checksums
from guestwire.testing.guests import Guest, UmlGuest, VhostUserDevice

pytestmark = [pytest.mark.root, pytest.mark.slow]

MIB = 32
FILE = "/tmp/file"  # in the guests
ADDRESSES = ("192.0.2.1", "192.0.2.2")
CONFIGURATION = """
[[guest]]
socket_path = "{folder}/one.sock"
mac = "02:00:00:00:00:01"
port = "wire:lan,wait_us=1000000,source=02:00:00:00:00:01"

[[guest]]
socket_path = "{folder}/other.sock"
mac = "02:00:00:00:00:02"
port = "wire:lan,wait_us=1000000"
"""


@pytest.fixture
def backend(tmp_path: Path) -> Iterator[Backend]:
    file = tmp_path / "guests.toml"
    file.write_text(CONFIGURATION.format(folder=tmp_path))
    sockets = [tmp_path / "one.sock", tmp_path / "other.sock"]
    with Backend(tmp_path, arguments=[str(file)], sockets=sockets) as backend:
        yield backend


def make_guest(socket: Path) -> Guest:
    # Only with IPv6 a kernel says which checksums were wrong of that.
    return UmlGuest([VhostUserDevice(socket)], memory_mib=256, modules=["ipv6"])


def send_file(sender: Guest, receiver: Guest, address: str) -> None:
    """Have a file of random bytes cross by TCP; it arrives as it was."""
    receiver.check(f"(nc -l -p 7 -e dd of={FILE} bs=256k; touch {FILE}.done) </dev/null >/dev/null 2>&1 &")
    receiver.wait_until("netstat -ltn | grep -q :7")
    sender.check(f"dd if=/dev/urandom of={FILE} bs=1M count={MIB} 2>/dev/null")
    sender.check(f"nc {address} 7 -e dd if={FILE} bs=256k status=none")
    receiver.wait_until(f"rm {FILE}.done")
    sums = {guest.check(f"sha512sum {FILE}").split()[0] for guest in (sender, receiver)}
    assert len(sums) == 1


def test_files_cross_intact(backend: Backend) -> None:
    with (
        make_guest(backend.sockets[0]) as one,
        make_guest(backend.sockets[1]) as other,
    ):
        guests = (one, other)
        for guest, address in zip(guests, ADDRESSES, strict=True):
            guest.check(f"ip addr add {address}/24 dev eth0; ip link set eth0 up")
        one.wait_until(f"ping -c 1 -W 1 {ADDRESSES[1]}")
        # What a guest said to everybody before the other was up is not waited for.
        before = {name: state.counters.rx.drops for name, state in status(backend).items()}
        for number in range(2):
            send_file(guests[number], guests[1 - number], ADDRESSES[1 - number])
        for guest in guests:
            assert checksums.errors(guest.check(checksums.COUNTERS)) == {}
        for name, state in status(backend).items():
            counters = state.counters
            assert counters.rx.bytes > MIB << 20
            # On average a good deal longer than the MTU: segmentation was left to nobody.
            assert counters.rx.gso_frames * 8192 < counters.rx.bytes
            assert counters.rx.gso_frames > 0
            assert counters.tx.segments == 0
            assert counters.rx.drops == before[name]
            assert counters.tx.drops == {}
