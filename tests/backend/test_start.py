"""A guest that is started and of which nothing is seen: what the log and `status` say, and when nothing."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from backend.process import Backend, wait_until
from guestwire.start_watch import EMPTY_MEMORY, NO_MEMORY, WAITING, empty_ring
from guestwire.testing import DRIVER_FEATURES, FakeGuest, FrameStream, Frontend

QUIET_SECONDS = 3.0  # several looks


@contextlib.contextmanager
def untouched(backend: Backend, kernel: bytes = b"") -> Iterator[FakeGuest]:
    """A guest whose rings run, and nothing was ever put into them; its memory is empty but for a kernel."""
    with contextlib.closing(FakeGuest(backend.socket)) as guest:
        guest.start()
        for ring in guest.rings:
            guest.stop_ring(ring)
        for region in guest.memory.regions:
            region.bytes[:] = kernel.ljust(region.size, b"\0")
        for ring in guest.rings:
            ring.base = 0
            guest.start_ring(ring)
        yield guest


@pytest.fixture
def backend(tmp_path: Path) -> Iterator[Backend]:
    with Backend(tmp_path, "echo") as made:
        yield made


def said(backend: Backend, notice: str) -> bool:
    return backend.guest()["notices"] == [notice] and backend.text().count(notice) == 1


def nothing_is_said(backend: Backend) -> bool:
    return backend.guest()["notices"] == [] and " WARNING " not in backend.text()


def kick(guest: FakeGuest, ring: int) -> bool:
    os.eventfd_write(guest.rings[ring].kick_fd, 1)
    time.sleep(0.01)
    return False


def test_kicks_of_a_ring_that_stays_empty(backend: Backend) -> None:
    with FakeGuest(backend.socket) as guest:
        wait_until(lambda: kick(guest, 1) or said(backend, empty_ring(1)))
        assert "share=on" in backend.text()
        stream = FrameStream()
        guest.pair.send_stream(stream, 1)
        wait_until(lambda: backend.guest()["notices"] == [])
    assert backend.text().count(empty_ring(1)) == 1


def test_packed_rings_too(backend: Backend) -> None:
    with FakeGuest(backend.socket, packed=True) as guest:
        wait_until(lambda: kick(guest, 1) or said(backend, empty_ring(1)))


def test_memory_in_which_there_is_nothing(backend: Backend) -> None:
    with untouched(backend):
        wait_until(lambda: said(backend, EMPTY_MEMORY))
    wait_until(lambda: backend.guest()["notices"] == [])


def test_a_driver_without_memory(backend: Backend) -> None:
    with contextlib.closing(Frontend.connect(backend.socket)) as frontend:
        offered = frontend.get_features()
        frontend.set_features(DRIVER_FEATURES & offered)
        wait_until(lambda: said(backend, NO_MEMORY), 20)


def test_a_frontend_that_waits_for_its_turn(backend: Backend) -> None:
    with FakeGuest(backend.socket) as guest:
        other = Frontend.connect(backend.socket)
        wait_until(lambda: said(backend, WAITING))
        guest.pair.send_stream(FrameStream(), 10)
    with contextlib.closing(other):
        other.get_features()
        wait_until(lambda: backend.guest()["notices"] == [])


def test_nothing_is_said_of_a_guest_that_is_at_work_or_idle(backend: Backend) -> None:
    with FakeGuest(backend.socket) as guest:
        time.sleep(QUIET_SECONDS)  # nothing is sent
        assert nothing_is_said(backend)
        guest.pair.send_stream(FrameStream(), 100)
        time.sleep(QUIET_SECONDS)
        assert nothing_is_said(backend)


def test_nothing_is_said_of_a_guest_whose_interface_is_down(backend: Backend) -> None:
    with untouched(backend, b"kernel") as guest:
        kick(guest, 0)
        time.sleep(QUIET_SECONDS)
        assert nothing_is_said(backend)


def test_nothing_is_said_of_a_frontend_whose_guest_boots(backend: Backend) -> None:
    with contextlib.closing(Frontend.connect(backend.socket)) as frontend:
        frontend.get_features()
        time.sleep(QUIET_SECONDS)
        assert nothing_is_said(backend)
