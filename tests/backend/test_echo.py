"""A whole process with the echo port, and every layout of rings and buffers that a driver may choose."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

import pytest

from backend.process import Backend, another_region, hugepages, wait_until
from guestwire.testing import (
    DRIVER_FEATURES,
    FRONTEND_FEATURES,
    BufferLayout,
    FakeGuest,
    FrameStream,
    PageKind,
    SharedMemory,
    processes,
)
from guestwire.vhost_user.constants import ProtocolFeature
from guestwire.virtio.features import Feature

KIB, MIB = 1 << 10, 1 << 20
FRAMES = 20_000

LAYOUTS = {
    "one descriptor": BufferLayout(),
    "header apart": BufferLayout(header_apart=True),
    "indirect": BufferLayout(indirect=True),
    "header apart, indirect": BufferLayout(header_apart=True, indirect=True),
    "pieces": BufferLayout(length=1600, piece_length=320),
    "pieces, indirect": BufferLayout(length=1600, piece_length=100, indirect=True),
    "header cut": BufferLayout(length=1600, piece_length=800, indirect=True, offset=7),
}


@pytest.fixture(scope="module")
def backend(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Backend]:
    with Backend(tmp_path_factory.mktemp("echo"), "echo") as backend:
        yield backend


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("mergeable", [True, False], ids=["mergeable", "not mergeable"])
def test_every_byte_comes_back(backend: Backend, layout: BufferLayout, mergeable: bool) -> None:
    features = DRIVER_FEATURES
    if not mergeable:
        features &= ~Feature.VIRTIO_NET_F_MRG_RXBUF
    with FakeGuest(
        backend.socket,
        features=features,
        receive_layout=layout,
        transmit_layout=layout,
        verify_sent=True,
    ) as guest:
        assert (Feature.VIRTIO_NET_F_MRG_RXBUF in guest.features) is mergeable
        traffic = guest.pair.exchange(FrameStream((60, 1514)), FRAMES)
        assert traffic[:3] == (FRAMES, FRAMES, 0)


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("in_order", [True, False], ids=["in order", "in any order"])
@pytest.mark.parametrize("size", [256, 100])
def test_packed_rings(backend: Backend, layout: BufferLayout, size: int, in_order: bool) -> None:
    with FakeGuest(
        backend.socket,
        packed=True,
        in_order=in_order,
        queue_size=size,
        receive_layout=layout,
        transmit_layout=layout,
        verify_sent=True,
    ) as guest:
        stream = FrameStream((60, 1514))
        assert guest.pair.exchange(stream, FRAMES // 4).received == FRAMES // 4
        assert guest.pair.exchange(stream, FRAMES // 40, wait=True).received == FRAMES // 40
        for _ in range(3):
            for ring in guest.rings:
                assert guest.stop_ring(ring) == ring.driver.resume_base
            for ring in guest.rings:
                guest.start_ring(ring)
            assert guest.pair.exchange(stream, 77).received == 77


@pytest.mark.parametrize("size", [3, 64, 1000, 4096])
@pytest.mark.parametrize("base", [0x8000, 2], ids=["from the beginning", "in the middle"])
def test_packed_rings_of_any_size(backend: Backend, size: int, base: int) -> None:
    with (
        SharedMemory(32 * MIB * max(1, size // 1024)) as memory,
        FakeGuest(backend.socket, memory=memory, packed=True, queue_size=size, base=base) as guest,
    ):
        assert guest.pair.exchange(FrameStream(), FRAMES // 4).received == FRAMES // 4


def test_ten_million_small_frames_and_a_million_large_ones(backend: Backend) -> None:
    with FakeGuest(backend.socket) as guest:
        for size, count in ((64, 10_000_000), (1500, 1_000_000)):
            before = backend.guest()["counters"]
            assert guest.pair.exchange(FrameStream(size), count, timeout=60)[:3] == (count, count, 0)
            after = backend.guest()["counters"]
            for direction in ("rx", "tx"):
                assert after[direction]["frames"] - before[direction]["frames"] == count
                assert after[direction]["bytes"] - before[direction]["bytes"] == count * size
                assert after[direction]["drops"] == before[direction]["drops"]


def test_frames_larger_than_a_buffer(backend: Backend) -> None:
    with FakeGuest(backend.socket, receive_layout=BufferLayout(length=200)) as guest:
        assert guest.pair.exchange(FrameStream((60, 1514)), FRAMES).received == FRAMES


@pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
@pytest.mark.parametrize("event_idx", [True, False], ids=["event_idx", "flags"])
def test_a_driver_that_sleeps_is_woken(backend: Backend, event_idx: bool, packed: bool) -> None:
    features = DRIVER_FEATURES
    if not event_idx:
        features &= ~Feature.VIRTIO_F_EVENT_IDX
    with FakeGuest(backend.socket, features=features, packed=packed) as guest:
        traffic = guest.pair.exchange(FrameStream(), FRAMES // 10, wait=True)
        assert traffic.received == FRAMES // 10
        assert guest.pair.receive_ring.calls > 0


@pytest.mark.parametrize("size", [2, 64, 1024, 4096])
def test_queue_sizes_and_where_indices_start(backend: Backend, size: int) -> None:
    with (
        SharedMemory(32 * MIB * max(1, size // 1024)) as memory,
        FakeGuest(backend.socket, memory=memory, queue_size=size, base=0xFFF0) as guest,
    ):
        assert guest.pair.exchange(FrameStream(), FRAMES).received == FRAMES


@pytest.mark.parametrize("one_file", [False, True], ids=["files", "one file"])
@pytest.mark.parametrize("pages", list(PageKind))
def test_several_regions(backend: Backend, pages: PageKind, one_file: bool) -> None:
    with (
        hugepages(6) if pages is PageKind.HUGETLB else contextlib.nullcontext(),
        SharedMemory(4 * MIB, 2 * MIB, 6 * MIB, pages=pages, one_file=one_file) as memory,
        FakeGuest(backend.socket, memory=memory) as guest,
    ):
        assert guest.pair.exchange(FrameStream((60, 1514)), FRAMES).received == FRAMES


def test_509_regions(backend: Backend) -> None:
    with (
        SharedMemory(*[16 * KIB] * 508, 8 * MIB) as memory,
        FakeGuest(backend.socket, memory=memory) as guest,
    ):
        assert guest.frontend.get_max_memory_slots() == 509
        assert guest.pair.exchange(FrameStream((60, 1514)), FRAMES).received == FRAMES


def test_regions_all_at_once(backend: Backend) -> None:
    features = FRONTEND_FEATURES & ~ProtocolFeature.CONFIGURE_MEM_SLOTS
    with FakeGuest(backend.socket, protocol_features=features) as guest:
        assert guest.pair.exchange(FrameStream(), 1000).received == 1000


def test_memory_is_added_and_removed_under_traffic(backend: Backend) -> None:
    with FakeGuest(backend.socket) as guest, another_region() as more:
        stream = FrameStream((60, 1514))
        for _ in range(5):
            guest.pair.exchange(stream, 1000)
            guest.frontend.add_memory_region(more)
            guest.pair.exchange(stream, 1000)
            guest.frontend.remove_memory_region(more)
        assert stream.lost == 0


def test_rings_stop_and_go_on_exactly(backend: Backend) -> None:
    with FakeGuest(backend.socket) as guest:
        stream = FrameStream()
        for count in range(1, 20):
            guest.pair.exchange(stream, 100)
            for ring in guest.rings:
                assert guest.stop_ring(ring) == 100 * count
            for ring in guest.rings:
                guest.start_ring(ring)


def test_a_guest_that_idles_costs_no_time(backend: Backend) -> None:
    with FakeGuest(backend.socket) as guest:
        guest.pair.exchange(FrameStream(), 1000)
        wait_until(lambda: backend.guest()["counters"]["worker"]["sleeps"] > 0)
        before = processes.cpu_seconds(backend.pid)
        # Ten seconds in which nothing happens are what is tested.
        time.sleep(10)
        assert processes.cpu_seconds(backend.pid) - before < 0.02
        assert guest.pair.exchange(FrameStream(), 1000, wait=True).received == 1000


def test_guests_come_and_go_without_a_trace(backend: Backend) -> None:
    def visit() -> None:
        gone = backend.text().count("the frontend is gone")
        with FakeGuest(backend.socket) as guest:
            guest.pair.exchange(FrameStream(), 100)
        wait_until(lambda: backend.text().count("the frontend is gone") > gone)

    wait_until(lambda: backend.guest()["state"] == "listening")
    visit()
    before = backend.resources()
    for _ in range(20):
        visit()
    assert backend.resources() == before
