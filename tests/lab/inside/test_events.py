"""What happens to an interface and to a guest while frames pass both ways, in a random order, and one guest's
life after the other.

After each event frames pass again both ways. No frame is changed or is there twice; no byte between the
guest's buffers changes; and whenever a ring stops, the index that we are told is the number of its buffers
that came back: none is lost, none came back twice.
"""

from __future__ import annotations

import os
import random
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from backend.process import wait_until
from guestwire.testing import (
    BufferLayout,
    FakeGuest,
    FrameStream,
    PageKind,
    SharedMemory,
    VerificationError,
)
from lab.inside.commands import LabBackend
from lab.inside.peer import peer_socket, wait_for_carrier
from lab.machine import KIND_VARIABLE, NIC
from net.traffic import Traffic, rebind

MIB = 1 << 20
KIND = os.environ[KIND_VARIABLE]
# An igb needs a second and a half for each change of its link.
EVENTS = int(os.environ.get("EVENTS", "50" if KIND == "virtio_net" else "16"))
SEED = int(os.environ.get("SEED", "2010"))
ZERO_COPY = f"xdp:{NIC},mode=zero-copy"
PATIENCE = 60.0
LENGTH = 12 + 2048  # of buffers: an igb may write 2,048 bytes


def run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)


class Arriving:
    """A stream of which frames may be late: QEMU's cable keeps those for which a NIC has no room, and lets
    others overtake them while the NIC is reset."""

    def __init__(self) -> None:
        self.stream, self.late = FrameStream((60, 1514)), 0
        self.take = self.stream.take

    @property
    def received(self) -> int:
        return self.stream.received

    def accept(self, frame: bytes) -> None:
        try:
            self.stream.accept(frame)
        except VerificationError as error:
            if "arrived late" not in str(error):
                raise
            self.late += 1


class Life:
    """A guest on the interface with traffic both ways, and what can happen to it."""

    def __init__(self, backend: LabBackend, guest: FakeGuest, traffic: Traffic) -> None:
        self.backend, self.guest, self.traffic = backend, guest, traffic
        self.kinds: dict[str, Callable[[], None]] = {
            "link down and up": self.link,
            "MTU": self.mtu,
            "rings stop and start": self.stop_and_start,
            "rings disabled and enabled": self.disable_and_enable,
            "device reset": self.reset,
            "memory changes": self.memory,
            "other mode and back": self.other_mode,
        }
        if KIND == "igb":
            self.kinds["NIC reset"] = self.reset_nic

    def _set(self, *words: str) -> None:
        self.traffic.during(lambda: run("ip", "link", "set", "dev", NIC, *words))

    def link(self) -> None:
        self._set("down")
        for _ in range(3):
            self.traffic.step()
        self._set("up")

    def mtu(self) -> None:
        self._set("mtu", "1400")
        for _ in range(3):
            self.traffic.step()
        self._set("mtu", "1500")

    def reset_nic(self) -> None:
        self.traffic.during(lambda: run("ethtool", "-G", NIC, "rx", "256", "tx", "512"))
        self.traffic.during(lambda: run("ethtool", "-G", NIC, "rx", "256", "tx", "256"))

    def _stop(self) -> None:
        for ring in self.guest.rings:
            index = self.guest.stop_ring(ring)
            self.traffic.take()
            # Buffers come back one at a time, so the used index counts them.
            assert index == ring.driver.raw.used_index, (ring.index, index)
        assert self.guest.rings[0].base == (self.traffic.used + self.guest.pair.empty) % 65536

    def _start(self) -> None:
        for ring in self.guest.rings:
            self.guest.start_ring(ring)

    def stop_and_start(self) -> None:
        self._stop()
        self._start()

    def reset(self) -> None:
        """A driver that comes back: it negotiates again."""
        self._stop()
        self.guest.frontend.set_features(0)
        self.guest.frontend.set_features(self.guest.features)
        self._start()

    def disable_and_enable(self) -> None:
        frontend = self.guest.frontend
        for enabled in (False, True):
            for ring in self.guest.rings:
                frontend.set_ring_enable(ring.index, enabled)
            frontend.get_features()  # followed in order: the rings are as wanted now
            self.traffic.take()

    def memory(self) -> None:
        """A region goes that nothing lies in, and comes back."""
        region = self.guest.memory.regions[1]
        self.guest.frontend.remove_memory_region(region)
        self.traffic.step()
        self.guest.frontend.add_memory_region(region)

    def other_mode(self) -> None:
        self.traffic.during(lambda: rebind(self.backend, f"xdp:{NIC},mode=bounce"))
        self.traffic.goes_on(PATIENCE)
        milliseconds = self.traffic.during(lambda: rebind(self.backend, ZERO_COPY))
        print(f"  bound again after {milliseconds:.0f} ms")

    def goes_on(self) -> None:
        self.traffic.goes_on(PATIENCE)
        self.guest.check_guards()


