"""A guest that changes its number of queues under traffic (``ethtool -L``): frames follow."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from backend.multiqueue import pair_counters
from backend.process import Backend, wait_until
from guests.networks import TapHost
from guestwire.errors import HostError
from guestwire.testing import images
from guestwire.testing.guests import QemuGuest, VhostUserDevice

pytestmark = [pytest.mark.root, pytest.mark.slow]

PAIRS = 4
FLOWS = 32
PORT = 9  # discard
PAUSE = 0.05


@contextlib.contextmanager
def many_flows(network: TapHost) -> Iterator[None]:
    """Send datagrams of many flows to the guest all the time."""

    def make() -> socket.socket:
        return socket.socket(socket.AF_INET, socket.SOCK_DGRAM)

    leaving = threading.Event()

    def send(flows: list[socket.socket]) -> None:
        while not leaving.wait(PAUSE):
            for flow in flows:
                # An answer of ICMP to the datagram before is an error of this one.
                with contextlib.suppress(ConnectionRefusedError):
                    flow.sendto(bytes(100), (network.guest_address, PORT))

    with contextlib.ExitStack() as stack:
        flows = [stack.enter_context(network.far.call(make)) for _ in range(FLOWS)]
        thread = threading.Thread(target=send, args=(flows,))
        thread.start()
        try:
            yield
        finally:
            leaving.set()
            thread.join()


def received(backend: Backend) -> list[int]:
    return [each["rx"]["frames"] for each in pair_counters(backend)]


def test_frames_follow_the_queues_that_a_guest_uses(tmp_path: Path) -> None:
    try:
        images.installed("ethtool")
    except HostError as error:
        pytest.skip(str(error))
    arguments = ["--queue-pairs", str(PAIRS), "--cpus", str(min(os.sched_getaffinity(0)))]
    with (
        TapHost() as network,
        Backend(tmp_path, f"tap:{network.interface}", arguments, namespace=network.near.name) as backend,
        QemuGuest(
            [VhostUserDevice(backend.socket, queue_pairs=PAIRS)], memory_mib=256, programs=["ethtool"]
        ) as guest,
    ):
        network.connect()
        guest.check(
            f"ip addr add {network.guest_address}/{network.prefix_length} dev eth0; ip link set eth0 up"
        )
        guest.wait_until(f"ping -c 1 -W 1 {network.peer_address}")
        with many_flows(network):
            for count in (PAIRS, 1, 3):
                guest.check(f"ethtool -L eth0 combined {count}")
                before = received(backend)

                def follow(count: int = count, before: list[int] = before) -> bool:
                    return all(
                        now > then for now, then in zip(received(backend)[:count], before, strict=False)
                    )

                wait_until(follow, 20)
                assert received(backend)[count:] == before[count:]
                guest.check(f"ping -c 1 -W 2 {network.peer_address}")
        sent = [each["tx"]["frames"] for each in pair_counters(backend)]
        assert sum(sent) > 0
        assert "VIRTIO_NET_F_MQ" in backend.guest()["features"]
        assert "ERROR" not in backend.text()
