"""What a guest's driver and a TAP interface say they can do is what was negotiated (``ethtool -k``)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
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


@pytest.fixture(autouse=True)
def ethtool() -> None:
    try:
        images.installed("ethtool")
    except HostError as error:
        pytest.skip(str(error))


def told(listing: str) -> dict[str, bool]:
    """Which features ``ethtool -k`` says are on."""
    return {
        name: state == "on" for name, state in re.findall(r"^\s*([\w-]+): (on|off)\b", listing, re.MULTILINE)
    }


def expected(table: Mapping[str, tuple[str, ...]], negotiated: list[str]) -> dict[str, bool]:
    return {name: any(each in negotiated for each in any_of) for name, any_of in table.items()}


def accepted(guest: Guest) -> list[str]:
    """The offloads that the driver has accepted, by what it says itself: a digit for each feature bit."""
    digits = guest.check("cat /sys/class/net/eth0/device/features").strip()
    return [str(feature.name) for feature in OFFLOADS if digits[feature.bit_length() - 1] == "1"]


def make_guest(kind: str, backend: Backend, refused: Sequence[str]) -> Guest:
    device = VhostUserDevice(backend.socket, options=dict.fromkeys(refused, "off"))
    if kind == "uml":
        return UmlGuest([device], memory_mib=256, programs=["ethtool"])
    return QemuGuest([device], memory_mib=256, programs=["ethtool"])


def compare(folder: Path, kind: str, port: str, refused: Sequence[str] = ()) -> set[str]:
    """Put a guest on a port: driver and interface say what was negotiated. Return these offloads."""
    network = TapHost if port.startswith("tap") else Wire
    with (
        network() as wire,
        Backend(folder, PORTS[port], namespace=wire.near.name) as backend,
        make_guest(kind, backend, refused) as guest,
    ):
        negotiated: list[str] = backend.guest()["features"]
        offloads = accepted(guest)
        assert offloads == [feature.name for feature in OFFLOADS if feature.name in negotiated]
        driver = told(guest.check("ethtool -k eth0"))
        assert driver[ALWAYS_ON]
        assert {name: driver[name] for name in DRIVER} == expected(DRIVER, negotiated)
        if port.startswith("tap"):
            interface = told(wire.near.run(["ethtool", "-k", wire.interface]).stdout)
            # A kernel that cannot leave UDP segmentation to the interface has no word for it either.
            assert {name: interface.get(name, False) for name in TAP} == expected(TAP, negotiated)
        return set(offloads)


@pytest.mark.parametrize(
    ("kind", "port"),
    [*(("uml", port) for port in PORTS), ("qemu", "echo"), ("qemu", "tap"), ("qemu", "direct")],
)
def test_a_driver_shows_what_was_negotiated(tmp_path: Path, kind: str, port: str) -> None:
    negotiated = compare(tmp_path, kind, port)
    if port in WITH_OFFLOADS:
        assert negotiated >= {"VIRTIO_NET_F_CSUM", "VIRTIO_NET_F_HOST_TSO4", "VIRTIO_NET_F_HOST_TSO6"}
    else:
        assert negotiated == set()
    assert bool(negotiated & set(LARGE)) == (port in WITH_LARGE_RECEIVED)


@pytest.mark.parametrize("driver", DRIVERS)
def test_a_tap_interface_does_what_a_driver_does_not_accept(tmp_path: Path, driver: str) -> None:
    refused = DRIVERS[driver]
    negotiated = compare(tmp_path, "qemu", "tap", refused)
    assert negotiated.isdisjoint(f"VIRTIO_NET_F_{name.upper()}" for name in refused)
    assert bool(negotiated) == (driver != "nothing")
