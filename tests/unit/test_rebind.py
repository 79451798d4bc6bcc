"""Binding a guest to another port: what becomes of it when a port, old or new, refuses."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from guestwire.config import GuestConfig
from guestwire.datapath.window import Window
from guestwire.errors import GuestwireError, HostError
from guestwire.guest import Guest
from guestwire.ports.base import Port, PortStatus
from guestwire.ports.simple import SimplePort
from guestwire.rebind import rebind
from guestwire.testing import SharedMemory
from guestwire.vhost_user.descriptor import FileDescriptor
from guestwire.vhost_user.device import RingConfiguration
from guestwire.vhost_user.memory import MemoryRegion
from guestwire.virtio.features import Feature
from guestwire.virtio.net_config import NetConfig, NetStatus

MIB = 1 << 20
MAC = bytes.fromhex("020000000099")


class Interface:
    """What two ports may share: it is as one of them has configured it, or as nobody has."""

    def __init__(self, index: int) -> None:
        self.index = index
        self.holder: FakePort | None = None


class FakePort(SimplePort):
    """An echo port that has an interface, and refuses what it is told to refuse."""

    def __init__(
        self, interface: Interface | None = None, *, mtu: int = 1500, bounce_frames: int = 0
    ) -> None:
        super().__init__("echo")
        self.interface, self.mtu, self.bounce_frames = interface, mtu, bounce_frames
        self.refuses: set[str] = set()
        self.attached: dict[int, Window] = {}
        self.announced: list[bytes] = []
        self.next_mtu = mtu
        self.opened = False
        self.left: list[object] = []
        self.link_up = True
        self.gone = False

    @property
    def interface_index(self) -> int | None:
        return self.interface.index if self.interface else None

    def _may(self, step: str) -> None:
        if step in self.refuses:
            raise HostError(f"no {step} today", "come back tomorrow")

    def open(self, queue_pairs: int, leaving: Port | None = None) -> None:
        self._may("open")
        self.left.append(leaving)
        self.opened = True

    def configure(self, leaving: Port | None = None) -> None:
        assert self.opened
        assert not isinstance(leaving, FakePort) or leaving.attached == {}
        self._may("configure")
        if self.interface:
            self.interface.holder = self

    def prepare(self, pair: int, window: Window, queue_size: int, features: Feature) -> None:
        self._may("prepare")

    def attach(self, pair: int, window: Window, queue_size: int, features: Feature) -> object:
        assert self.opened
        assert self.interface is None or self.interface.holder is self
        self._may("attach")
        self.attached[pair] = window
        return super().attach(pair, window, queue_size, features)

    def detach(self, pair: int) -> None:
        self.attached.pop(pair, None)

    def refresh(self) -> bool:
        changed, self.mtu = self.next_mtu != self.mtu, self.next_mtu
        return changed

    def announce(self, mac: bytes) -> None:
        self._may("announce")
        self.announced.append(mac)

    def status(self) -> PortStatus:
        return PortStatus("echo", "eth1")

    def close(self) -> None:
        assert self.attached == {}
        self.opened = False
        if self.interface and self.interface.holder is self:
            self.interface.holder = None


class World:
    """A guest at work on a port, and who has been told of what."""

    def __init__(self, guest: Guest, port: FakePort) -> None:
        self.guest, self.port = guest, port
        self.told: list[NetConfig] = []
        guest.config_changed = lambda: self.told.append(guest.net_config)

    def links(self) -> list[bool]:
        """Whether the link was up, each time that the guest was told something."""
        return [NetStatus.LINK_UP in config.status for config in self.told]

    def is_as_it_was(self) -> bool:
        return (
            self.guest.port is self.port
            and self.guest.config.port == "first"
            and list(self.port.attached) == [0]
            and self.guest.state == "running"
            and NetStatus.LINK_UP in self.guest.net_config.status
        )


@pytest.fixture
def memory() -> Iterator[SharedMemory]:
    with SharedMemory(2 * MIB) as made:
        yield made


@pytest.fixture
def interface() -> Interface:
    return Interface(1)


@pytest.fixture
def kick() -> Iterator[Callable[[], int]]:
    fds: list[int] = []

    def make() -> int:
        fds.append(os.eventfd(0, os.EFD_NONBLOCK))
        return fds[-1]

    yield make
    for fd in fds:
        os.close(fd)


def ring(memory: SharedMemory, kick: int) -> RingConfiguration:
    start = memory.allocate(16384, 4096).user_address
    return RingConfiguration(16, start, start + 4096, start + 8192, None, 0, kick, None, None, True)


@pytest.fixture
def world(
    interface: Interface, memory: SharedMemory, kick: Callable[[], int], tmp_path: Path
) -> Iterator[World]:
    port = FakePort(interface)
    config = GuestConfig(port="first", name="vm1", mac=MAC.hex(":"))
    guest = Guest(config, port, tmp_path / "vm1.counters")
    guest.open()
    guest.set_features(Feature.VIRTIO_F_VERSION_1 | Feature.VIRTIO_NET_F_MTU)
    region = memory.regions[0]
    borrowed = MemoryRegion(
        region.guest_address, region.size, region.user_address, region.mmap_offset, FileDescriptor(region.fd)
    )
    guest.set_memory([borrowed])
    for index in range(2):
        guest.start_ring(index, ring(memory, kick()))
    yield World(guest, port)
    for index in list(guest.rings):
        assert guest.stop_ring(index) == 0
    guest.set_memory(())
    guest.close()
    assert list(tmp_path.iterdir()) == []


def test_a_guest_goes_over(world: World) -> None:
    port = FakePort(Interface(2))
    assert 0 <= rebind(world.guest, "second", port) < 1000
    assert (world.guest.port, world.guest.config.port) == (port, "second")
    assert list(port.attached) == [0]
    assert not world.port.opened
    assert world.links() == [False, True]
    assert port.announced == [MAC]
    assert world.guest.state == "running"


def test_a_guest_that_does_not_run_goes_over(tmp_path: Path) -> None:
    first, second = FakePort(), FakePort()
    guest = Guest(GuestConfig(port="first", name="vm1"), first, tmp_path / "vm1.counters")
    guest.open()
    rebind(guest, "second", second)
    assert guest.port is second
    assert second.opened
    assert not first.opened
    assert second.announced == []  # a made-up address need not be the guest's
    guest.close()
    assert not second.opened


def test_the_interface_that_both_need_is_shared(world: World, interface: Interface) -> None:
    port = FakePort(interface)
    rebind(world.guest, "first,mode=bounce", port)
    assert port.left == [world.port]
    assert interface.holder is port
    assert list(port.attached) == [0]
    assert world.links() == [False, True]


def test_other_bounce_frames_need_another_window(world: World) -> None:
    before = world.guest.window
    rebind(world.guest, "second", FakePort(bounce_frames=4))
    assert world.guest.window is not before
    assert world.guest.window is not None
    assert world.guest.window.guest_bytes == 2 * MIB


@pytest.mark.parametrize("step", ["open", "prepare", "configure", "attach"])
@pytest.mark.parametrize("bounce_frames", [0, 4])
def test_a_new_port_that_refuses(world: World, step: str, bounce_frames: int) -> None:
    port = FakePort(Interface(2), bounce_frames=bounce_frames)
    port.refuses = {step}
    window = world.guest.window
    with pytest.raises(HostError, match=f"no {step} today"):
        rebind(world.guest, "second", port)
    assert world.is_as_it_was()
    assert not port.opened
    assert world.guest.window is window
    assert world.links() == ([] if step in {"open", "prepare"} else [False, True])


@pytest.mark.parametrize("step", ["open", "prepare", "configure", "attach"])
def test_a_new_port_on_the_same_interface_that_refuses(world: World, interface: Interface, step: str) -> None:
    port = FakePort(interface)
    port.refuses = {step}
    with pytest.raises(HostError, match=f"no {step} today"):
        rebind(world.guest, "second", port)
    assert world.is_as_it_was()
    assert interface.holder is world.port


def test_a_port_that_carries_less(world: World) -> None:
    port = FakePort(mtu=1499)
    with pytest.raises(HostError, match="an MTU of 1500, port second carries 1499") as caught:
        rebind(world.guest, "second", port)
    assert caught.value.remedy == "ip link set dev eth1 mtu 1500"
    assert world.is_as_it_was()
    assert world.links() == []  # nothing was tried
    assert not port.opened


def test_what_the_frontend_has_promised_counts(world: World) -> None:
    world.guest.set_mtu(1400)
    rebind(world.guest, "second", FakePort(mtu=1400))
    assert world.guest.net_config.mtu == 1500  # "The device MUST NOT modify mtu once it has been set"


def test_a_port_with_too_few_queue_pairs(world: World) -> None:
    port = FakePort()
    port.max_queue_pairs = 0
    with pytest.raises(HostError, match="port second serves 0 queue pairs, not 1"):
        rebind(world.guest, "second", port)
    assert world.is_as_it_was()


def test_a_feature_that_the_new_port_lacks(world: World) -> None:
    world.guest.pairs.features |= Feature.VIRTIO_NET_F_CSUM
    port = FakePort()
    port.offloads = Feature(0)
    with pytest.raises(HostError, match="vm1 uses VIRTIO_NET_F_CSUM, port second cannot offer that"):
        rebind(world.guest, "second", port)
    assert world.is_as_it_was()


def test_no_way_back(world: World) -> None:
    port = FakePort(Interface(2))
    port.refuses, world.port.refuses = {"attach"}, {"attach"}
    with pytest.raises(HostError, match="no attach today"):
        rebind(world.guest, "second", port)
    assert world.guest.state == (
        "failed: no attach today; nor can it go back to port first: no attach today; "
        "guestwire rebind vm1 PORT"
    )
    assert world.links() == [False]
    assert world.port.attached == port.attached == {}
    # It lives on, and another port is as good as ever.
    third = FakePort(Interface(3))
    rebind(world.guest, "third", third)
    assert list(third.attached) == [0]
    assert world.guest.state == "running"
    assert world.links() == [False, True]


def test_no_way_back_to_an_interface(world: World, interface: Interface) -> None:
    port = FakePort(interface)
    port.refuses = {"configure"}
    world.port.refuses = {"configure"}
    with pytest.raises(HostError, match="no configure today"):
        rebind(world.guest, "second", port)
    assert "nor can it go back to port first: no configure today" in world.guest.state
    again = FakePort(interface)
    rebind(world.guest, "first", again)
    assert list(again.attached) == [0]
    assert world.guest.state == "running"


def test_one_at_a_time(world: World) -> None:
    class Slow(FakePort):
        def open(self, queue_pairs: int, leaving: Port | None = None) -> None:
            with pytest.raises(HostError, match="vm1 is just being bound to another port"):
                rebind(world.guest, "third", FakePort())
            super().open(queue_pairs, leaving)

    port = Slow()
    rebind(world.guest, "second", port)
    assert world.guest.port is port


def test_a_guest_that_is_served_no_more(tmp_path: Path) -> None:
    guest = Guest(GuestConfig(port="first", name="vm1"), FakePort(), tmp_path / "vm1.counters")
    guest.open()
    guest.close()
    guest.state = "failed: it was too late"
    port = FakePort()
    with pytest.raises(GuestwireError, match="vm1 is not served: failed: it was too late"):
        rebind(guest, "second", port)
    assert not port.opened


def test_an_announcement_that_fails_is_a_warning(world: World, caplog: pytest.LogCaptureFixture) -> None:
    port = FakePort()
    port.refuses = {"announce"}
    rebind(world.guest, "second", port)
    assert "no announce today; come back tomorrow" in caplog.text
    assert world.guest.port is port


# --- events of the interface ---------------------------------------------------------------------------


def test_the_guest_is_told_of_its_link(world: World, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    for up in (True, False, False, True):
        world.port.link_up = up
        world.guest.follow_port()
    assert world.links() == [False, True]
    assert world.guest.read_config(6, 2) == b"\1\0"
    assert caplog.text.count("the link is down") == caplog.text.count("the link is up") == 1


def test_an_mtu_that_shrinks(world: World, caplog: pytest.LogCaptureFixture) -> None:
    world.port.next_mtu = 1400
    world.guest.follow_port()
    assert "longer ones than for 1400 are dropped (too_long); ip link set dev eth1 mtu 1500" in caplog.text
    assert list(world.port.attached) == [0]
    assert world.guest.net_config.mtu == 1500
    for index in (0, 1):
        world.guest.stop_ring(index)
    world.guest.reset()
    assert world.guest.net_config.mtu == 1400  # the next driver is told
    assert world.told[-1].mtu == 1400


def test_an_mtu_that_grows_is_no_trouble(world: World, caplog: pytest.LogCaptureFixture) -> None:
    world.port.next_mtu = 3000
    world.guest.follow_port()
    assert "dropped" not in caplog.text
    assert list(world.port.attached) == [0]
    assert world.told == []


def test_a_port_that_cannot_go_on_with_another_mtu(world: World) -> None:
    world.port.next_mtu = 1400
    world.port.refuses = {"attach"}
    world.guest.follow_port()
    assert world.guest.state == "failed: port first: no attach today; guestwire rebind vm1 PORT"
    assert world.links() == [False]


def test_an_interface_that_goes(world: World, caplog: pytest.LogCaptureFixture) -> None:
    world.port.gone = True
    world.guest.follow_port()
    assert world.guest.state == "failed: the interface of port first is gone; guestwire rebind vm1 PORT"
    assert world.port.attached == {}
    assert world.links() == [False]
    world.guest.follow_port()
    assert caplog.text.count("is gone; guestwire rebind vm1 PORT") == 1
    # The guest's rings may stop and start all the same.
    world.guest.enable_ring(0, False)
    world.guest.enable_ring(0, True)
    back = FakePort(Interface(9))
    rebind(world.guest, "first", back)
    assert list(back.attached) == [0]
    assert world.guest.state == "running"
    assert world.links() == [False, True]
