"""What a guest's driver and a TAP interface say they can do is what was negotiated (``ethtool -k``).

A guest takes long to boot, so there is one of each kind, with an interface on every port and for every
driver: each of these has a network and a backend of its own.
"""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from backend.process import Backend
from guests.networks import TapHost
from guestwire.errors import HostError
from guestwire.testing import Wire, images
from guestwire.testing.guests import Guest, QemuGuest, UmlGuest, VhostUserDevice
from guestwire.virtio.features import Feature

pytestmark = [pytest.mark.root, pytest.mark.slow]

LARGE = ("VIRTIO_NET_F_GUEST_TSO4", "VIRTIO_NET_F_GUEST_TSO6")

# What Linux calls the features of its virtio-net driver, and any of which turns it on.
DRIVER = {
    "tx-checksum-ip-generic": ("VIRTIO_NET_F_CSUM",),
    "tx-scatter-gather": ("VIRTIO_NET_F_CSUM",),
    "tx-tcp-segmentation": ("VIRTIO_NET_F_HOST_TSO4",),
    "tx-tcp6-segmentation": ("VIRTIO_NET_F_HOST_TSO6",),
    "tx-tcp-ecn-segmentation": ("VIRTIO_NET_F_HOST_ECN",),
    "tx-udp-segmentation": ("VIRTIO_NET_F_HOST_USO",),
    "rx-gro-hw": LARGE,
}
# Says nothing of VIRTIO_NET_F_GUEST_CSUM: a frame that is known to be good may be received without it.
ALWAYS_ON = "rx-checksumming"
# The host sends to the interface what the guest receives.
TAP = {
    "tx-checksum-ip-generic": ("VIRTIO_NET_F_GUEST_CSUM",),
    "tx-tcp-segmentation": ("VIRTIO_NET_F_GUEST_TSO4",),
    "tx-tcp6-segmentation": ("VIRTIO_NET_F_GUEST_TSO6",),
    "tx-tcp-ecn-segmentation": ("VIRTIO_NET_F_GUEST_ECN",),
    "tx-udp-segmentation": ("VIRTIO_NET_F_GUEST_USO4",),
}
RECEIVED = ("guest_csum", "guest_tso4", "guest_tso6", "guest_ecn", "guest_ufo")
SENT = ("csum", "host_tso4", "host_tso6", "host_ecn", "host_ufo")
# What a driver does not accept.
DRIVERS: dict[str, tuple[str, ...]] = {
    "everything": (),
    "nothing": RECEIVED + SENT,
    "nothing-received": RECEIVED,
    "nothing-sent": SENT,
    "no-tso6": ("host_tso6", "guest_tso6"),
    "no-mergeable": ("mrg_rxbuf",),
}
OFFLOADS = [feature for feature in Feature if re.search("CSUM|TSO|ECN|UFO|USO", str(feature.name))]
PORTS = {
    "echo": "echo",
    "tap": f"tap:{TapHost.interface}",
    "tap-plain": f"tap:{TapHost.interface},offloads=no",
    "direct": f"xdp:{Wire.interface},mode=direct,offloads=yes",
    "direct-plain": f"xdp:{Wire.interface},mode=direct,offloads=no",
    "bounce": f"xdp:{Wire.interface},mode=bounce,offloads=yes",
    "gro": f"xdp:{Wire.interface},mode=direct,offloads=yes,gro=yes",
}
WITH_OFFLOADS = {"echo", "tap", "direct", "bounce", "gro"}
WITH_LARGE_RECEIVED = {"echo", "tap", "gro"}
# The interfaces of each guest: a port, and which of `DRIVERS` drives it. User-Mode Linux has one driver.
INTERFACES: dict[str, list[tuple[str, str]]] = {
    "uml": [(port, "everything") for port in PORTS],
    "qemu": [
        *((port, "everything") for port in ("echo", "tap", "direct")),
        *(("tap", driver) for driver in DRIVERS if driver != "everything"),
    ],
}


