"""DPDK's virtio-user, a driver that we did not write, as the guest: no frame lost, no byte changed.

GUESTWIRE_SOAK=1 (``make soak``) verifies every byte of 10 million small and 1 million large frames.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from backend.multiqueue import pair_counters
from backend.process import Backend, wait_until
from guestwire.testing import FrameStream, Wire
from guestwire.testing.frame_stream import ETHERTYPE
from peers import testpmd
from peers.pcap_fifo import BURST, PcapFifo
from peers.testpmd import Testpmd

SO_RCVBUFFORCE = 33  # asm-generic/socket.h
SOAK = bool(os.environ.get("GUESTWIRE_SOAK"))

pytestmark = pytest.mark.timeout(3600 if SOAK else 300)

COUNTED = {64: 10_000_000, 1500: 1_000_000}
VERIFIED = COUNTED if SOAK else {64: 200_000, 1500: 50_000}
VERIFIED_BY_RING = 20_000
VERIFIED_ON_WIRE = {64: 20_000, 1500: 10_000}

QUEUE_SIZE = 256
CIRCULATING_BURSTS = 4  # of 32 frames: half of the ring, so that there is always room to send on

mergeable_or_not = pytest.mark.parametrize("mergeable", [True, False], ids=["mergeable", "not mergeable"])
RINGS = {"split": (0, 0), "split, in order": (0, 1), "packed": (1, 0), "packed, in order": (1, 1)}


@pytest.fixture(autouse=True)
def _needs_testpmd() -> None:
    testpmd.require()


def driver(path: Path, mergeable: bool, ring: str = "split", queues: int = 1) -> str:
    """The virtio-user port."""
    packed, in_order = RINGS[ring]
    return (
        f"net_virtio_user0,path={path},mac=52:54:00:00:00:01,queues={queues},queue_size={QUEUE_SIZE},"
        f"mrg_rxbuf={mergeable:d},in_order={in_order},packed_vq={packed}"
    )


def two_cores() -> list[int]:
    """Two processors, or the only one twice: net_pcap blocks, and may hold up only its own direction."""
    cores = sorted(os.sched_getaffinity(0))
    return [cores[-1], cores[0]]


def assert_exact(backend: Backend, mergeable: bool, count: int, octets: int, ring: str = "split") -> None:
    """What guestwire has counted is what testpmd has sent, and nothing was dropped."""
    guest = backend.guest()
    assert ("VIRTIO_NET_F_MRG_RXBUF" in guest["features"]) is mergeable
    kinds = tuple(
        int(feature in guest["features"]) for feature in ("VIRTIO_F_RING_PACKED", "VIRTIO_F_IN_ORDER")
    )
    assert kinds == RINGS[ring]
    for direction in ("rx", "tx"):
        counted = guest["counters"][direction]
        assert (counted["frames"], counted["bytes"], counted["drops"]) == (count, octets, {})


def stop(pmd: Testpmd) -> None:
    """Stop forwarding: testpmd says itself that it had to drop nothing."""
    dropped = re.findall(r"[RT]X-dropped: *(\d+)", pmd.command("stop"))
    assert dropped
    assert set(dropped) == {"0"}


def circulate(pmd: Testpmd, size: int, count: int, queues: int = 1) -> int:
    """Send a few frames in circles until so many have come back; return how many were sent."""
    before = pmd.stats()
    pmd.command(f"set txpkts {size}")
    pmd.forward("io", first=CIRCULATING_BURSTS)
    end = time.monotonic() + 60
    while pmd.stats()["RX-packets"] - before["RX-packets"] < count:
        assert time.monotonic() < end, "frames circulate too slowly, or no longer"
        time.sleep(0.05)
    stop(pmd)
    after = pmd.stats()
    # testpmd sends on all that it receives: what is missing is on its way, and that never changes.
    assert after["TX-packets"] - after["RX-packets"] == BURST * CIRCULATING_BURSTS * queues
    pmd.forward("rxonly")
    wait_until(lambda: pmd.stats()["RX-packets"] == after["TX-packets"])
    stop(pmd)
    assert pmd.stats()["RX-errors"] == pmd.stats()["TX-errors"] == 0
    return after["TX-packets"] - before["TX-packets"]


@mergeable_or_not
def test_every_frame_comes_back(tmp_path: Path, mergeable: bool) -> None:
    with (
        Backend(tmp_path, "echo") as backend,
        Testpmd(
            driver(backend.socket, mergeable),
            arguments=[f"--rxd={QUEUE_SIZE}", f"--txd={QUEUE_SIZE}", "--no-flush-rx"],
        ) as pmd,
    ):
        frames = octets = 0
        for size, count in COUNTED.items():
            sent = circulate(pmd, size, count)
            frames, octets = frames + sent, octets + sent * size
            assert_exact(backend, mergeable, frames, octets)


def test_every_frame_comes_back_on_four_queue_pairs(tmp_path: Path) -> None:
    cpu = str(min(os.sched_getaffinity(0)))
    with (
        Backend(tmp_path, "echo", ["--queue-pairs", "4", "--cpus", cpu]) as backend,
        Testpmd(
            driver(backend.socket, mergeable=True, queues=4),
            arguments=[f"--rxd={QUEUE_SIZE}", f"--txd={QUEUE_SIZE}", "--no-flush-rx", "--rxq=4", "--txq=4"],
        ) as pmd,
    ):
        # What is sent before a transmit ring is enabled is dropped, as the specification says.
        wait_until(lambda: [ring["enabled"] for ring in backend.guest()["rings"]] == 8 * [True])
        frames = octets = 0
        for size, count in {64: 100_000, 1500: 50_000}.items():
            sent = circulate(pmd, size, count, queues=4)
            frames, octets = frames + sent, octets + sent * size
            assert_exact(backend, True, frames, octets)
        counted = [each["tx"]["frames"] for each in pair_counters(backend)]
        assert len(counted) == 4
        assert min(counted) > 0


@pytest.mark.parametrize("ring", [ring for ring in RINGS if "order" not in ring])
def test_frames_of_several_segments_are_taken(tmp_path: Path, ring: str) -> None:
    """In the indirect tables of packed rings DPDK leaves set that the device may write."""
    with (
        Backend(tmp_path, "null") as backend,
        Testpmd(
            driver(backend.socket, mergeable=True, ring=ring),
            arguments=[f"--rxd={QUEUE_SIZE}", f"--txd={QUEUE_SIZE}", "--no-flush-rx"],
        ) as pmd,
    ):
        pmd.command("set txpkts 300,300,300")
        pmd.forward("txonly")
        wait_until(lambda: backend.guest()["counters"]["tx"]["frames"] > 10_000)
        pmd.command("stop")
        counted = backend.guest()["counters"]["tx"]
        assert counted["bytes"] == 900 * counted["frames"]
        assert counted["drops"] == {"no_receiver": counted["frames"]}  # the port's own
        assert [ring["error"] for ring in backend.guest()["rings"]] == [None, None]


@pytest.mark.parametrize("ring", RINGS)
def test_a_driver_outlives_a_killed_backend(tmp_path: Path, ring: str) -> None:
    """DPDK listens, and begins its split rings at 0 once more, wherever they are."""
    with (
        Backend(tmp_path, "echo", ["--connect"]) as backend,
        Testpmd(
            f"{driver(backend.socket, mergeable=True, ring=ring)},server=1",
            arguments=[f"--rxd={QUEUE_SIZE}", f"--txd={QUEUE_SIZE}", "--no-flush-rx"],
        ) as pmd,
    ):
        for visit in range(3):
            if visit:
                said = len(pmd.output)
                backend.process.kill()
                backend.process.wait()
                backend.start()
                # What testpmd says by itself gets mixed with what is typed meanwhile.
                succeeds = pmd.expect("reconnection succeeds", said)
                pmd.expect("link state change event\n", succeeds.end())
            wait_until(lambda: backend.guest()["state"] == "running")
            before = pmd.stats()["RX-packets"]
            pmd.forward("io", first=CIRCULATING_BURSTS)
            wait_until(lambda: pmd.stats()["RX-packets"] > before + 10_000, 30)  # noqa: B023
            pmd.command("stop")


def verify(
    folder: Path,
    backend: Backend,
    mergeable: bool,
    size: int,
    count: int,
    window: int | None = None,
    ring: str = "split",
) -> int:
    """Forward frames from a file to the virtio-user port, and what comes back to another file.

    Returns:
        How many: the count, rounded up to whole bursts.
    """
    count += -count % BURST
    stream = FrameStream(size)
    with (
        PcapFifo(folder, stream, count, window) as capture,
        Testpmd(
            capture.vdev,
            driver(backend.socket, mergeable, ring),
            arguments=[f"--rxd={QUEUE_SIZE}", f"--txd={QUEUE_SIZE}", "--no-flush-rx"],
            cores=two_cores(),
        ) as pmd,
    ):
        # A full ring makes testpmd wait, for 10 s if need be; otherwise it would drop.
        pmd.command("set burst tx delay 10 retry 1000000")
        pmd.forward("io retry")
        capture.wait()
        stop(pmd)
        assert_exact(backend, mergeable, count, count * size, ring)
    assert (stream.sent, stream.received, stream.lost) == (count, count, 0)
    return count


@mergeable_or_not
@pytest.mark.parametrize("size", VERIFIED)
def test_every_byte_comes_back(tmp_path: Path, size: int, mergeable: bool) -> None:
    with Backend(tmp_path, "echo") as backend:
        verify(tmp_path, backend, mergeable, size, VERIFIED[size])


@mergeable_or_not
@pytest.mark.parametrize("ring", [name for name in RINGS if name != "split"])
def test_every_byte_comes_back_by_every_ring(tmp_path: Path, ring: str, mergeable: bool) -> None:
    with Backend(tmp_path, "echo") as backend:
        verify(tmp_path, backend, mergeable, 300, VERIFIED_BY_RING, ring=ring)


@contextlib.contextmanager
def reflecting_peer(wire: Wire) -> Iterator[None]:
    """A peer at the far end of the wire that sends every frame back as it came."""
    ended = threading.Event()

    def make() -> socket.socket:
        peer = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETHERTYPE))
        peer.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 8 << 20)
        peer.bind((wire.peer_interface, ETHERTYPE))
        peer.settimeout(0.1)
        return peer

    def reflect() -> None:
        while not ended.is_set():
            with contextlib.suppress(TimeoutError):
                peer.send(peer.recv(65536))

    with wire.far.call(make) as peer:
        thread = threading.Thread(target=reflect)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()


@pytest.mark.root
@mergeable_or_not
@pytest.mark.parametrize("size", VERIFIED_ON_WIRE)
def test_every_byte_comes_back_from_a_wire(tmp_path: Path, size: int, mergeable: bool) -> None:
    with (
        Wire() as wire,
        reflecting_peer(wire),
        Backend(tmp_path, f"xdp:{wire.interface},mode=direct", namespace=wire.near.name) as backend,
    ):
        # An interface drops what finds no buffer: no more may be on their way than the guest offers.
        count = verify(tmp_path, backend, mergeable, size, VERIFIED_ON_WIRE[size], window=160)
        for direction in ("rx", "tx"):
            counted = backend.guest()["counters"][direction]
            assert counted["direct_frames"] == count
            assert counted["copied_frames"] == {}
