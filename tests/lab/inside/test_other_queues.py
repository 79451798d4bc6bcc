"""In zero-copy mode, frames that come in on the queue of a pair that is not in use reach the pair that is."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from backend.multiqueue import pair_counters
from guestwire.testing import BufferLayout, FakeGuest, FrameStream, PageKind, SharedMemory
from lab.inside.commands import LabBackend
from lab.inside.peer import peer_socket, wait_for_carrier
from lab.machine import NIC
from net.test_other_queues import moved, use

MIB = 1 << 20
PATIENCE = 60.0
PAIRS = 2
BURST = 32


@pytest.fixture
def queues() -> Iterator[None]:
    """As many queues as the guest has queue pairs."""
    subprocess.run(["ethtool", "-L", NIC, "combined", str(PAIRS)], check=True)
    yield
    subprocess.run(["ethtool", "-L", NIC, "combined", "1"], check=True)


def test_another_pair_takes_what_comes_in_for_one_that_is_not_used(queues: None, tmp_path: Path) -> None:
    """What is no IP packet an igb puts on its first queue."""
    stream, leaving = FrameStream((60, 1514)), FrameStream((60, 1514), identifier=1)
    layout = BufferLayout(length=12 + 2048)  # an igb may write 2,048 bytes
    with (
        peer_socket() as peer,
        SharedMemory(64 * MIB, pages=PageKind.HUGETLB) as memory,
        LabBackend(tmp_path, f"xdp:{NIC},mode=zero-copy", ["--queue-pairs", str(PAIRS)]) as backend,
        FakeGuest(
            backend.socket,
            memory=memory,
            queue_pairs=PAIRS,
            queue_size=1024,
            receive_layout=layout,
            transmit_layout=layout,
            accept_empty=True,
            timeout=PATIENCE,
        ) as guest,
    ):
        for working in (1, 0):
            before = moved(backend)
            use(guest, backend, working)
            wait_for_carrier()
            for _ in range(10):
                for frame in stream.take(BURST):
                    peer.send(frame)
                assert guest.pairs[working].receive_stream(stream, BURST)[1:3] == (BURST, 0)
            guest.pairs[working].send_stream(leaving, BURST)
            for _ in range(BURST):
                leaving.accept(peer.recv(65536))
            before[working] += 10 * BURST if working == 1 else 0
            assert moved(backend) == before
            assert backend.guest()["port"]["mode"] == "zero-copy"
        counted = pair_counters(backend)
        assert counted[0]["rx"]["zero_copy_frames"] > 0, counted
        assert counted[1]["rx"]["drops"] == {}