@dataclass(frozen=True)
class Driven:
    """An interface of a guest, and who serves it."""

    guest: Guest
    name: str
    network: TapHost | Wire
    backend: Backend

    def compare(self) -> set[str]:
        """Driver and interface say what was negotiated. Return these offloads."""
        negotiated: list[str] = self.backend.guest()["features"]
        offloads = self.accepted()
        assert offloads == [feature.name for feature in OFFLOADS if feature.name in negotiated]
        driver = told(self.guest.check(f"ethtool -k {self.name}"))
        assert driver[ALWAYS_ON]
        assert {name: driver[name] for name in DRIVER} == expected(DRIVER, negotiated)
        if isinstance(self.network, TapHost):
            interface = told(self.network.near.run(["ethtool", "-k", self.network.interface]).stdout)
            # A kernel that cannot leave UDP segmentation to the interface has no word for it either.
            assert {name: interface.get(name, False) for name in TAP} == expected(TAP, negotiated)
        return set(offloads)

    def accepted(self) -> list[str]:
        """The offloads that the driver has accepted, by what it says itself: a digit for each feature bit."""
        digits = self.guest.check(f"cat /sys/class/net/{self.name}/device/features").strip()
        return [str(feature.name) for feature in OFFLOADS if digits[feature.bit_length() - 1] == "1"]


Interfaces = Mapping[tuple[str, str], Driven]  # by port and driver


def told(listing: str) -> dict[str, bool]:
    """Which features ``ethtool -k`` says are on."""
    return {
        name: state == "on" for name, state in re.findall(r"^\s*([\w-]+): (on|off)\b", listing, re.MULTILINE)
    }


def expected(table: Mapping[str, tuple[str, ...]], negotiated: list[str]) -> dict[str, bool]:
    return {name: any(each in negotiated for each in any_of) for name, any_of in table.items()}


def make_guest(kind: str, sockets: Sequence[Path]) -> Guest:
    devices = [
        VhostUserDevice(socket, options=dict.fromkeys(DRIVERS[driver], "off"))
        for socket, (_, driver) in zip(sockets, INTERFACES[kind], strict=True)
    ]
    guest = UmlGuest if kind == "uml" else QemuGuest
    return guest(devices, memory_mib=256, programs=["ethtool"])


@contextlib.contextmanager
def booted(kind: str, folder: Path) -> Iterator[Interfaces]:
    """A guest with its interfaces."""
    with contextlib.ExitStack() as stack:
        served: list[tuple[TapHost | Wire, Backend]] = []
        for number, (port, _) in enumerate(INTERFACES[kind]):
            network = stack.enter_context(TapHost() if port.startswith("tap") else Wire())
            place = folder / str(number)
            place.mkdir()
            backend = Backend(place, PORTS[port], namespace=network.near.name)
            served.append((network, stack.enter_context(backend)))
        guest = stack.enter_context(make_guest(kind, [backend.socket for _, backend in served]))
        yield {
            which: Driven(guest, f"eth{number}", *of)
            for number, (which, of) in enumerate(zip(INTERFACES[kind], served, strict=True))
        }


@pytest.fixture(scope="module")
def boot(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Interfaces]]:
    """Boots a guest of a kind when it is first asked for, and keeps it."""
    try:
        images.installed("ethtool")
    except HostError as error:
        pytest.skip(str(error))
    with contextlib.ExitStack() as stack:
        yield functools.cache(
            lambda kind: stack.enter_context(booted(kind, tmp_path_factory.mktemp("offloads")))
        )


@pytest.mark.parametrize(
    ("kind", "port"),
    [(kind, port) for kind, pairs in INTERFACES.items() for port, driver in pairs if driver == "everything"],
)
def test_a_driver_shows_what_was_negotiated(boot: Callable[[str], Interfaces], kind: str, port: str) -> None:
    negotiated = boot(kind)[port, "everything"].compare()
    if port in WITH_OFFLOADS:
        assert negotiated >= {"VIRTIO_NET_F_CSUM", "VIRTIO_NET_F_HOST_TSO4", "VIRTIO_NET_F_HOST_TSO6"}
    else:
        assert negotiated == set()
    assert bool(negotiated & set(LARGE)) == (port in WITH_LARGE_RECEIVED)


@pytest.mark.parametrize("driver", [driver for driver in DRIVERS if driver != "everything"])
def test_a_tap_interface_does_what_a_driver_does_not_accept(
    boot: Callable[[str], Interfaces], driver: str
) -> None:
    negotiated = boot("qemu")["tap", driver].compare()
    assert negotiated.isdisjoint(f"VIRTIO_NET_F_{name.upper()}" for name in DRIVERS[driver])
    assert bool(negotiated) == (driver != "nothing")
