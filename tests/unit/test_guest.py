"""A guest's device: what it does when its port, its memory or the machine refuses."""

from __future__ import annotations

import os
import resource
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import guestwire.worker
from guestwire.config import GuestConfig
from guestwire.datapath.window import Window
from guestwire.datapath.worker import WorkLoop
from guestwire.errors import FrontendError, HostError
from guestwire.guest import Guest
from guestwire.offer import default_mac
from guestwire.ports.simple import SimplePort
from guestwire.testing import Region as SharedRegion
from guestwire.testing import SharedMemory
from guestwire.vhost_user.constants import ConfigFlag
from guestwire.vhost_user.descriptor import FileDescriptor
from guestwire.vhost_user.device import RingConfiguration
from guestwire.vhost_user.memory import MemoryRegion
from guestwire.virtio.features import Feature

MIB = 1 << 20


class FickleEcho(SimplePort):
    """An echo port that refuses to attach while `refuses` is set."""

    def __init__(self) -> None:
        super().__init__("echo")
        self.refuses = False
        self.attached: set[int] = set()

    def attach(self, pair: int, window: Window, queue_size: int, features: Feature) -> object:
        if self.refuses:
            raise HostError("not now")
        self.attached.add(pair)
        return super().attach(pair, window, queue_size, features)

    def detach(self, pair: int) -> None:
        self.attached.discard(pair)


@pytest.fixture
def port() -> FickleEcho:
    return FickleEcho()


@pytest.fixture
def memory() -> Iterator[SharedMemory]:
    with SharedMemory(2 * MIB, 2 * MIB) as made:
        yield made


@pytest.fixture
def guest(port: FickleEcho, memory: SharedMemory, tmp_path: Path) -> Iterator[Guest]:
    made = Guest(GuestConfig(port="echo", name="vm1"), port, tmp_path / "vm1.counters")
    made.open()
    made.set_features(Feature.VIRTIO_F_VERSION_1)
    yield made
    for index in list(made.rings):
        made.stop_ring(index)
    made.set_memory(())
    made.close()
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def kick() -> Iterator[Callable[[], int]]:
    """Makes descriptors that kick."""
    fds: list[int] = []

    def make() -> int:
        fds.append(os.eventfd(0, os.EFD_NONBLOCK))
        return fds[-1]

    yield make
    for fd in fds:
        os.close(fd)


def borrowed(region: SharedRegion) -> MemoryRegion:
    return MemoryRegion(
        region.guest_address, region.size, region.user_address, region.mmap_offset, FileDescriptor(region.fd)
    )


def ring(memory: SharedMemory, kick: int, *, enabled: bool = True) -> RingConfiguration:
    start = memory.allocate(16384, 4096).user_address
    return RingConfiguration(
        size=16,
        descriptor_address=start,
        available_address=start + 4096,
        used_address=start + 8192,
        log_address=None,
        base=0,
        kick_fd=kick,
        call_fd=None,
        error_fd=None,
        enabled=enabled,
    )


def test_it_runs_while_both_rings_do(
    guest: Guest, port: FickleEcho, memory: SharedMemory, kick: Callable[[], int]
) -> None:
    guest.set_memory([borrowed(memory.regions[0])])
    guest.start_ring(0, ring(memory, kick()))
    assert port.attached == set()
    guest.start_ring(1, ring(memory, kick()))
    assert (port.attached, guest.state) == ({0}, "running")
    guest.enable_ring(0, False)
    assert port.attached == {0}
    guest.enable_ring(1, False)
    assert port.attached == set()
    guest.enable_ring(0, True)
    assert port.attached == {0}
    assert guest.stop_ring(1) == 0
    assert port.attached == set()
    assert guest.stop_ring(0) == 0
    assert guest.state == "connected"


