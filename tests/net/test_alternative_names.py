"""An interface may be called by an alternative name (``ip link property add``), wherever one is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from backend.house import complaints, status
from backend.process import Backend
from guestwire.testing import FakeGuest, Wire
from guestwire.testing.namespaces import Namespace
from net.taps import ETH_P_ALL, HostEnd, ip
from net.test_doctor import ask_doctor
from net.test_refused_rebinds import TapTraffic
from net.traffic import Traffic, peer_socket, rebind

pytestmark = pytest.mark.root

LONG = "an-interface-with-a-name-of-more-than-fifteen-bytes"
SHORT = "short-name"


def test_xdp(tmp_path: Path) -> None:
    with Wire() as wire:
        name = wire.interface
        ip(wire.near, f"link property add dev {name} altname {LONG} altname {SHORT}")
        code, _, checks = ask_doctor(wire.near, LONG)
        assert code == 0
        assert checks["link"]["found"].startswith(name)
        with (
            Backend(tmp_path, f"xdp:{LONG}", namespace=wire.near.name) as backend,
            peer_socket(wire) as peer,
            FakeGuest(backend.socket) as guest,
        ):
            traffic = Traffic(guest, peer)
            traffic.sender = peer
            for port in (f"xdp:{SHORT},mode=bounce", f"xdp:{name},mode=direct", f"xdp:{LONG},mode=bounce"):
                traffic.goes_on()
                state = status(backend)["guest"]
                assert (state.state, state.port.interface) == ("running", name)
                traffic.during(lambda: rebind(backend, port))  # noqa: B023
            traffic.goes_on()
            traffic.end()
            assert complaints(backend.text()) == []


def test_tap_and_its_bridge(tmp_path: Path) -> None:
    with Namespace("alt") as namespace:
        for command in (
            "tuntap add dev tap0 mode tap",
            "link add br0 type bridge",
            f"link property add dev tap0 altname {LONG} altname {SHORT}",
            f"link property add dev br0 altname {LONG}-bridge",
            "link set tap0 up",
        ):
            ip(namespace, command)
        port = f"tap:{LONG},bridge={LONG}-bridge"
        with (
            Backend(tmp_path, port, namespace=namespace.name) as backend,
            FakeGuest(backend.socket) as guest,
        ):
            assert "master br0" in namespace.run(["ip", "link", "show", "tap0"]).stdout
            traffic = TapTraffic(guest, HostEnd(namespace, "tap0", ETH_P_ALL))
            for other in (f"tap:{SHORT}", "tap:tap0,mtu=1500", f"tap:{LONG}"):
                rebind(backend, other)
                traffic.exchange()
                assert status(backend)["guest"].port.interface == "tap0"
            assert complaints(backend.text()) == []
