"""Calls that a process holds back: for as long as its command line says, and not beyond the rings' end."""

from __future__ import annotations

import os
import select
import time
from collections.abc import Iterator

import pytest

from backend.process import Backend, wait_until
from guestwire.testing import FakeGuest

HELD_SECONDS = 1.0
PACKETS = 3
FRAME = bytes(60)


@pytest.fixture(scope="module")
def guest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeGuest]:
    options = [f"--coalesce-us={HELD_SECONDS * 1e6:.0f}", f"--coalesce-packets={PACKETS}"]
    with (
        Backend(tmp_path_factory.mktemp("calls"), "null", options) as backend,
        FakeGuest(backend.socket) as guest,
    ):
        yield guest


def send(guest: FakeGuest, count: int) -> None:
    """Send frames, one by one, of which the driver wants a call for the first; they are taken at once."""
    raw = guest.rings[1].driver.raw
    raw.used_event = raw.used_index
    for _ in range(count):
        sent = raw.used_index + 1 & 0xFFFF
        guest.pair.send(FRAME)
        wait_until(lambda: raw.used_index == sent)  # noqa: B023


def wait_for_call(guest: FakeGuest) -> None:
    call = guest.rings[1].call_fd
    assert select.select([call], [], [], 60)[0]
    assert os.eventfd_read(call) == 1


def test_a_call_is_held_back(guest: FakeGuest) -> None:
    began = time.monotonic()
    send(guest, 1)
    wait_for_call(guest)
    assert time.monotonic() - began >= HELD_SECONDS


def test_for_no_more_than_so_many_packets(guest: FakeGuest) -> None:
    """On a busy machine a try may take as long as a call is held back; one of many does not."""
    for _ in range(20):
        began = time.monotonic()
        send(guest, PACKETS)
        wait_for_call(guest)
        if time.monotonic() - began < HELD_SECONDS:
            return
    pytest.fail("no call was made before its time")


def test_a_call_that_is_owed_is_made_when_the_ring_stops(guest: FakeGuest) -> None:
    send(guest, 1)
    guest.stop_ring(guest.rings[1])
    wait_for_call(guest)
    guest.start_ring(guest.rings[1])
