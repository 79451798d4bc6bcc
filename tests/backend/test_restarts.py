"""The process is killed and started anew: the guest's rings go on, whatever the frontend says of them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from backend.house import complaints
from backend.process import Backend, wait_until
from guestwire.testing import FakeGuest, FrameStream

FRAMES = 300  # more than a ring has buffers
# What frontends say of a ring that was used up to FRAMES: DPDK's virtio-user always 0; QEMU, of an in-order
# ring, what it has dropped itself meanwhile and not returned.
BASES = {"DPDK": (0, False), "QEMU": (FRAMES + 2, True)}


@contextlib.contextmanager
def killed(folder: Path, **options: bool) -> Iterator[tuple[FakeGuest, Backend]]:
    """A guest whose backend was killed, and the next backend."""
    with Backend(folder, "echo") as first, contextlib.closing(FakeGuest(first.socket, **options)) as guest:
        guest.start()
        frames_come_back(guest)
        first.process.kill()
        first.process.wait()
        first.log.unlink()
        with Backend(folder, "echo") as second:
            yield guest, second


def frames_come_back(guest: FakeGuest) -> None:
    assert guest.pair.exchange(FrameStream((60, 1514)), FRAMES).received == FRAMES


@pytest.mark.parametrize(("base", "in_order"), BASES.values(), ids=BASES)
def test_a_split_ring_goes_on_where_it_was_used(tmp_path: Path, base: int, in_order: bool) -> None:
    with killed(tmp_path, in_order=in_order) as (guest, backend):
        guest.reconnect(base)
        frames_come_back(guest)
        said = [
            f"guestwire.guest.guest: ring {index} goes on from {FRAMES:#x}, as the ring itself shows, and "
            f"not from {base:#x}, as the frontend says: frames that the device before us had taken may be "
            "sent twice"
            for index in range(2)
        ]
        assert complaints(backend.text()) == said
        for ring in guest.rings:
            assert guest.stop_ring(ring) == 2 * FRAMES
            guest.start_ring(ring)
        frames_come_back(guest)
        assert complaints(backend.text()) == said


@pytest.mark.parametrize("ahead", [1, -257, 1 << 15])
def test_a_used_index_that_cannot_be_stops_its_ring(tmp_path: Path, ahead: int) -> None:
    """It is the guest's memory: no more than the queue size can wait between it and the available index."""
    with killed(tmp_path) as (guest, backend):
        transmit = guest.rings[1]
        transmit.driver.raw.reset_used_index(FRAMES + ahead & 0xFFFF)
        guest.reconnect()
        wait_until(transmit.is_broken)
        wait_until(lambda: "ring 1 is stopped: the available index moved by more than" in backend.text())


def test_a_driver_that_was_shown_buffers_and_not_called(tmp_path: Path) -> None:
    with killed(tmp_path) as (guest, _):
        for ring in guest.rings:
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(ring.call_fd)
        guest.reconnect()
        for ring in guest.rings:
            wait_until(lambda: called(ring.call_fd))  # noqa: B023


def called(fd: int) -> bool:
    try:
        return os.eventfd_read(fd) > 0
    except BlockingIOError:
        return False
