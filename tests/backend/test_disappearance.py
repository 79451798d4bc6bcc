"""Guests, their memory, and frontends that go away without a word, while another guest stays."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from backend.guest_process import guest_process
from backend.house import House, house, status
from backend.process import wait_until
from guestwire.testing import Block, FakeGuest, FrameStream, SharedMemory

MIB = 1 << 20
REPETITIONS = 3
HEAD = 200  # an entry of the descriptor table that the driver does not use yet


@pytest.fixture(scope="module")
def inhabited(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    with house(tmp_path_factory.mktemp("house")) as made:
        yield made


def test_a_killed_frontend_leaves_nothing(inhabited: House, tmp_path: Path) -> None:
    with inhabited.undisturbed():
        for _ in range(REPETITIONS):
            with inhabited.visitor(), guest_process(inhabited.rogue, tmp_path) as (process, _):
                assert status(inhabited.backend)["rogue"].state == "running"
                process.kill()
        assert status(inhabited.backend)["rogue"].state == "listening"
        with inhabited.visitor(), FakeGuest(inhabited.rogue) as guest:
            assert guest.pair.exchange(FrameStream(), 100).received == 100


def send_from(guest: FakeGuest, block: Block) -> None:
    """Make a frame available that nobody has to look at on our side."""
    ring = guest.rings[1]
    ring.driver.raw.describe(HEAD, block.guest_address, 100)
    ring.driver.raw.offer(HEAD)
    os.eventfd_write(ring.kick_fd, 1)


def test_truncated_memory_stops_that_guest_alone(inhabited: House) -> None:
    mark = len(inhabited.backend.text())
    with inhabited.undisturbed():
        for _ in range(REPETITIONS):
            # A region of its own, which our side never touches once it is truncated.
            with inhabited.visitor(), SharedMemory(2 * MIB, 2 * MIB, 8 * MIB) as memory:
                guest = FakeGuest(inhabited.rogue, memory=memory)
                guest.start()
                try:
                    guest.pair.exchange(FrameStream(), 1000)
                    victim = memory.allocate(4096, region=1)
                    os.ftruncate(memory.regions[1].fd, 0)
                    send_from(guest, victim)
                    assert all(ring.is_broken() for ring in guest.rings)
                    rogue = status(inhabited.backend)["rogue"]
                    assert rogue.state.startswith("failed: the file behind the guest's memory")
                    assert all("truncated" in (ring.error or "") for ring in rogue.rings)
                    inhabited.neighbour.check()
                finally:
                    guest.close()
            assert status(inhabited.backend)["rogue"].state == "listening"
        with inhabited.visitor(), FakeGuest(inhabited.rogue) as guest:
            assert guest.pair.exchange(FrameStream(), 100).received == 100
    said = inhabited.last_complaints(mark)
    assert len(said) == 2 * REPETITIONS
    assert all("was truncated; start the virtual machine anew" in line for line in said)


def test_truncated_memory_of_rings(inhabited: House) -> None:
    with inhabited.undisturbed(), inhabited.visitor(), SharedMemory(2 * MIB, 8 * MIB) as memory:
        guest = FakeGuest(inhabited.rogue, memory=memory)
        guest.start()
        try:
            guest.pair.exchange(FrameStream(), 1000)
            os.ftruncate(memory.regions[0].fd, 0)
            os.eventfd_write(guest.rings[1].kick_fd, 1)
            assert all(ring.is_broken() for ring in guest.rings)
            # Even now the frontend can stop the rings.
            for ring in guest.rings:
                guest.stop_ring(ring)
            assert status(inhabited.backend)["rogue"].state == "connected"
        finally:
            guest.close()


def test_truncated_memory_under_traffic(inhabited: House, tmp_path: Path) -> None:
    with inhabited.undisturbed():
        for _ in range(REPETITIONS):
            with inhabited.visitor(), guest_process(inhabited.rogue, tmp_path) as (process, memory):
                os.truncate(memory, 0)
                # The guest itself does not survive that: it uses the same memory.
                assert process.wait(10) == -signal.SIGBUS
        wait_until(lambda: status(inhabited.backend)["rogue"].state == "listening")
        with inhabited.visitor(), FakeGuest(inhabited.rogue) as guest:
            assert guest.pair.exchange(FrameStream(), 100).received == 100
