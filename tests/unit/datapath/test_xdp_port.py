"""The xdp port closed in the middle of things: every buffer is accounted for."""

from __future__ import annotations

import contextlib
import os
import random
import threading
from collections.abc import Callable, Iterator

import pytest

from backend.process import wait_until
from guestwire.testing.fake_xdp_socket import FakeXdpSocket, scatter_pages
from unit.datapath.working import working
from unit.datapath.xdp_machine import LARGE, MODES, Mode, XdpMachine, receive_address

Make = Callable[..., XdpMachine]
IN_PLACE: tuple[Mode, ...] = ("zero-copy", "direct")
HEADER = bytes(10) + b"\x01\x00"
# Which of ten posted buffers the kernel uses, and in which order, before the port is closed.
ARRIVALS = [(), (0, 1, 2), (9,), (3, 1), (1, 3, 5, 7, 9), (8, 0), tuple(reversed(range(10)))]


@pytest.fixture
def machine() -> Iterator[Make]:
    with contextlib.ExitStack() as made:

        def make(mode: Mode = "direct", **options: int) -> XdpMachine:
            return made.enter_context(contextlib.closing(XdpMachine(mode, **options)))  # type: ignore[arg-type]

        yield make


def frame(length: int) -> bytes:
    return random.Random(length).randbytes(length)


@pytest.mark.parametrize("mode", IN_PLACE)
@pytest.mark.parametrize("arrivals", ARRIVALS)
@pytest.mark.parametrize("polled", [True, False])
def test_what_was_posted_has_landed_or_is_returned_or_is_offered_again(
    machine: Make, mode: Mode, arrivals: tuple[int, ...], polled: bool
) -> None:
    guest = machine(mode)
    heads = [guest.offer_receive(number) for number in range(1, 11)]
    guest.run()
    assert guest.port.held == (10, 0, 0)
    addresses = guest.socket.take_fill()
    for i in arrivals:
        guest.socket.deliver(addresses[i], frame(100 + i))
    if polled:
        guest.run()
    guest.detach()
    used = guest.rx.used()
    landed = {head: length for head, length in used if length}
    assert landed == {heads[i]: 112 + i for i in arrivals}
    again = heads[guest.rx.device.base :]
    assert sorted([head for head, _ in used] + again) == sorted(heads)
    assert guest.rx.device.in_flight == len(again)
    assert guest.socket.fd == -1


@pytest.mark.parametrize("mode", MODES)
def test_the_next_attachment_goes_on_with_what_is_offered_again(machine: Make, mode: Mode) -> None:
    guest = machine(mode)
    for number in range(1, 11):
        guest.offer_receive(number)
    guest.run()
    guest.socket.deliver(guest.socket.take_fill(1)[0], frame(60))
    guest.detach()
    assert guest.rx.device.base == 1
    guest.reattach()
    guest.run()
    for i, address in enumerate(guest.socket.take_fill(9)):
        guest.socket.deliver(address, frame(100 + i))
    guest.run()
    assert guest.rx.used() == [(0, 72)] + [(1 + i, 112 + i) for i in range(9)]
    for i in range(9):
        assert guest.read(receive_address(2 + i), 112 + i) == HEADER + frame(100 + i)


@pytest.mark.parametrize("later", [(LARGE, 400, 400), (LARGE, LARGE, 400), (400, LARGE, LARGE, LARGE)])
@pytest.mark.parametrize("arrivals", range(4))
def test_small_buffers_among_large_ones_are_offered_again_exactly(
    machine: Make, later: tuple[int, ...], arrivals: int
) -> None:
    guest = machine("direct", mergeable=True)
    heads = [guest.offer_receive(1, 400)]
    guest.run()
    guest.socket.deliver(guest.socket.take_fill(1)[0], frame(60))
    heads += [guest.offer_receive(number, length) for number, length in enumerate(later, 2)]
    guest.run()
    for address in guest.socket.take_fill(arrivals):
        guest.socket.deliver(address, frame(60))
    guest.run()
    guest.detach()
    returned = [head for head, _ in guest.rx.used()]
    assert sorted(returned + heads[guest.rx.device.base :]) == heads
    assert len(heads) - guest.rx.device.base == guest.rx.device.in_flight


def test_a_posted_buffer_that_a_copy_overtook_comes_back_empty(machine: Make) -> None:
    guest = machine("direct", mergeable=True)
    guest.offer_receive(0, 400)
    for number in range(1, 4):
        guest.offer_receive(number)
    guest.run()
    assert guest.port.held == (0, 4, 0)
    guest.socket.deliver(guest.socket.take_fill(1)[0], frame(60))
    guest.run()
    guest.offer_receive(4)
    guest.run()
    # The buffer of head 1 is now the kernel's own, and three frames of ours are before it.
    assert guest.port.held == (1, 3, 0)
    guest.socket.deliver(guest.socket.take_fill(1)[0], frame(60))
    guest.run()
    assert guest.rx.used() == [(0, 72), (2, 72)]
    guest.detach()
    assert guest.rx.used() == [(0, 72), (2, 72), (1, 0)]
    assert guest.rx.device.base == 3
    assert guest.rx.device.in_flight == 2


