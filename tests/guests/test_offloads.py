"""What a guest's driver and a TAP interface say they can do is what was negotiated (``ethtool -k``).

There is one guest of each kind, with an interface on every port and for every driver.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager

import pytest

from guests.attached import Attached, Place, booted, booted_on_demand
from guests.networks import TapHost
from guestwire.errors import HostError
from guestwire.testing import Wire, images
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
    "tap-guest-plain": f"tap:{TapHost.interface},guest-offloads=no",
    "tap-plain": f"tap:{TapHost.interface},offloads=no",
    "direct": f"xdp:{Wire.interface},mode=direct,offloads=yes",
    "direct-plain": f"xdp:{Wire.interface},mode=direct,offloads=no",
    "bounce": f"xdp:{Wire.interface},mode=bounce,offloads=yes",
    "gro": f"xdp:{Wire.interface},mode=direct,offloads=yes,gro=yes",
}
WITH_OFFLOADS = {"echo", "tap", "tap-guest-plain", "direct", "bounce", "gro"}
WITH_LARGE_RECEIVED = {"echo", "tap", "gro"}
# The interfaces of each guest: a port, and which of `DRIVERS` drives it. User-Mode Linux has one driver.
INTERFACES: dict[str, list[tuple[str, str]]] = {
    "uml": [(port, "everything") for port in PORTS],
    "qemu": [
        *((port, "everything") for port in ("echo", "tap", "direct")),
        *(("tap", driver) for driver in DRIVERS if driver != "everything"),
    ],
}


Interfaces = Mapping[tuple[str, str], Attached]  # by port and driver


def told(listing: str) -> dict[str, bool]:
    """Which features ``ethtool -k`` says are on."""
    return {
        name: state == "on" for name, state in re.findall(r"^\s*([\w-]+): (on|off)\b", listing, re.MULTILINE)
    }


def expected(table: Mapping[str, tuple[str, ...]], negotiated: list[str]) -> dict[str, bool]:
    return {name: any(each in negotiated for each in any_of) for name, any_of in table.items()}


def accepted(interface: Attached) -> list[str]:
    """The offloads that the driver has accepted, by what it says itself: a digit for each feature bit."""
    digits = interface.guest.check(f"cat /sys/class/net/{interface.name}/device/features").strip()
    return [str(feature.name) for feature in OFFLOADS if digits[feature.bit_length() - 1] == "1"]


def compare(interface: Attached) -> set[str]:
    """Driver and interface say what was negotiated. Return these offloads."""
    negotiated: list[str] = interface.backend.guest()["features"]
    offloads = accepted(interface)
    assert offloads == [feature.name for feature in OFFLOADS if feature.name in negotiated]
    driver = told(interface.guest.check(f"ethtool -k {interface.name}"))
    assert driver[ALWAYS_ON]
    assert {name: driver[name] for name in DRIVER} == expected(DRIVER, negotiated)
    network = interface.network
    if isinstance(network, TapHost):
        tap = told(network.near.run(["ethtool", "-k", network.interface]).stdout)
        # A kernel that cannot leave UDP segmentation to the interface has no word for it either.
        assert {name: tap.get(name, False) for name in TAP} == expected(TAP, negotiated)
    return set(offloads)


def place(port: str, driver: str) -> Place:
    network = TapHost if port.startswith("tap") else Wire
    return Place(PORTS[port], network, dict.fromkeys(DRIVERS[driver], "off"))


@pytest.fixture(scope="module")
def boot(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Interfaces]]:
    try:
        images.installed("ethtool")
    except HostError as error:
        pytest.skip(str(error))

    def interfaces(kind: str) -> AbstractContextManager[Interfaces]:
        places = {each: place(*each) for each in INTERFACES[kind]}
        return booted(kind, places, tmp_path_factory.mktemp("offloads"), programs=["ethtool"])

    with booted_on_demand(interfaces) as boot:
        yield boot


@pytest.mark.parametrize(
    ("kind", "port"),
    [(kind, port) for kind, pairs in INTERFACES.items() for port, driver in pairs if driver == "everything"],
)
def test_a_driver_shows_what_was_negotiated(boot: Callable[[str], Interfaces], kind: str, port: str) -> None:
    negotiated = compare(boot(kind)[port, "everything"])
    if port in WITH_OFFLOADS:
        assert negotiated >= {"VIRTIO_NET_F_CSUM", "VIRTIO_NET_F_HOST_TSO4", "VIRTIO_NET_F_HOST_TSO6"}
    else:
        assert negotiated == set()
    assert bool(negotiated & set(LARGE)) == (port in WITH_LARGE_RECEIVED)
    assert not (port == "tap-guest-plain" and any("GUEST" in name for name in negotiated))


@pytest.mark.parametrize("driver", [driver for driver in DRIVERS if driver != "everything"])
def test_a_tap_interface_does_what_a_driver_does_not_accept(
    boot: Callable[[str], Interfaces], driver: str
) -> None:
    negotiated = compare(boot("qemu")["tap", driver])
    assert negotiated.isdisjoint(f"VIRTIO_NET_F_{name.upper()}" for name in DRIVERS[driver])
    assert bool(negotiated) == (driver != "nothing")