@pytest.mark.parametrize(("asked", "used"), [(None, 0), (7, 7), (0, 0)])
def test_a_port_says_how_long_to_poll_unless_the_user_does(
    port: FickleEcho,
    memory: SharedMemory,
    kick: Callable[[], int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    asked: int | None,
    used: int,
) -> None:
    told = []

    class Spy(WorkLoop):
        def __init__(self, *, poll_us: int) -> None:
            told.append(poll_us)
            super().__init__(poll_us=poll_us)

    monkeypatch.setattr(guestwire.worker, "WorkLoop", Spy)
    port.poll_us = 0
    guest = Guest(GuestConfig(port="echo", name="vm1", poll_us=asked), port, tmp_path / "vm1.counters")
    guest.open()
    guest.set_features(Feature.VIRTIO_F_VERSION_1)
    guest.set_memory([borrowed(memory.regions[0])])
    for index in (0, 1):
        guest.start_ring(index, ring(memory, kick()))
    assert told == [used]
    for index in (0, 1):
        guest.stop_ring(index)
    guest.set_memory(())
    guest.close()


def test_a_port_that_refuses_leaves_a_ring_as_it_was(
    guest: Guest, port: FickleEcho, memory: SharedMemory, kick: Callable[[], int]
) -> None:
    guest.set_memory([borrowed(memory.regions[0])])
    guest.start_ring(0, ring(memory, kick()))
    port.refuses = True
    configuration = ring(memory, kick())
    with pytest.raises(HostError, match="not now"):
        guest.start_ring(1, configuration)
    assert list(guest.rings) == [0]
    guest.enable_ring(0, False)
    guest.start_ring(1, ring(memory, kick(), enabled=False))
    with pytest.raises(HostError, match="not now"):
        guest.enable_ring(1, True)
    assert not guest.rings[1].enabled
    port.refuses = False
    guest.enable_ring(1, True)
    assert port.attached == {0}


@pytest.mark.parametrize("step", ["prepare", "attach"])
def test_a_port_that_cannot_cover_for_idle_pairs(
    guest: Guest,
    port: FickleEcho,
    memory: SharedMemory,
    kick: Callable[[], int],
    monkeypatch: pytest.MonkeyPatch,
    step: str,
) -> None:
    """A refusal beforehand changes nothing; afterwards the guest has no port."""
    guest.set_memory([borrowed(memory.regions[0])])
    for index in (0, 1):
        guest.start_ring(index, ring(memory, kick()))
    forgotten = []

    def refuse(*_: object) -> None:
        raise HostError("not now")

    monkeypatch.setattr(port, "cover", list)
    monkeypatch.setattr(port, step, refuse)
    monkeypatch.setattr(port, "forget", lambda: forgotten.append(step))
    if step == "prepare":
        with pytest.raises(HostError, match="not now"):
            guest.spread()
        assert (port.attached, guest.lost) == ({0}, None)
    else:
        guest.spread()
        assert guest.lost == "port echo: not now"
    assert forgotten  # what was prepared is unpinned


def test_a_port_that_refuses_new_memory_goes_on_with_the_old(
    guest: Guest, port: FickleEcho, memory: SharedMemory, kick: Callable[[], int]
) -> None:
    first, second = (borrowed(region) for region in memory.regions)
    guest.set_memory([first])
    guest.start_ring(0, ring(memory, kick()))
    guest.start_ring(1, ring(memory, kick()))
    window = guest.window
    attach = port.attach

    def refuse_once(pair: int, window: Window, queue_size: int, features: Feature) -> object:
        port.attach = attach  # type: ignore[method-assign]
        raise HostError("too much memory")

    port.attach = refuse_once  # type: ignore[method-assign]
    with pytest.raises(HostError, match="too much memory"):
        guest.set_memory([first, second])
    assert guest.window is window
    assert port.attached == {0}
    guest.set_memory([first, second])
    assert guest.window is not window
    assert guest.window is not None
    assert guest.window.guest_bytes == 4 * MIB


def test_a_kick_that_nobody_can_wait_for(guest: Guest, memory: SharedMemory) -> None:
    guest.set_memory([borrowed(memory.regions[0])])
    with pytest.raises(FrontendError, match="ring 0: its kick cannot be waited for"):
        guest.start_ring(0, ring(memory, memory.regions[1].fd))
    assert guest.rings == {}


def test_a_machine_without_descriptors(guest: Guest, memory: SharedMemory, kick: Callable[[], int]) -> None:
    guest.set_memory([borrowed(memory.regions[0])])
    configuration = ring(memory, kick())
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))
    try:
        with pytest.raises(HostError, match="cannot start ring 0: Too many open files") as caught:
            guest.start_ring(0, configuration)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert "ulimit -n" in str(caught.value.remedy)
    assert guest.rings == {}
    guest.start_ring(0, configuration)


def test_a_counter_file_that_cannot_be(tmp_path: Path) -> None:
    guest = Guest(GuestConfig(port="echo", name="vm1"), SimplePort("echo"), tmp_path / "no" / "vm1.counters")
    with pytest.raises(HostError, match="cannot make the counter file"):
        guest.open()
    guest.close()
    guest.close()


def test_more_queue_pairs_than_the_port_has(tmp_path: Path) -> None:
    port = SimplePort("echo")
    port.max_queue_pairs = 1
    guest = Guest(GuestConfig(port="echo", name="vm1", queue_pairs=2), port, tmp_path / "vm1.counters")
    with pytest.raises(HostError, match="port echo serves 1 queue pairs, not 2") as caught:
        guest.open()
    assert caught.value.remedy == "use queue_pairs = 1"
    assert list(tmp_path.iterdir()) == []


def test_its_address(guest: Guest) -> None:
    mac = default_mac("vm1")
    assert mac == default_mac("vm1") != default_mac("vm2")
    assert mac[0] & 3 == 2  # locally administered, not a group's
    assert guest.read_config(0, 6) == mac
    guest.write_config(0, mac, ConfigFlag.LIVE_MIGRATION)
    with pytest.raises(FrontendError, match="bytes 0 to 5 differ"):
        guest.write_config(0, bytes(6), ConfigFlag.LIVE_MIGRATION)


def test_an_mtu_that_the_port_cannot_carry(guest: Guest, port: FickleEcho) -> None:
    guest.set_mtu(1500)
    port.mtu = 1499
    with pytest.raises(HostError, match="promised an MTU of 1500, port echo carries 1499") as caught:
        guest.set_mtu(1500)
    assert "host_mtu=1499" in str(caught.value.remedy)