@pytest.mark.parametrize("mode", MODES)
def test_frames_that_never_left_are_given_back_and_counted(machine: Make, mode: Mode) -> None:
    guest = machine(mode)
    heads = [guest.offer_frame(number, frame(60 + number)) for number in range(20)]
    guest.run()
    sent = guest.socket.take_frames(12)
    guest.socket.complete([one.addresses[0] for one in sent[3:8]])
    guest.detach()
    assert sorted(guest.tx.used()) == [(head, 0) for head in heads]
    assert guest.tx.device.base == 20
    assert guest.tx.device.in_flight == 0
    if mode != "bounce":
        assert guest.counted()["tx"]["drops"] == {"unsent": 15}


def test_frames_that_complete_while_the_work_ends_are_not_lost(machine: Make) -> None:
    guest = machine("zero-copy")
    for number in range(64):
        guest.offer_frame(number, frame(60))
    guest.run()
    end = threading.Thread(target=guest.pair.finish)
    end.start()
    guest.socket.complete([one.addresses[0] for one in guest.socket.take_frames()])
    end.join(10)
    assert not end.is_alive()
    assert sorted(guest.tx.used()) == [(head, 0) for head in range(64)]
    assert guest.counted()["tx"]["drops"] == {}


def test_a_sleeping_worker_is_woken_by_what_the_socket_has(machine: Make) -> None:
    guest = machine("direct")
    guest.offer_receive(1)
    guest.pair.post()
    with working(guest.pair):
        guest.socket.deliver(guest.socket.take_fill()[0], frame(60))
        wait_until(guest.rx.used)
    assert guest.rx.used() == [(0, 72)]


def test_spare_frames_of_a_reserve_do_not_hold_back_the_guests_buffers(machine: Make) -> None:
    guest = machine("zero-copy", reserve=40)
    guest.run()
    assert guest.port.held == (0, 40, 0)
    for number in range(60):
        guest.offer_receive(number)
    for address in guest.socket.take_fill(40):
        guest.socket.deliver(address, frame(60))
    guest.run()
    for address in guest.socket.take_fill(20):
        guest.socket.deliver(address, frame(80))
    guest.run()
    used = guest.rx.used()
    assert [length for _, length in used] == [72] * 40 + [92] * 20
    assert sorted(head for head, _ in used) == list(range(60))
    assert guest.counted()["rx"]["drops"] == {}


@pytest.mark.parametrize("mode", MODES)
def test_a_closed_port_holds_no_descriptor(machine: Make, mode: Mode) -> None:
    guest = machine(mode)
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    for _ in range(20):
        guest.offer_receive(1)
        guest.run()
        guest.detach()
        guest.reattach()
    assert len(os.listdir("/proc/self/fd")) <= before + 2  # noqa: PTH208


def test_the_stand_in_refuses_what_a_kernel_refuses(machine: Make) -> None:
    guest = machine("zero-copy")
    with pytest.raises(ValueError, match="outside the registered memory"):
        guest.socket.write(guest.window.size - 3, b"four")
    with pytest.raises(ValueError, match="completion ring"):
        guest.socket.complete([0] * (guest.socket_ring + 1))
    for _ in range(guest.socket_ring):
        guest.socket.describe(0, 60)
    with pytest.raises(ValueError, match="rx ring is full"):
        guest.socket.describe(0, 60)
    with pytest.raises(ValueError, match="power of two"):
        FakeXdpSocket(guest.window, ring_size=48)
    with pytest.raises(ValueError, match="whole pages"):
        scatter_pages(guest.window, 1000)
    guest.offer_receive(1, LARGE)
    guest.run()
    scatter_pages(guest.window, 4096)
    with pytest.raises(ValueError, match="does not see in one piece"):
        guest.socket.take_fill()
    guest.socket.close()
    with pytest.raises(ValueError, match="closed"):
        guest.socket.take_tx()


def test_sending_leaves_the_frames_that_the_nic_must_always_have(machine: Make) -> None:
    reserve = 96
    guest = machine(
        "zero-copy", size=256, socket_ring=512, bounce_frames=192, reserve=reserve, copy_headers=True
    )
    guest.run()
    assert guest.port.held[:2] == (0, reserve)
    for number in range(200):  # the link is paused: nothing that is sent completes
        guest.offer_frame(number, bytes(range(100)))
    guest.run()
    for number, address in enumerate(guest.socket.take_fill()):
        guest.offer_receive(number)
        guest.socket.deliver(address, bytes(60))
        guest.run()
        chains, spares, _ = guest.port.held
        assert chains + spares >= reserve


def test_a_buffer_that_never_comes_back_holds_up_no_other(machine: Make) -> None:
    guest = machine("direct", size=64, socket_ring=128)
    for number in range(64):
        guest.offer_receive(number)
    guest.run()
    waiting = guest.socket.take_fill()
    del waiting[0]
    for _ in range(500):
        guest.socket.deliver(waiting.pop(0), bytes(60))
        guest.run()
        head, _ = guest.rx.used()[-1]
        guest.rx.next_descriptor = head  # the lost one's is not free
        guest.offer_receive(head)
        guest.run()
        waiting += guest.socket.take_fill()
    assert guest.counted()["rx"]["frames"] == 500
    assert guest.port.held[0] == 64
    guest.detach()
    # The lost one is older than all that came back, so it is returned, empty; the others are offered again.
    assert guest.rx.used()[-64:].count((0, 0)) == 1  # one lap of the ring
    assert guest.rx.device.in_flight == 63
