"""Preferred busy polling on the xdp port: what the socket is told, and what is said if it has no effect."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
from collections.abc import Iterator

import pytest

from guestwire.datapath.counters import Counters
from guestwire.datapath.queue_pair import QueuePair
from guestwire.datapath.window import Window
from guestwire.errors import GuestwireError
from guestwire.host import busy_polling
from guestwire.host.busy_polling import SO_BUSY_POLL, SO_INCOMING_NAPI_ID, SO_PREFER_BUSY_POLL, borrowed
from guestwire.host.interface import Interface, InterruptDeferral
from guestwire.metrics import decode
from guestwire.ports.xdp import XdpControl
from guestwire.ports.xdp_options import XdpOptions
from guestwire.testing import Wire
from guestwire.testing.namespaces import Namespace
from guestwire.virtio.features import Feature
from unit.datapath.memory import BUFFERS, GUEST_BASE, SIZE, Ring

pytestmark = pytest.mark.root

RECEIVE = GUEST_BASE + 2 * BUFFERS
FRAME = bytes.fromhex("ffffffffffff020000000001") + b"\x88\xb5" + b"x" * 100
NO_SUCH_OPTION = 9999
BUSILY = XdpOptions(mode="direct", busy_poll=True, busy_poll_budget=256)


class Attached:
    """A guest on the near end of a wire."""

    def __init__(self, wire: Wire, options: XdpOptions) -> None:
        self.control = XdpControl(wire.interface, options)
        wire.near.call(lambda: self.control.open(1))
        self.memory = fd = os.memfd_create("guest")
        counter_fd = os.memfd_create("counters")
        os.ftruncate(fd, SIZE)
        frames = self.control.bounce_frames
        self.window = Window([(GUEST_BASE, 0x7F0000000000, SIZE, fd, 0)], bounce_frames=frames)
        self.rx = Ring(self.window, 0, receive=True)
        tx = Ring(self.window, 0x4000, receive=False)
        self.counters = Counters(counter_fd, 1)
        os.close(counter_fd)
        port = wire.near.call(lambda: self.control.attach(0, self.window, 64, Feature(0)))
        self.socket_fd = port.fd
        self.pair = QueuePair(self.window, port, self.rx.device, tx.device, counters=self.counters)
        self.pair.enable(rx=True, tx=True)
        wire.near.call(lambda: self.control.resume(0))

    def option(self, number: int) -> int:
        with borrowed(self.socket_fd) as sock:
            return sock.getsockopt(socket.SOL_SOCKET, number)

    def system_calls(self) -> int:
        return decode(self.counters.read())[0]["worker"]["system_calls"]

    def calls_in_vain(self) -> int:
        """System calls of ten passes that find nothing."""
        self.pair.step()
        before = self.system_calls()
        for _ in range(10):
            assert self.pair.step() == 0
        return self.system_calls() - before

    def receive(self, wire: Wire, count: int) -> None:
        """Have frames sent, and see that they arrive."""
        for i in range(count):
            self.rx.offer((RECEIVE + 4096 * i, 2048))
        while self.pair.step():
            pass
        with wire.far.call(lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW)) as peer:
            wire.far.call(lambda: peer.bind((wire.peer_interface, 0)))
            for _ in range(count):
                peer.send(FRAME)
        for _ in range(1_000_000):
            self.pair.step()
            if len(self.rx.used()) == count:
                break
        assert [length for _, length in self.rx.used()] == [12 + len(FRAME)] * count

    def close(self) -> None:
        self.control.quiesce(0)
        self.pair.finish()
        self.control.detach(0)
        self.pair.settle()
        self.control.close()
        self.window.close()
        os.close(self.memory)


@contextlib.contextmanager
def attached(wire: Wire, options: XdpOptions) -> Iterator[Attached]:
    with contextlib.closing(Attached(wire, options)) as one:
        yield one


def test_off_unless_asked_for(caplog: pytest.LogCaptureFixture) -> None:
    with Wire() as wire, attached(wire, XdpOptions(mode="direct")) as guest:
        assert guest.option(SO_PREFER_BUSY_POLL) == 0
        assert guest.option(SO_BUSY_POLL) == 0
        assert guest.calls_in_vain() == 0
    assert "busy-poll" not in caplog.text


def test_each_pass_in_vain_polls_the_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where the kernel knows the queue, which it does not on a veth."""
    monkeypatch.setattr("guestwire.ports.busy_polling.polls_queue", lambda _: True)
    with Wire() as wire, attached(wire, BUSILY) as guest:
        assert guest.option(SO_PREFER_BUSY_POLL) == 1
        assert guest.option(SO_BUSY_POLL) > 0
        assert guest.calls_in_vain() == 10
        guest.receive(wire, 8)
        assert guest.control.status().mode_reason is None


def test_without_effect_it_costs_nothing_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    with Wire() as wire, attached(wire, BUSILY) as guest:
        guest.receive(wire, 8)
        if guest.option(SO_INCOMING_NAPI_ID):
            pytest.skip("this kernel knows which queue a socket in copy mode polls (before 6.13)")
        assert guest.calls_in_vain() == 0
        assert "busy-poll=yes has no effect" in str(guest.control.status().mode_reason)
    assert "leave busy-poll out" in caplog.text


def test_an_unknown_option_is_refused_before_the_interface_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """As before Linux 5.11."""
    monkeypatch.setattr(busy_polling, "SO_PREFER_BUSY_POLL", NO_SUCH_OPTION)
    with Wire() as wire:
        control = XdpControl(wire.interface, BUSILY)
        with pytest.raises(GuestwireError, match="does not know preferred busy polling") as caught:
            wire.near.call(lambda: control.open(1))
        assert "5.11" in str(caught.value.remedy)
        assert not wire.near.call(lambda: Interface.open(wire.interface)).programs


REQUIRE = """
from guestwire.errors import GuestwireError
from guestwire.host import busy_polling
{before}
try:
    busy_polling.require_busy_polling({budget})
except GuestwireError as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("before", "budget", "refused"),
    [
        ("", 64, "(SO_PREFER_BUSY_POLL = 1) is not permitted: this process lacks CAP_NET_ADMIN"),
        # As if the others were permitted: the budget is what is left to be refused.
        (
            "busy_polling.SO_PREFER_BUSY_POLL = busy_polling.SO_BUSY_POLL = 2",  # SO_REUSEADDR
            1024,
            "(SO_BUSY_POLL_BUDGET = 1024) is not permitted: this process lacks CAP_NET_ADMIN",
        ),
    ],
)
def test_without_the_right(before: str, budget: int, refused: str) -> None:
    without = ["setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin", "--"]
    with Namespace("rights") as namespace:
        done = namespace.run([*without, sys.executable, "-c", REQUIRE.format(before=before, budget=budget)])
    assert refused in done.stdout, done.stdout + done.stderr


def test_a_budget_that_no_kernel_takes() -> None:
    with pytest.raises(GuestwireError, match="refuses SO_BUSY_POLL_BUDGET = 65536"):
        busy_polling.require_busy_polling(65536)


def test_deferral_is_seen() -> None:
    with Wire() as wire:
        found = wire.near.call(lambda: Interface.open(wire.interface)).deferral
    assert found in {None, InterruptDeferral(0, 0)}  # sysfs may show another network namespace
