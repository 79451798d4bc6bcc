"""The xdp port step by step, without a worker: guests whose buffers cannot all be posted."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator

import pytest

from guestwire.datapath.counters import Counters
from guestwire.datapath.queue_pair import QueuePair
from guestwire.datapath.window import Window
from guestwire.metrics import PairCounters, decode
from guestwire.ports.xdp import XdpControl
from guestwire.ports.xdp_options import XdpOptions
from guestwire.testing import Wire
from guestwire.virtio.features import Feature
from unit.datapath.memory import BUFFERS, GUEST_BASE, SIZE, Ring

pytestmark = pytest.mark.root

RECEIVE = GUEST_BASE + 2 * BUFFERS
FRAME = bytes.fromhex("ffffffffffff020000000001") + b"\x88\xb5" + b"x" * 100
LARGE, SMALL = 2048, 400


class Attached:
    """A mergeable guest on the near end of a wire in direct mode; `step` is its worker."""

    def __init__(self, wire: Wire) -> None:
        self.wire = wire
        self.control = XdpControl(wire.interface, XdpOptions(mode="direct"))
        wire.near.call(lambda: self.control.open(1))
        self.memory = fd = os.memfd_create("guest")
        os.ftruncate(fd, SIZE)
        frames = self.control.bounce_frames
        self.window = Window([(GUEST_BASE, 0x7F0000000000, SIZE, fd, 0)], bounce_frames=frames)
        self.rx = Ring(self.window, 0, receive=True)
        self.tx = Ring(self.window, 0x4000, receive=False)
        counter_fd = os.memfd_create("counters")
        self.counters = Counters(counter_fd, 1)
        os.close(counter_fd)
        self.port = wire.near.call(
            lambda: self.control.attach(0, self.window, 64, Feature.VIRTIO_NET_F_MRG_RXBUF)
        )
        self.pair = QueuePair(
            self.window,
            self.port,
            self.rx.device,
            self.tx.device,
            counters=self.counters,
            mergeable=True,
        )
        self.pair.enable(rx=True, tx=True)
        self.pair.post()
        wire.near.call(lambda: self.control.resume(0))
        self.peer = wire.far.call(self._peer)
        self._offered = 0

    def _peer(self) -> socket.socket:
        peer = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
        peer.bind((self.wire.peer_interface, 0))
        return peer

    def offer(self, length: int) -> int:
        self._offered += 1
        return self.rx.offer((RECEIVE + 4096 * self._offered, length))

    def step(self) -> None:
        while self.pair.step():
            pass

    def arrive(self, frames: int) -> None:
        """Let frames arrive: a veth pair delivers within the call that sends, on this processor."""
        for _ in range(frames):
            self.peer.send(FRAME)
        arrived = self.counted()["rx"]["frames"] + frames
        for _ in range(1_000_000):
            self.step()
            counted = self.counted()["rx"]
            if counted["frames"] + sum(counted["drops"].values()) >= arrived:
                return
        raise AssertionError("the frames did not arrive")

    def counted(self) -> PairCounters:
        return decode(self.counters.read())[0]

    def detach(self) -> None:
        self.control.quiesce(0)
        self.pair.finish()
        self.control.detach(0)
        self.pair.settle()

    def close(self) -> None:
        self.peer.close()
        self.control.close()
        self.window.close()
        os.close(self.memory)


@pytest.fixture
def attached() -> Iterator[Attached]:
    with Wire() as wire, contextlib.closing(Attached(wire)) as attached:
        yield attached


def test_chains_are_returned_in_their_order_whatever_their_size(attached: Attached) -> None:
    heads = [attached.offer(SMALL)]
    attached.step()
    attached.arrive(1)
    heads += [attached.offer(length) for length in (LARGE, SMALL, SMALL, LARGE, LARGE)]
    attached.step()
    attached.arrive(4)
    assert [head for head, _ in attached.rx.used()] == heads[:5]


def test_what_is_offered_again_is_what_was_not_returned(attached: Attached) -> None:
    heads = [attached.offer(SMALL)]
    attached.step()
    attached.arrive(1)
    heads += [attached.offer(length) for length in (LARGE, SMALL, SMALL)]
    attached.step()
    attached.arrive(1)
    attached.detach()
    returned = [head for head, _ in attached.rx.used()]
    again = heads[attached.rx.device.base :]
    assert returned + again == heads
    assert attached.rx.device.in_flight == len(again)


def test_old_spare_frames_do_not_cost_arrivals(attached: Attached) -> None:
    attached.offer(SMALL)
    attached.step()
    attached.arrive(1)
    for _ in range(40):
        attached.offer(LARGE)
    attached.step()
    attached.arrive(30)
    assert attached.counted()["rx"]["frames"] == 31
    assert attached.counted()["rx"]["drops"] == {}


def test_a_detached_port_holds_nothing(attached: Attached) -> None:
    for _ in range(20):
        attached.offer(LARGE)
    attached.step()
    attached.arrive(5)
    assert attached.rx.device.in_flight == 15
    attached.detach()
    assert attached.rx.device.base == 5
    assert attached.control.status().mode is None


def test_a_deleted_interface_is_noticed_and_the_buffers_come_back(attached: Attached) -> None:
    send = GUEST_BASE + BUFFERS
    attached.window.write(attached.window.translate_guest(send, 200), bytes(12) + FRAME.ljust(188, b"\0"))
    with attached.wire.far.netlink() as netlink:
        (index,) = netlink.link_lookup(ifname=attached.wire.peer_interface)
        netlink.link("del", index=index)
    attached.tx.offer((send, 12 + len(FRAME)))
    for _ in range(1_000_000):
        attached.pair.step()
        if attached.port.gone:
            break
    assert attached.port.gone
    attached.detach()
    assert attached.tx.used() == [(0, 0)]


def test_a_disabled_receive_ring_that_is_stopped_gets_no_frame(attached: Attached) -> None:
    """The kernel has buffers of it since it was enabled, in some of which frames have arrived."""
    for _ in range(20):
        attached.offer(LARGE)
    attached.step()
    attached.arrive(5)
    attached.pair.enable(rx=False, tx=True)
    attached.step()
    for _ in range(3):
        attached.peer.send(FRAME)
    attached.detach()
    returned = attached.rx.used()
    assert [head for head, _ in returned] == list(range(len(returned)))
    assert [length for _, length in returned[5:]] == [0] * (len(returned) - 5)
    assert attached.rx.device.base == len(returned)
    counted = attached.counted()["rx"]
    assert (counted["frames"], counted["direct_frames"]) == (5, 5)
    assert counted["drops"] == {"ring_disabled": 3}
