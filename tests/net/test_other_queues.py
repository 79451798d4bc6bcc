"""Frames that come in on queues of an xdp interface whose pairs the guest does not use reach it."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from backend.multiqueue import pair_counters
from backend.process import Backend, wait_until
from guestwire.testing import FakeGuest, FrameStream, Wire
from net.test_multiqueue import send_by_queue
from net.traffic import peer_socket

pytestmark = pytest.mark.root

PAIRS = 4
FRAMES = 50


@contextlib.contextmanager
def served(tmp_path: Path, mode: str, size: int) -> Iterator[tuple[Wire, Backend, FakeGuest]]:
    """A guest of several queue pairs on an interface of as many queues."""
    arguments = ["--queue-pairs", str(PAIRS), "--cpus", str(min(os.sched_getaffinity(0)))]
    with (
        Wire(queues=PAIRS) as wire,
        Backend(
            tmp_path, f"xdp:{wire.interface},mode={mode}", arguments, namespace=wire.near.name
        ) as backend,
        FakeGuest(backend.socket, queue_pairs=PAIRS, queue_size=size, accept_empty=True) as guest,
    ):
        yield wire, backend, guest


def enable(guest: FakeGuest, *working: int) -> None:
    """Enable these queue pairs and disable the others, as `ethtool -L` in a guest makes QEMU do it."""
    for ring in guest.rings:
        guest.frontend.set_ring_enable(ring.index, ring.index // 2 in working)
    guest.frontend.get_features()  # answered after them


def covered(backend: Backend) -> set[int]:
    """The queues whose frames go to other pairs than their own, as `status` tells."""
    reason = backend.guest()["port"]["mode_reason"] or ""
    found = re.search(r"frames that come in on queues? ([0-9, ]+) are copied", reason)
    return {int(number) for number in found[1].split(",")} if found else set()


def use(guest: FakeGuest, backend: Backend, *working: int) -> None:
    """Enable these queue pairs and no others, and wait until they cover for those."""
    enable(guest, *working)
    idle = {ring.index // 2 for ring in guest.rings} - set(working)
    wait_until(lambda: covered(backend) == idle, 30)
    # It is told while it is done, and requests wait for that.
    enable(guest, *working)


def moved(backend: Backend) -> list[int]:
    """Of each pair, how many frames it took that came in on other queues."""
    return [each["rx"]["copied_frames"].get("other_queue", 0) for each in pair_counters(backend)]


def send(wire: Wire, queue: int, stream: FrameStream, count: int) -> None:
    """Send frames that come in on a queue."""
    send_by_queue(wire, queue, PAIRS)
    with contextlib.closing(peer_socket(wire)) as sender:
        for frame in stream.take(count):
            sender.send(frame)


# With 64 buffers the guest offers too few for both sockets of a pair, with 256 enough.
@pytest.mark.parametrize("size", [64, 256])
@pytest.mark.parametrize("mode", ["bounce", "direct"])
def test_frames_of_every_queue_reach_the_pairs_at_work(tmp_path: Path, mode: str, size: int) -> None:
    received = [0] * PAIRS
    with served(tmp_path, mode, size) as (wire, backend, guest):
        for working in ((0,), (1, 2), (0, 1, 2, 3), (3,)):
            use(guest, backend, *working)
            idle = sorted({0, 1, 2, 3} - set(working))
            takers = {queue: working[number % len(working)] for number, queue in enumerate(idle)}
            for queue in range(PAIRS):
                taker = takers.get(queue, queue)
                before = moved(backend)
                stream = FrameStream((60, 1514), identifier=sum(received))
                send(wire, queue, stream, FRAMES)
                assert guest.pairs[taker].receive_stream(stream, FRAMES)[1:3] == (FRAMES, 0)
                received[taker] += FRAMES
                before[taker] += FRAMES if queue in takers else 0
                assert moved(backend) == before
        # Every buffer is accounted for, and the guest's alone when nothing runs.
        for ring in guest.rings:
            base = guest.stop_ring(ring)
            if ring.index % 2 == 0:
                pair = guest.pairs[ring.index // 2]
                while pair.receive(timeout=0, wait=False) is not None:
                    pass
                assert base == received[ring.index // 2] + pair.empty
        assert all(not each["rx"]["drops"] for each in pair_counters(backend))
        wait_until(lambda: backend.guest()["memory"]["pinned_bytes"] == 0)


def test_frames_wait_for_a_guest_that_is_slow(tmp_path: Path) -> None:
    """More of them than the guest has buffers for: they wait where they have arrived."""
    with served(tmp_path, "direct", 256) as (wire, backend, guest):
        use(guest, backend, 0)
        stream = FrameStream((60, 1514))
        send(wire, 2, stream, 400)
        assert guest.pairs[0].receive_stream(stream, 400)[1:3] == (400, 0)
        assert moved(backend) == [400, 0, 0, 0]
        # What nobody takes is counted when its socket goes.
        send(wire, 2, stream, 400)
        wait_until(lambda: moved(backend)[0] >= 400 + 129)
        enable(guest)
        taken = moved(backend)[0] - 400
        wait_until(lambda: pair_counters(backend)[0]["rx"]["drops"].get("no_buffers", 0) == 400 - taken)
