"""The shortest proof: frames both ways between a raw socket and guest memory, and nobody copied them."""

from __future__ import annotations

import json
from pathlib import Path

from guestwire.testing import BufferLayout, FakeGuest, FrameStream, PageKind, SharedMemory
from lab.inside.commands import LabBackend
from lab.inside.peer import peer_socket, wait_for_carrier
from lab.machine import NIC

MIB = 1 << 20
BURST = 32
FRAMES = 20 * BURST


def test_the_doctor_finds_zero_copy(tmp_path: Path) -> None:
    answer = LabBackend(tmp_path, "null").run("doctor", NIC, "--json")
    assert answer.returncode == 0, answer.stdout
    checks = {check["name"]: check for check in json.loads(answer.stdout)["checks"]}
    assert checks["af-xdp-modes"]["status"] == "ok"
    assert checks["af-xdp-modes"]["found"].startswith("zero-copy")


def test_zero_copy_both_ways(tmp_path: Path) -> None:
    arriving, leaving = FrameStream((60, 1514)), FrameStream((60, 1514), identifier=1)
    layout = BufferLayout(length=12 + 2048)  # an igb may write 2,048 bytes
    with (
        peer_socket() as peer,
        SharedMemory(32 * MIB, pages=PageKind.HUGETLB) as memory,
        LabBackend(tmp_path, f"xdp:{NIC},mode=zero-copy") as backend,
        FakeGuest(
            backend.socket,
            memory=memory,
            queue_size=1024,
            receive_layout=layout,
            transmit_layout=layout,
            timeout=30,
        ) as guest,
    ):
        guest.frontend.get_features()  # requests are followed in order: the rings run now
        wait_for_carrier()
        for _ in range(FRAMES // BURST):
            for frame in arriving.take(BURST):
                peer.send(frame)
            assert guest.pair.receive_stream(arriving, BURST)[1:3] == (BURST, 0)
        for _ in range(FRAMES // BURST):
            guest.pair.send_stream(leaving, BURST)
            for _ in range(BURST):
                leaving.accept(peer.recv(65536))
        state = backend.guest()
        assert state["port"]["mode"] == "zero-copy"
        for direction in ("rx", "tx"):
            counted = state["counters"][direction]
            assert counted["frames"] == FRAMES, state
            assert counted["zero_copy_frames"] > 0, f"{state}\n{backend.text()}"
