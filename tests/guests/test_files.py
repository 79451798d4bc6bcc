"""Files arrive as they were sent, and nobody sees a wrong checksum: ports, modes, IP versions, MTUs.

There is one guest of each kind, with an interface on every port. With GUESTWIRE_SOAK=1 the files have 256 MiB
and both guests try everything.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from backend.process import Backend
from guests import checksums
from guests.attached import Attached, Place, booted, booted_on_demand
from guests.networks import BridgedWire, add_ipv6, set_offloads
from guestwire.errors import HostError
from guestwire.testing import Wire, images, transfer

pytestmark = [pytest.mark.root, pytest.mark.slow]

SOAK = "GUESTWIRE_SOAK" in os.environ
MIB = 1 << 20
SIZE = {"uml": 256 * MIB, "qemu": 256 * MIB} if SOAK else {"uml": 16 * MIB, "qemu": 8 * MIB}
MEMORY_MIB = 1024 if SOAK else 256
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
# With IPv6, which is a module in one kernel and must not be switched off in the other.
GUESTS = {"uml": {"modules": ["ipv6"]}, "qemu": {"kernel_options": "ipv6.disable=0"}}

Interfaces = Mapping[tuple[str, int], Attached]


def cases(kind: str) -> list[tuple[str, int]]:
    return [case for case in itertools.product(PORTS, MTUS) if SOAK or case in USUALLY[kind]]


def place(kind: str, port: str, mtu: int) -> Place:
    network = BridgedWire if port.startswith("tap") else Wire
    options = {"host_mtu": str(mtu)} if kind == "qemu" else {}
    return Place(PORTS[port], lambda: network(mtu), options)


@pytest.fixture(scope="module")
def boot(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Interfaces]]:
    for name in ("ethtool", "tcpdump"):
        try:
            images.installed(name)
        except HostError as error:
            pytest.skip(str(error))

    def interfaces(kind: str) -> AbstractContextManager[Interfaces]:
        places = {case: place(kind, *case) for case in cases(kind)}
        return booted(kind, places, tmp_path_factory.mktemp("files"), memory_mib=MEMORY_MIB, **GUESTS[kind])

    with booted_on_demand(interfaces) as boot:
        yield boot


@pytest.mark.parametrize(("kind", "port", "mtu"), [(kind, *case) for kind in USUALLY for case in cases(kind)])
def test_files_arrive_and_checksums_are_right(
    tmp_path: Path, boot: Callable[[str], Interfaces], kind: str, port: str, mtu: int
) -> None:
    interface = boot(kind)[port, mtu]
    guest, wire, name = interface.guest, interface.network, interface.name
    if port.startswith("unfinished"):
        set_offloads(wire.far, wire.peer_interface, True)
    assert int(guest.check(f"cat /sys/class/net/{name}/mtu")) == mtu
    with interface.configured():
        peers = (wire, add_ipv6(wire.far, wire.peer_interface, guest, name))
        for peer in peers:
            guest.wait_until(f"ping -c 1 -W 1 {peer.peer_address}")
            assert transfer.to_guest(peer, guest, SIZE[kind], TIMEOUT).intact
            with checksums.Watch(wire.far, wire.peer_interface, tmp_path, 2 * SIZE[kind]) as seen:
                assert transfer.from_guest(peer, guest, SIZE[kind], TIMEOUT).intact
            assert seen.bad == []
            assert seen.good > SIZE[kind] / mtu / 2
        assert checksums.errors(guest.check(checksums.COUNTERS)) == {}
        assert checksums.errors(wire.far.run(["sh", "-c", checksums.COUNTERS]).stdout) == {}
        check_counters(interface.backend, port, mtu)


def check_counters(backend: Backend, port: str, mtu: int) -> None:
    """Large frames crossed where they were negotiated, and only there; none contradicted itself."""
    counters = backend.guest()["counters"]
    for direction, expected in (
        ("tx", not port.endswith("plain")),
        ("rx", port == "tap" or (port == "gro" and mtu == 1500)),  # longer frames are not merged
    ):
        assert bool(counters[direction]["gso_frames"]) == expected, direction
        assert counters[direction]["drops"].keys().isdisjoint({"bad_offload", "not_negotiated", "too_long"})
