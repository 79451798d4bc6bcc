"""What is refused changes nothing: a guest that stays where it is loses no frame."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from backend.house import complaints, status
from guestwire.errors import GuestwireError
from guestwire.testing import FakeGuest, FrameStream, Wire
from guestwire.testing.frame_stream import ETHERTYPE
from net.queues import held_queue, queues_by_address
from net.taps import MERGEABLE, OFFLOADS, Header, HostEnd, ip, line
from net.tenants import QUEUES, tenants
from net.traffic import BURST, connect, rebind

pytestmark = pytest.mark.root


@pytest.fixture
def wire() -> Iterator[Wire]:
    with Wire(queues=QUEUES) as made, queues_by_address(made):
        yield made


def test_from_an_interface(wire: Wire, tmp_path: Path) -> None:
    connect(wire, "short0", "short1")
    assert wire.near.run(["ip", "link", "set", "short0", "mtu", "1400"]).returncode == 0
    name = wire.interface
    with (
        tenants(tmp_path, wire, 2, ",mode=bounce", "max_pinned = '32M'") as house,
        held_queue(wire, 3),
    ):
        first, second = house.all
        for port, words in (
            ("xdp:wire9", "there is no interface 'wire9'"),
            ("xdp:short0", "an MTU of 1500, port xdp:short0 carries 1400"),
            (f"xdp:{name},queue=7", f"interface {name} has no receive queue 7"),
            (f"xdp:{name},queue=1", "guest vm1 has queue 1 already"),
            (f"xdp:{name},queue=3", "queue 3 is in use by another AF_XDP socket"),
            (f"xdp:{name},mode=zero-copy", "cannot do mode=zero-copy: driver veth does not offer it"),
            (f"xdp:{name},queue=2,mode=zero-copy", "cannot do mode=zero-copy: driver veth does not offer it"),
            (f"xdp:{name},queue=2,steer=02:00:00:00:00:09", "cannot be steered: its driver shows no RSS"),
            (f"xdp:{name},mode=direct", "and max_pinned is 32 MiB"),
            (f"xdp:{name},queue=2,mode=direct", "and max_pinned is 32 MiB"),
            (f"tap:{name}", f"interface {name} is no TAP interface"),
            ("tap:tap0,bridge=br9", "adding TAP interface tap0 to bridge br9 is refused"),
            ("pcap:/nowhere", "cannot read the capture file /nowhere"),
        ):

            def refused(port: str = port, words: str = words) -> None:
                with pytest.raises(GuestwireError) as caught:
                    house.rebind(first, port)
                assert words in str(caught.value)

            house.during(refused, first, second)
            state = status(house.backend)["vm0"]
            assert (state.state, state.port.mode) == ("running", "bounce")
            assert state.port.description == f"xdp:{name},queue=0,mode=bounce"
        assert complaints(house.backend.text()) == []


class TapTraffic:
    """Frames of two streams, which all arrive before the next ones are sent."""

    def __init__(self, guest: FakeGuest, host: HostEnd) -> None:
        self._guest, self._host = guest, host
        self._arriving, self._leaving = FrameStream((60, 1514)), FrameStream((60, 1514), identifier=1)

    def exchange(self) -> None:
        for frame in self._arriving.take(BURST):
            self._host.send(Header(), frame)
        assert self._guest.pair.receive_stream(self._arriving, BURST)[1:3] == (BURST, 0)
        self._guest.pair.send_stream(self._leaving, BURST)
        for _ in range(BURST):
            self._leaving.accept(self._host.receive()[1])
        assert self._leaving.lost == 0


def test_from_a_tap_interface(tmp_path: Path) -> None:
    with (
        line(tmp_path, ethertype=ETHERTYPE) as on,
        FakeGuest(on.backend.socket, features=MERGEABLE | OFFLOADS) as guest,
    ):
        ip(on.namespace, "link add veth0 type veth peer name veth1")
        traffic = TapTraffic(guest, on.host)
        before = on.namespace.run(["ip", "link", "show", "tap0"]).stdout
        for port, words in (
            ("tap:tap0,bridge=br9", "adding TAP interface tap0 to bridge br9 is refused: No such device"),
            ("tap:tap0,bridge=veth0", "adding TAP interface tap0 to bridge veth0 is refused"),
            ("tap:tap0,offloads=no", "port tap:tap0,offloads=no cannot offer that"),
            ("tap:tap0,mtu=1400", "port tap:tap0,mtu=1400 carries 1400"),
            ("tap:veth0", "interface veth0 is no TAP interface"),
            ("tap:fd=99", "descriptor 99 is no queue of a TAP interface"),
            ("xdp:tap0,offloads=no", "interface tap0 goes with the guest's present port"),
        ):
            with ThreadPoolExecutor(1) as pool:
                traffic.exchange()
                refused = pool.submit(rebind, on.backend, port)
                while not refused.done():
                    traffic.exchange()
                traffic.exchange()
            with pytest.raises(GuestwireError) as caught:
                refused.result()
            assert words in str(caught.value)
            assert on.namespace.run(["ip", "link", "show", "tap0"]).stdout == before
        assert on.state()["state"] == "running"
        assert complaints(on.backend.text()) == []
