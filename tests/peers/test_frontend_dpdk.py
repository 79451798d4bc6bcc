"""The testing frontend and driver against a backend that we did not write: DPDK's net_vhost.

testpmd sends every frame back where it came from.  Whatever goes wrong here is our fault, or a
finding about DPDK.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from guestwire.testing import (
    DRIVER_FEATURES,
    FRONTEND_FEATURES,
    BackendError,
    BufferLayout,
    FakeGuest,
    FrameStream,
    Frontend,
    PageKind,
    SharedMemory,
)
from guestwire.vhost_user.constants import ProtocolFeature
from guestwire.virtio.features import Feature
from peers import testpmd
from peers.testpmd import Testpmd

MIB = 1 << 20
FRAMES = 20_000

LAYOUTS = {
    "one descriptor": BufferLayout(),
    "header apart": BufferLayout(header_apart=True),
    "indirect": BufferLayout(indirect=True),
    "header apart, indirect": BufferLayout(header_apart=True, indirect=True),
    "pieces": BufferLayout(length=1600, piece_length=320),
    "pieces, indirect": BufferLayout(length=1600, piece_length=100, indirect=True),
}


@pytest.fixture(scope="module")
def backend(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The socket of a testpmd that forwards what it gets from one queue pair back to it."""
    testpmd.require()
    path = tmp_path_factory.mktemp("dpdk") / "vhost.sock"
    with Testpmd(f"net_vhost0,iface={path},queues=1") as pmd:
        pmd.forward("io")
        yield path


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("mergeable", [True, False], ids=["mergeable", "not mergeable"])
def test_every_byte_comes_back(backend: Path, layout: BufferLayout, mergeable: bool) -> None:
    features = DRIVER_FEATURES
    if not mergeable:
        features &= ~Feature.VIRTIO_NET_F_MRG_RXBUF
    with FakeGuest(
        backend,
        features=features,
        receive_layout=layout,
        transmit_layout=layout,
        verify_sent=True,
        strict=mergeable,
    ) as guest:
        assert (Feature.VIRTIO_NET_F_MRG_RXBUF in guest.features) is mergeable
        stream = FrameStream((60, 1514))
        traffic = guest.pair.exchange(stream, FRAMES)
        assert traffic[:3] == (FRAMES, FRAMES, 0)


@pytest.mark.parametrize("event_idx", [True, False], ids=["event_idx", "flags"])
def test_a_driver_that_sleeps_is_woken(backend: Path, event_idx: bool) -> None:
    features = DRIVER_FEATURES
    if not event_idx:
        features &= ~Feature.VIRTIO_F_EVENT_IDX
    count = 500
    with FakeGuest(backend, features=features) as guest:
        # One frame at a time: the driver has nothing to do until it is called for that one.
        traffic = guest.pair.exchange(FrameStream(), count, window=1, wait=True)
        assert guest.pair.receive_ring.calls > 0
        # Without a call each frame would lie there until the driver looks, 50 ms later.
        assert traffic.seconds < count * 0.025


def test_frames_larger_than_a_buffer(backend: Path) -> None:
    small = BufferLayout(length=200)
    with FakeGuest(backend, receive_layout=small) as guest:
        assert guest.pair.exchange(FrameStream((60, 1514)), FRAMES).received == FRAMES


@pytest.mark.parametrize("size", [64, 1024])
def test_queue_sizes_and_where_indices_start(backend: Path, size: int) -> None:
    memory_size = 8 * MIB * max(1, size // 256)
    with (
        SharedMemory(memory_size) as memory,
        FakeGuest(backend, memory=memory, queue_size=size, base=0xFFF0) as guest,
    ):
        assert guest.pair.exchange(FrameStream(), FRAMES).received == FRAMES


@pytest.mark.parametrize("one_file", [False, True], ids=["files", "one file"])
@pytest.mark.parametrize("pages", [PageKind.SMALL, PageKind.TRANSPARENT, PageKind.HUGETLB])
def test_several_regions(backend: Path, pages: PageKind, one_file: bool) -> None:
    if pages is PageKind.HUGETLB and testpmd.free_hugepages() < 6:
        pytest.skip("fewer than 6 hugepages of 2 MiB are free: sysctl vm.nr_hugepages=6")
    with (
        SharedMemory(4 * MIB, 2 * MIB, 6 * MIB, pages=pages, one_file=one_file) as memory,
        FakeGuest(backend, memory=memory) as guest,
    ):
        assert guest.pair.exchange(FrameStream((60, 1514)), FRAMES).received == FRAMES


def test_a_ring_goes_on_where_it_stopped(backend: Path) -> None:
    with FakeGuest(backend) as guest:
        stream = FrameStream()
        guest.pair.exchange(stream, 1000)
        for ring in guest.rings:
            assert guest.stop_ring(ring) == 1000 % 65536
        for ring in guest.rings:
            guest.start_ring(ring)
        guest.pair.exchange(stream, 1000)
        assert stream.received == 2000


def test_single_frames(backend: Path) -> None:
    with FakeGuest(backend) as guest:
        for size in (14, 60, 1514):
            guest.pair.send(bytes(range(14)) + bytes(size - 14))
            received = guest.pair.receive()
            assert received is not None
            assert received.data == bytes(range(14)) + bytes(size - 14)


def test_no_acknowledgements(backend: Path) -> None:
    features = FRONTEND_FEATURES & ~ProtocolFeature.REPLY_ACK
    with FakeGuest(backend, protocol_features=features) as guest:
        assert guest.pair.exchange(FrameStream(), 1000).received == 1000


def test_a_feature_that_is_not_offered(backend: Path) -> None:
    with (
        pytest.raises(BackendError, match=r"does not offer .*VIRTIO_NET_F_STANDBY"),
        FakeGuest(backend, required=Feature.VIRTIO_NET_F_STANDBY),
    ):
        pass


def test_bytes_that_are_no_message(backend: Path) -> None:
    with Frontend.connect(backend) as frontend:
        frontend.send(b"\xff" * 12)
        frontend.expect_end()


def test_two_queue_pairs(tmp_path: Path) -> None:
    testpmd.require()
    path = tmp_path / "vhost.sock"
    with Testpmd(f"net_vhost0,iface={path},queues=2", arguments=["--rxq=2", "--txq=2"]) as pmd:
        pmd.forward("io")
        with FakeGuest(path, queue_pairs=2) as guest:
            for i, pair in enumerate(guest.pairs):
                assert pair.exchange(FrameStream(identifier=i), FRAMES).received == FRAMES


def test_the_backend_is_killed_and_another_takes_over(tmp_path: Path) -> None:
    testpmd.require()
    path = tmp_path / "vhost.sock"
    vdev = f"net_vhost0,iface={path},queues=1"
    stream = FrameStream()
    with Testpmd(vdev) as first:
        first.forward("io")
        guest = FakeGuest(path)
        guest.start()
        try:
            guest.pair.exchange(stream, FRAMES)
            first.kill()
            path.unlink()
            with Testpmd(vdev) as second:
                second.forward("io")
                guest.reconnect()
                guest.pair.exchange(stream, FRAMES)
                guest.stop()
        finally:
            guest.close()
    assert stream.received == 2 * FRAMES