@pytest.fixture
def life(tmp_path: Path) -> Iterator[Life]:
    layout = BufferLayout(length=LENGTH, offset=64, spacing=LENGTH + 1 + 128)
    with (
        peer_socket() as peer,
        SharedMemory(8 * MIB, 4 * MIB, 20 * MIB, pages=PageKind.HUGETLB, guarded=True) as memory,
        LabBackend(tmp_path, ZERO_COPY) as backend,
    ):
        # Fill addresses lie before their buffers: not at the beginning of a huge page.
        memory.allocate(8192, region=-1)
        with FakeGuest(
            backend.socket,
            memory=memory,
            queue_size=1024,
            receive_layout=layout,
            transmit_layout=layout,
            verify_sent=True,
            # What the NIC used for frames that went to the host while the guest was away comes back empty.
            accept_empty=True,
            timeout=PATIENCE,
        ) as guest:
            peer.setblocking(False)
            traffic = Traffic(guest, peer)
            traffic.sender = peer
            traffic.arriving = Arriving()
            wait_for_carrier()
            traffic.goes_on(PATIENCE)
            yield Life(backend, guest, traffic)


def end(life: Life) -> dict[str, Any]:
    """Nothing is on its way any more: account for all buffers."""
    life.traffic.end(lost=None)
    life.guest.check_guards()
    state: dict[str, Any] = life.backend.guest()
    assert "unexpected_place" not in state["counters"]["rx"]["drops"], state["counters"]
    assert "unexpected_place" not in state["counters"]["tx"]["drops"], state["counters"]
    assert "ERROR" not in life.backend.text(), life.backend.text()
    return state


def test_random_events_under_traffic(life: Life) -> None:
    chance = random.Random(SEED)
    for number in range(EVENTS):
        kind = chance.choice(sorted(life.kinds))
        started = time.monotonic()
        try:
            life.kinds[kind]()
            life.goes_on()
        except BaseException as error:
            error.add_note(f"event {number} of seed {SEED}: {kind}; {life.backend.text()[-2000:]}")
            raise
        print(f"{number}: {kind}, {time.monotonic() - started:.1f} s")
    state = end(life)
    arriving = life.traffic.arriving
    print(f"{arriving.received} received, {arriving.late} late, {life.guest.pair.empty} empty buffers")
    print(state["counters"])


@pytest.mark.skipif(KIND != "igb", reason="the machine's virtio_net interface does not come back")
def test_the_nic_is_removed_and_comes_back(life: Life) -> None:
    device = Path(f"/sys/class/net/{NIC}/device").resolve()
    life.traffic.during(lambda: (device / "remove").write_text("1"))
    wait_until(lambda: life.backend.guest()["state"].startswith("failed"), PATIENCE)
    assert "guestwire rebind" in life.backend.guest()["state"]
    life._stop()
    life._start()
    Path("/sys/bus/pci/rescan").write_text("1")
    address = device.name
    new = Path(f"/sys/bus/pci/devices/{address}/net")
    wait_until(lambda: new.is_dir() and any(new.iterdir()), PATIENCE)
    (name,) = (path.name for path in new.iterdir())
    for words in (("name", NIC), ("up",)):
        run("ip", "link", "set", "dev", name if words[0] == "name" else NIC, *words)
    run("ethtool", "-L", NIC, "combined", "1")
    wait_for_carrier()
    life.traffic.during(lambda: rebind(life.backend, ZERO_COPY))
    life.goes_on()
    life.traffic.end(lost=None)
