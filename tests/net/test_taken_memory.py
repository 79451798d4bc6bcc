"""Memory that a frontend takes away while the kernel has it pinned, and memory that must not be populated."""

from __future__ import annotations

import contextlib
import ctypes
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from backend.process import Backend, another_region, wait_until
from guestwire.testing import FakeGuest, Region, SharedMemory, Wire
from net.traffic import Traffic, peer_socket, rebind

pytestmark = pytest.mark.root

MIB = 1 << 20
PUNCH_HOLE = 3  # FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE
TAKEN = "pages of the guest's memory were taken away while they were pinned"


def take_away(region: Region, start: int, end: int | None = None, *, fill: bool = False) -> None:
    """Punch a hole; `fill` it with what it held, as a guest may. Without an end, up to the region's."""
    end = end or region.size
    data = bytes(region.bytes[start:end])
    libc = ctypes.CDLL(None, use_errno=True)
    offset, length = ctypes.c_long(region.mmap_offset + start), ctypes.c_long(end - start)
    assert libc.fallocate(region.fd, PUNCH_HOLE, offset, length) == 0
    if fill:
        region.bytes[start:end] = data


class Line:
    """A guest's memory and its backend, with a raw socket at the other end of the wire."""

    def __init__(self, wire: Wire, backend: Backend, memory: SharedMemory) -> None:
        self.wire, self.backend, self.memory = wire, backend, memory

    @contextlib.contextmanager
    def traffic(self) -> Iterator[Traffic]:
        with (
            FakeGuest(self.backend.socket, memory=self.memory) as guest,
            peer_socket(self.wire) as peer,
        ):
            traffic = Traffic(guest, peer)
            traffic.sender = peer
            traffic.goes_on()
            yield traffic

    @property
    def port(self) -> Any:
        return self.backend.guest()["port"]

    def bounces(self) -> bool:
        return bool(self.port["mode"] == "bounce")

    def taken(self) -> int:
        return int(self.backend.guest()["memory"]["taken"])


@contextlib.contextmanager
def line(folder: Path, mode: str, *sizes: int) -> Iterator[Line]:
    with Wire() as wire, SharedMemory(*(sizes or (64 * MIB,))) as memory:
        port = f"xdp:{wire.interface},mode={mode}"
        with Backend(folder, port, namespace=wire.near.name) as backend:
            yield Line(wire, backend, memory)


@pytest.mark.parametrize("fill", [False, True], ids=["hole", "filled hole"])
@pytest.mark.parametrize("mode", ["auto", "direct"])
def test_memory_is_taken_away_under_traffic_and_no_frame_is_lost(
    tmp_path: Path, mode: str, fill: bool
) -> None:
    with line(tmp_path, mode) as on, on.traffic() as traffic:
        assert on.port["mode"] == "direct"
        take_away(on.memory.regions[0], 48 * MIB, fill=fill)  # where nothing lies
        traffic.during(lambda: wait_until(on.bounces))
        traffic.goes_on()
        assert on.port["mode_reason"].startswith(TAKEN)
        assert on.taken() == 1
        assert on.backend.guest()["memory"]["pinned_bytes"] < 16 * MIB
        traffic.end()
        assert on.backend.text().count("frames are copied from now on (mode=bounce)") == 1
        assert "guestwire rebind guest PORT" in on.backend.text()


def test_what_is_sent_afterwards_is_what_the_guest_wrote(tmp_path: Path) -> None:
    with line(tmp_path, "direct") as on, on.traffic() as traffic:
        wait_until(lambda: traffic.take() or traffic.arriving.received == traffic.arriving.sent)
        traffic.guest.pair.drain()
        for ring in traffic.guest.rings:
            start, length = ring.area.guest_address, len(ring.area.bytes)
            take_away(
                on.memory.regions[0], -(-start // 4096) * 4096, (start + length) // 4096 * 4096, fill=True
            )
        wait_until(on.bounces)
        traffic.goes_on()
        traffic.end()


def test_memory_that_is_touched_for_the_first_time_is_no_reason(tmp_path: Path) -> None:
    with line(tmp_path, "direct") as on, on.traffic() as traffic:
        for offset in range(16 * MIB, 64 * MIB, MIB):
            on.memory.regions[0].bytes[offset] = 1
            traffic.step()
            time.sleep(0.01)  # several looks while this goes on
        traffic.goes_on()
        assert on.port["mode"] == "direct"
        assert on.taken() == 0


def test_it_holds_until_the_port_or_the_frontend_is_another_one(tmp_path: Path) -> None:
    with line(tmp_path, "auto") as on, another_region() as more:
        port = f"xdp:{on.wire.interface},mode=auto"
        with on.traffic() as traffic:
            take_away(on.memory.regions[0], 48 * MIB)
            wait_until(on.bounces)
            traffic.guest.frontend.add_memory_region(more)
            assert on.bounces()
            rebind(on.backend, port)
            assert on.port["mode"] == "direct"
            take_away(on.memory.regions[0], 48 * MIB)
            wait_until(on.bounces)
            traffic.goes_on()
        wait_until(lambda: on.backend.guest()["state"] == "listening")
        with on.traffic():
            assert on.port["mode"] == "direct"
        assert on.taken() == 2


def test_a_refused_rebind_does_not_pin_it_again(tmp_path: Path) -> None:
    with line(tmp_path, "direct") as on, on.traffic() as traffic:
        take_away(on.memory.regions[0], 48 * MIB)
        wait_until(on.bounces)
        answer = on.backend.run("rebind", "guest", f"xdp:{on.wire.interface},mode=zero-copy")
        assert answer.returncode == 3
        assert on.bounces()
        traffic.goes_on()


def test_memory_that_may_not_be_plugged_is_not_populated(tmp_path: Path) -> None:
    with line(tmp_path, "auto", 32 * MIB, 256 * MIB) as on:
        region = on.memory.regions[1]
        with on.traffic():
            assert on.bounces()
            assert "as if virtio-mem had not plugged it" in on.port["mode_reason"]
            assert 512 * os.fstat(region.fd).st_blocks < 16 * MIB
        region.bytes[region.size - 1] = 1
        wait_until(lambda: on.backend.guest()["state"] == "listening")
        with on.traffic():
            assert on.port["mode"] == "direct"


def test_a_mode_that_is_named_pins_memory_that_may_not_be_plugged(tmp_path: Path) -> None:
    with line(tmp_path, "direct", 32 * MIB, 256 * MIB) as on, on.traffic():
        assert on.port["mode"] == "direct"
