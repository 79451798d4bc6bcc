"""Two of DPDK's virtio-user drivers on a wire: no frame is lost between them."""

from __future__ import annotations

from pathlib import Path

import pytest

from backend.house import status
from backend.process import Backend, wait_until
from peers import testpmd
from peers.testpmd import Testpmd

QUEUE_SIZE = 256
CIRCULATING_BURSTS = 4  # of 32 frames, from each: half of a ring, so that there is always room
COUNT = {64: 300_000, 1500: 100_000}
CONFIGURATION = """
[[guest]]
name = "one"
socket_path = "{folder}/one.sock"
port = "wire:lan,wait_us=1000000"

[[guest]]
name = "other"
socket_path = "{folder}/other.sock"
port = "wire:lan,wait_us=1000000"
"""


@pytest.fixture(autouse=True)
def _needs_testpmd() -> None:
    testpmd.require()


@pytest.mark.parametrize("mergeable", [True, False], ids=["mergeable", "not mergeable"])
def test_every_frame_arrives(tmp_path: Path, mergeable: bool) -> None:
    file = tmp_path / "guests.toml"
    file.write_text(CONFIGURATION.format(folder=tmp_path))
    sockets = [tmp_path / "one.sock", tmp_path / "other.sock"]
    drivers = [
        f"net_virtio_user{number},path={socket},mac=52:54:00:00:00:0{number},queues=1,"
        f"queue_size={QUEUE_SIZE},mrg_rxbuf={mergeable:d},in_order=0,packed_vq=0"
        for number, socket in enumerate(sockets)
    ]
    with (
        Backend(tmp_path, arguments=[str(file)], sockets=sockets) as backend,
        Testpmd(*drivers, arguments=[f"--rxd={QUEUE_SIZE}", f"--txd={QUEUE_SIZE}", "--no-flush-rx"]) as pmd,
    ):
        for number in range(2):
            pmd.command(f"set eth-peer {number} 52:54:00:00:00:0{1 - number}")
        for size, count in COUNT.items():
            before = pmd.stats()["RX-packets"]
            pmd.command(f"set txpkts {size}")
            # What one port receives the other one sends.
            pmd.forward("io", first=CIRCULATING_BURSTS)
            wait_until(lambda: pmd.stats()["RX-packets"] >= before + count, 60)  # noqa: B023
            pmd.forward("rxonly")
            wait_until(lambda: pmd.stats(0)["TX-packets"] == pmd.stats(1)["RX-packets"])
            wait_until(lambda: pmd.stats(1)["TX-packets"] == pmd.stats(0)["RX-packets"])
        one, other = (status(backend)[name].counters for name in ("one", "other"))
        for sender, receiver in ((one, other), (other, one)):
            assert (sender.tx.frames, sender.tx.bytes) == (receiver.rx.frames, receiver.rx.bytes)
            assert sender.tx.drops == receiver.rx.drops == {}
        assert one.rx.frames >= sum(COUNT.values())
