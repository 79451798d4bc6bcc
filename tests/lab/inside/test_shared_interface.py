"""Two guests of one process on two queues of one NIC, both in zero-copy mode: neither disturbs the other.

`steer=` would lead each guest's frames to its queue by a flow rule, but QEMU's igb is an 82576, whose driver
takes none (``test_steering.py``). What can tell frames apart here is RSS: frames of IPv4 are hashed, and the
table, which the test sets, names queue 1 only; frames of other types land on queue 0.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from backend.house import status
from backend.process import wait_until
from guestwire.errors import GuestwireError
from guestwire.host.interface import Interface
from guestwire.testing import FakeGuest, FrameStream
from lab.inside.commands import LabBackend
from lab.inside.peer import peer_socket, wait_for_carrier
from lab.machine import NIC, NIC_ADDRESS, PEER_ADDRESS
from net.traffic import rebind_guest

PATIENCE = 30.0  # seconds
BURST = 20
FLOWS = 8
IPV4 = 0x0800
NOBODY = "52:54:00:00:00:09"


def octets(mac: str) -> bytes:
    return bytes.fromhex(mac.replace(":", ""))


class Unhashed:
    """What the guest on queue 0 exchanges with the peer."""

    def __init__(self, guest: FakeGuest) -> None:
        self.guest, self._peer = guest, peer_socket(timeout=PATIENCE)
        to, by = octets(NIC_ADDRESS), octets(PEER_ADDRESS)
        self._arriving = FrameStream((60, 1514), destination=to, source=by)
        self._leaving = FrameStream((60, 1514), destination=by, source=to)

    def exchange(self) -> None:
        """Have a burst cross each way, all of it unchanged."""
        for frame in self._arriving.take(BURST):
            self._peer.send(frame)
        self.guest.pair.send_stream(self._leaving, BURST, drain=False)
        received = self.guest.pair.receive_stream(self._arriving, BURST, timeout=PATIENCE)
        assert received[1:3] == (BURST, 0)
        for _ in range(BURST):
            self._leaving.accept(self._peer.recv(65536))
        assert self._leaving.lost == 0


class Hashed:
    """What the guest on queue 1 does: IPv4, of several flows."""

    def __init__(self, guest: FakeGuest) -> None:
        self.guest, self._peer = guest, peer_socket(IPV4, timeout=PATIENCE)
        self._number = 0

    def _frames(self, destination: str, source: str) -> list[bytes]:
        frames = []
        for _ in range(BURST):
            self._number += 1
            flow = self._number % FLOWS
            header = bytes.fromhex("4500005a0000000040110000c6120000") + bytes([192, 0, 2, flow])
            head = octets(destination) + octets(source) + IPV4.to_bytes(2) + header
            frames.append(head + self._number.to_bytes(4) * 20)
        return frames

    def exchange(self) -> None:
        """Have a burst cross each way, all of it unchanged."""
        arriving, leaving = self._frames(NIC_ADDRESS, PEER_ADDRESS), self._frames(PEER_ADDRESS, NIC_ADDRESS)
        for frame in arriving:
            self._peer.send(frame)
        for frame in leaving:
            self.guest.pair.send(frame)
        received = [self.guest.pair.receive(timeout=PATIENCE) for _ in arriving]
        assert [frame.data for frame in received if frame is not None] == arriving
        assert [self._peer.recv(65536) for _ in leaving] == leaving


@pytest.fixture
def _two_queues() -> Iterator[None]:
    """Two queues, frames with a hash on the second."""
    subprocess.run(["ethtool", "-L", NIC, "combined", "2"], check=True)
    wait_for_carrier()
    subprocess.run(["ethtool", "-X", NIC, "weight", "0", "1"], check=True)
    try:
        yield
    finally:
        subprocess.run(["ethtool", "-X", NIC, "default"], check=True)
        subprocess.run(["ethtool", "-L", NIC, "combined", "1"], check=True)
        wait_for_carrier()


@pytest.mark.usefixtures("_two_queues")
def test_one_of_two_guests_dies_and_comes_back(tmp_path: Path) -> None:
    sockets = [tmp_path / f"vm{number}.sock" for number in range(2)]
    file = tmp_path / "guests.toml"
    file.write_text(
        "".join(
            f"[[guest]]\nsocket_path = '{path}'\nport = 'xdp:{NIC},queue={queue},mode=zero-copy,shared=yes'\n"
            for queue, path in enumerate(sockets)
        )
    )
    with (
        LabBackend(tmp_path, None, [str(file)], sockets=sockets) as backend,
        FakeGuest(sockets[0], queue_size=1024, timeout=PATIENCE) as first,
        FakeGuest(sockets[1], queue_size=1024, timeout=PATIENCE) as second,
    ):
        second.frontend.get_features()  # requests are followed in order: the rings run now
        wait_for_carrier()
        lasting, mortal = Unhashed(first), Hashed(second)
        lasting.exchange()
        mortal.exchange()
        programs = Interface.open(NIC).programs
        assert len(programs) == 1

        def meanwhile(function: Callable[[], object]) -> int:
            bursts = 0
            with ThreadPoolExecutor(1) as pool:
                done = pool.submit(function)
                while not done.done():
                    lasting.exchange()
                    bursts += 1
            done.result()
            lasting.exchange()
            mortal.exchange()
            return bursts

        def die_and_come_back() -> None:
            second.frontend.close()
            wait_until(lambda: status(backend)["vm1"].state == "listening", PATIENCE)
            second.reconnect()
            second.frontend.get_features()

        def be_refused() -> None:
            for port, words in (
                (f"xdp:{NIC},mode=zero-copy,shared=yes", "guest vm0 has queue 0 already"),
                (f"xdp:{NIC},queue=1,steer={NOBODY}", "did not add a flow rule that leads"),
                (f"xdp:{NIC},queue=2", "has no receive queue 2"),
            ):
                with pytest.raises(GuestwireError) as caught:
                    rebind_guest(backend, "vm1", port)
                assert words in str(caught.value)

        for _ in range(3):
            print("bursts while it was away:", meanwhile(die_and_come_back))
        print("bursts while it was refused other ports:", meanwhile(be_refused))
        assert Interface.open(NIC).programs == programs
        assert [guest.port.mode for guest in status(backend).values()] == ["zero-copy"] * 2
        assert " ERROR " not in backend.text()
    assert Interface.open(NIC).programs == ()
