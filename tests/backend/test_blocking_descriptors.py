"""A frontend that makes its call and error descriptors block: O_NONBLOCK belongs to the file we share."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import pytest

from backend.house import House, house, status, threads
from backend.process import wait_until
from guestwire.testing import FakeGuest, FrameStream, SharedMemory

FULL = 2**64 - 2  # what an eventfd can hold; the next write waits for a reader (eventfd(2))
MIB = 1 << 20
HEAD = 200  # an entry of the descriptor table that the driver does not use yet


@pytest.fixture
def inhabited(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    with house(tmp_path_factory.mktemp("house")) as made:
        yield made


def block(fd: int) -> None:
    """Make the next write to an eventfd wait, wherever it is written to."""
    with contextlib.suppress(BlockingIOError):
        os.eventfd_read(fd)
    os.eventfd_write(fd, FULL)
    os.set_blocking(fd, True)


def call_into_the_void(guest: FakeGuest, memory: SharedMemory) -> None:
    """Make the backend call on a ring whose call descriptor blocks."""
    ring = guest.rings[1]
    raw = ring.driver.raw
    before = raw.used_index
    block(ring.call_fd)
    raw.used_event = before
    # Too short to be a frame: it comes back at once, whatever the port does.
    raw.describe(HEAD, memory.allocate(64).guest_address, 1)
    raw.offer(HEAD)
    os.eventfd_write(ring.kick_fd, 1)
    # The used index is stored just before the call.
    wait_until(lambda: raw.used_index != before)


def test_a_call_that_blocks_holds_up_nobody(inhabited: House) -> None:
    with inhabited.undisturbed(), inhabited.visitor(), SharedMemory(4 * MIB) as memory:
        guest = FakeGuest(inhabited.rogue, memory=memory)
        guest.start()
        try:
            guest.pair.exchange(FrameStream(), 100)
            call_into_the_void(guest, memory)
            inhabited.neighbour.check()
            assert status(inhabited.backend)["rogue"].state == "running"
            assert guest.stop_ring(guest.rings[1]) == 101
        finally:
            guest.close()


def test_the_process_ends_in_spite_of_a_call_that_blocks(inhabited: House) -> None:
    with SharedMemory(4 * MIB) as memory:
        guest = FakeGuest(inhabited.rogue, memory=memory)
        guest.start()
        try:
            guest.pair.exchange(FrameStream(), 100)
            call_into_the_void(guest, memory)
            inhabited.neighbour.leave()
            inhabited.backend.process.terminate()
            assert inhabited.backend.process.wait(5) == 0
        finally:
            guest.close()


def test_an_error_that_blocks_holds_up_nobody(inhabited: House) -> None:
    with inhabited.undisturbed(), inhabited.visitor(), FakeGuest(inhabited.rogue) as guest:
        ring = guest.rings[1]
        before = threads(inhabited.backend)
        block(ring.error_fd)
        for _ in range(3):
            available = ring.driver.raw.available_index
            ring.driver.raw.offer(0xFFFF)
            os.eventfd_write(ring.kick_fd, 1)
            wait_until(lambda: status(inhabited.backend)["rogue"].rings[1].error)
            inhabited.neighbour.check()
            # One thread waits to signal the ring's error, however often it breaks.
            assert threads(inhabited.backend) == before + 1
            guest.stop_ring(ring)
            ring.driver.raw.available_index = available
            guest.start_ring(ring)
            os.set_blocking(ring.error_fd, True)  # the backend has just set it to its liking
        assert os.eventfd_read(ring.error_fd) == FULL
        wait_until(lambda: threads(inhabited.backend) == before)
        assert guest.pair.exchange(FrameStream(), 100).received == 100
