"""Files arrive as they were sent, and nobody sees a wrong checksum: ports, modes, IP versions, MTUs.

With GUESTWIRE_SOAK=1 the files have 256 MiB and both guests try everything.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from backend.process import Backend
from guests import checksums
from guests.networks import BridgedWire, add_ipv6, set_offloads
from guestwire.errors import HostError
from guestwire.testing import Wire, images, transfer
from guestwire.testing.guests import Guest, QemuGuest, UmlGuest, VhostUserDevice

pytestmark = [pytest.mark.root, pytest.mark.slow]

SOAK = "GUESTWIRE_SOAK" in os.environ
MIB = 1 << 20
SIZE = {"uml": 256 * MIB, "qemu": 256 * MIB} if SOAK else {"uml": 16 * MIB, "qemu": 8 * MIB}
MEMORY_MIB = 768 if SOAK else 256
TIMEOUT = 600.0

PORTS = {
    "tap": f"tap:tap0,bridge={BridgedWire.bridge}",
    "tap-plain": f"tap:tap0,bridge={BridgedWire.bridge},offloads=no",
    "direct": f"xdp:{Wire.interface},mode=direct,offloads=yes",
    "in-place": f"xdp:{Wire.interface},mode=direct,offloads=yes,payload=in-place",
    "direct-plain": f"xdp:{Wire.interface},mode=direct,offloads=no",
    "bounce": f"xdp:{Wire.interface},mode=bounce,offloads=yes",
    "bounce-plain": f"xdp:{Wire.interface},mode=bounce,offloads=no",
    # The peer leaves checksums unfinished, as software interfaces do among themselves.
    "unfinished": f"xdp:{Wire.interface},mode=direct,offloads=yes",
    "unfinished-plain": f"xdp:{Wire.interface},mode=direct,offloads=no",
    "gro": f"xdp:{Wire.interface},mode=direct,offloads=yes,gro=yes",
}
MTUS = (1500, 9000)
USUALLY = {
    "uml": {
        *(("tap", 1500), ("tap", 9000), ("tap-plain", 1500)),
        *(("direct", 1500), ("direct", 9000), ("in-place", 1500), ("direct-plain", 1500)),
        *(("bounce", 1500), ("bounce", 9000), ("gro", 1500)),
        *(("unfinished", 1500), ("unfinished", 9000), ("unfinished-plain", 1500)),
    },
    # An emulated guest takes its time.
    "qemu": {("tap", 1500), ("direct", 9000)},
}


def cases() -> Iterator[tuple[str, str, int]]:
    for kind, usual in USUALLY.items():
        for port, mtu in itertools.product(PORTS, MTUS):
            if SOAK or (port, mtu) in usual:
                yield kind, port, mtu


def make_guest(kind: str, socket: Path, mtu: int) -> Guest:
    """A guest with IPv6, which is a module in one kernel and must not be switched off in the other."""
    if kind == "uml":
        return UmlGuest([VhostUserDevice(socket)], memory_mib=MEMORY_MIB, modules=["ipv6"])
    device = VhostUserDevice(socket, options={"host_mtu": str(mtu)})
    return QemuGuest([device], memory_mib=MEMORY_MIB, kernel_options="ipv6.disable=0")


@pytest.fixture(autouse=True)
def programs() -> None:
    for name in ("ethtool", "tcpdump"):
        try:
            images.installed(name)
        except HostError as error:
            pytest.skip(str(error))


@pytest.mark.parametrize(("kind", "port", "mtu"), list(cases()))
def test_files_arrive_and_checksums_are_right(tmp_path: Path, kind: str, port: str, mtu: int) -> None:
    network = BridgedWire if port.startswith("tap") else Wire
    with (
        network(mtu) as wire,
        Backend(tmp_path, PORTS[port], namespace=wire.near.name) as backend,
        make_guest(kind, backend.socket, mtu) as guest,
    ):
        if port.startswith("unfinished"):
            set_offloads(wire.far, wire.peer_interface, True)
        assert int(guest.check("cat /sys/class/net/eth0/mtu")) == mtu
        guest.check(f"ip addr add {wire.guest_address}/{wire.prefix_length} dev eth0; ip link set eth0 up")
        peers = (wire, add_ipv6(wire.far, wire.peer_interface, guest))
        for peer in peers:
            guest.wait_until(f"ping -c 1 -W 1 {peer.peer_address}")
            assert transfer.to_guest(peer, guest, SIZE[kind], TIMEOUT).intact
            with checksums.Watch(wire.far, wire.peer_interface, tmp_path, 2 * SIZE[kind]) as seen:
                assert transfer.from_guest(peer, guest, SIZE[kind], TIMEOUT).intact
            assert seen.bad == []
            assert seen.good > SIZE[kind] / mtu / 2
        assert checksums.errors(guest.check(checksums.COUNTERS)) == {}
        assert checksums.errors(wire.far.run(["sh", "-c", checksums.COUNTERS]).stdout) == {}
        check_counters(backend, port, mtu)


def check_counters(backend: Backend, port: str, mtu: int) -> None:
    """Large frames crossed where they were negotiated, and only there; none contradicted itself."""
    counters = backend.guest()["counters"]
    for direction, expected in (
        ("tx", not port.endswith("plain")),
        ("rx", port == "tap" or (port == "gro" and mtu == 1500)),  # longer frames are not merged
    ):
        assert bool(counters[direction]["gso_frames"]) == expected, direction
        assert counters[direction]["drops"].keys().isdisjoint({"bad_offload", "not_negotiated", "too_long"})
