"""Several queues of an interface, one for each queue pair, which the guest enables and disables."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from backend.multiqueue import pair_counters
from backend.process import Backend, wait_until
from guestwire.testing import FakeGuest, FrameStream, Wire
from guestwire.testing.driver import QueuePair
from net.taps import line, ready
from net.test_tap_interface import flows, taken
from net.traffic import peer_socket

pytestmark = pytest.mark.root

PAIRS = 4
FLOWS = 64


def enable(guest: FakeGuest, count: int) -> None:
    """Enable the first queue pairs and disable the others, as `ethtool -L` in a guest makes QEMU do it."""
    for ring in guest.rings:
        guest.frontend.set_ring_enable(ring.index, ring.index // 2 < count)
    ready(guest)


def spread(pairs: Sequence[QueuePair], frames: list[bytes]) -> list[int]:
    """Take frames from queue pairs until there are no more; return how many each had."""
    counted = [0] * len(pairs)

    def take() -> bool:
        for number, pair in enumerate(pairs):
            before = len(frames)
            counted[number] += before - taken(pair, frames)
        return not frames

    wait_until(take)
    return counted


@pytest.mark.parametrize("cpus", [True, False], ids=["one worker", "a worker a pair"])
def test_flows_follow_the_queue_pairs_of_a_tap_interface(tmp_path: Path, cpus: bool) -> None:
    arguments = ["--queue-pairs", str(PAIRS)]
    if cpus:
        arguments += ["--cpus", str(min(os.sched_getaffinity(0)))]
    with (
        line(tmp_path, arguments=tuple(arguments)) as on,
        FakeGuest(on.backend.socket, queue_pairs=PAIRS) as guest,
    ):
        for count in (PAIRS, 2, 1, 3, PAIRS):
            enable(guest, count)
            counted = spread(guest.pairs[:count], flows(on.host, FLOWS))
            assert min(counted) > 0
            assert sum(counted) == FLOWS
            for pair in guest.pairs:
                assert pair.receive(timeout=0, wait=False) is None
        # What the guest sends leaves, whatever the queue pair.
        for number, pair in enumerate(guest.pairs):
            before = pair_counters(on.backend)[number]["tx"]["frames"]
            pair.send(bytes.fromhex("ffffffffffff 020000000002 88b5") + bytes(50))
            pair.drain()
            assert pair_counters(on.backend)[number]["tx"]["frames"] == before + 1
        assert all(not each["rx"]["drops"] for each in pair_counters(on.backend))


def send_by_queue(wire: Wire, queue: int, queues: int) -> None:
    """Have the far end send all frames by one queue: a veth's leads to that of the same number."""
    folder = f"/sys/class/net/{wire.peer_interface}/queues"
    every = f"{(1 << (os.cpu_count() or 1)) - 1:x}"
    for number in range(queues):
        mask = every if number == queue else "0"
        done = wire.far.run(["sh", "-c", f"echo {mask} >{folder}/tx-{number}/xps_cpus"])
        assert done.returncode == 0, done.stdout


def test_each_queue_of_an_xdp_interface_has_its_queue_pair(tmp_path: Path) -> None:
    first, queues = 1, 1 + PAIRS
    with (
        Wire(queues=queues) as wire,
        Backend(
            tmp_path,
            f"xdp:{wire.interface},mode=direct,queue={first}",
            ["--queue-pairs", str(PAIRS), "--cpus", str(min(os.sched_getaffinity(0)))],
            namespace=wire.near.name,
        ) as backend,
        FakeGuest(backend.socket, queue_pairs=PAIRS, queue_size=64) as guest,
        contextlib.ExitStack() as sockets,
    ):
        ready(guest)
        for number, pair in enumerate(guest.pairs):
            send_by_queue(wire, first + number, queues)
            sender = sockets.enter_context(peer_socket(wire))
            stream = FrameStream(200, identifier=number)
            for frame in stream.take(30):
                sender.send(frame)
            assert pair.receive_stream(stream, 30)[1:3] == (30, 0)
            assert pair_counters(backend)[number]["rx"]["frames"] == 30
            back = FrameStream(200, identifier=100 + number)
            pair.send_stream(back, 30)
            for _ in range(30):
                back.accept(sender.recv(65536))
            sender.close()
