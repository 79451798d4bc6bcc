"""guestwire is killed and started anew under a guest at work: the guest goes on, and loses no buffer.

The newest QEMU and Linux, since those before know no in-order rings. GUESTWIRE_SOAK=1 restarts more often.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from backend.process import Backend, wait_until
from guests.attached import Attached, Place, booted
from guests.monitor import Monitor
from guests.networks import TapHost
from guestwire.testing import processes

pytestmark = [pytest.mark.root, pytest.mark.slow]

RESTARTS = 10 if os.environ.get("GUESTWIRE_SOAK") else 3
TRANSMIT = 1  # the number of the virtqueue
# Linux sends no more when fewer than MAX_SKB_FRAGS + 2 of 256 descriptors are free. What a driver never gets
# back it would miss here.
MOST_FRAMES = 256 - (17 + 2) + 1
DEVICES = {
    "in order": {"id": "ordered", "in_order": "on"},
    "in any order": {"id": "unordered", "in_order": "off"},
}
# Each of the streams may have some forty datagrams on their way: more together than a ring has room for.
LOAD = "-u --bidir -P 8 -l 1000 -b 5M -t 600"


class LastingTapHost(TapHost):
    """Its interface is there before guestwire, and stays when that is killed."""

    def __init__(self) -> None:
        super().__init__()
        with self.far.netlink() as netlink:
            netlink.link("add", ifname=self.interface, kind="tuntap", mode="tap")
        self.connect()


@pytest.fixture(scope="module")
def interfaces(
    newest: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Mapping[str, Attached]]:
    folder = tmp_path_factory.mktemp("restarts")
    places = {
        name: Place(f"tap:{TapHost.interface}", LastingTapHost, options, reconnect_ms=100)
        for name, options in DEVICES.items()
    }
    arguments = Monitor.arguments(folder / "monitor")
    with booted("qemu", places, folder, programs=["iperf3"], arguments=arguments, **newest) as interfaces:
        yield interfaces


@pytest.fixture
def monitor(interfaces: Mapping[str, Attached]) -> Iterator[Monitor]:
    backend = next(iter(interfaces.values())).backend
    with Monitor(backend.log.parents[1] / "monitor") as monitor:
        yield monitor


@contextlib.contextmanager
def load(interface: Attached, folder: Path) -> Iterator[None]:
    """Datagrams both ways, meanwhile."""
    network = interface.network
    server = processes.spawn(["iperf3", "-s"], folder / "iperf3.log", namespace=network.far.name)
    try:
        interface.guest.check(f"iperf3 -c {network.peer_address} {LOAD} >/dev/null 2>&1 & echo $! >/tmp/load")
        yield
        interface.guest.check("kill $(cat /tmp/load)")
    finally:
        processes.stop(server)


def restart(interface: Attached) -> float:
    """Kill guestwire at work and start it anew; return how long the guest has no network after that."""
    backend = interface.backend
    wait_for_traffic(backend)
    backend.process.kill()
    backend.process.wait()
    backend.start()
    begun = time.monotonic()
    interface.guest.wait_until(f"ping -c 1 -W 1 {interface.network.peer_address}")
    return time.monotonic() - begun


def wait_for_traffic(backend: Backend) -> None:
    """Wait until a good many frames go both ways: more than it takes to begin."""
    before = frames(backend)
    wait_until(lambda: all(now > then + 500 for now, then in zip(frames(backend), before, strict=True)), 30)


def frames(backend: Backend) -> tuple[int, int]:
    counters = backend.guest()["counters"]
    return counters["rx"]["frames"], counters["tx"]["frames"]


def fill_ring(interface: Attached, monitor: Monitor, device: str) -> None:
    """Wait until the guest has as many frames on their way as it can, since guestwire takes none."""
    process = interface.backend.process
    process.send_signal(signal.SIGSTOP)
    try:
        wait_until(lambda: monitor.outstanding(device, TRANSMIT) == MOST_FRAMES, 30)
    finally:
        process.send_signal(signal.SIGCONT)


@pytest.mark.parametrize("name", DEVICES)
def test_a_guest_outlives_guestwire(
    interfaces: Mapping[str, Attached], monitor: Monitor, name: str, tmp_path: Path
) -> None:
    interface, device = interfaces[name], DEVICES[name]["id"]
    # Else Linux has no more on its way than it believes useful.
    limits = f"/sys/class/net/{interface.name}/queues/tx-0/byte_queue_limits"
    interface.guest.check(f"[ ! -e {limits} ] || cat {limits}/limit_max >{limits}/limit_min")
    with interface.configured():
        interface.guest.wait_until(f"ping -c 1 -W 1 {interface.network.peer_address}")
        with load(interface, tmp_path):
            wait_for_traffic(interface.backend)
            fill_ring(interface, monitor, device)
            seconds = [restart(interface) for _ in range(RESTARTS)]
            print("the network was back after", *(f"{each:.2f}" for each in seconds), "s")
            wait_for_traffic(interface.backend)
            fill_ring(interface, monitor, device)
    assert re.findall("is not a head|soft lockup", interface.guest.console) == []
