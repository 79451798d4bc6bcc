"""Stand-ins of an xdp port: what arrives on other queues is copied, waits, or is dropped and counted."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator

import pytest

from guestwire.ports.stand_ins import share_out
from unit.datapath.xdp_machine import MODES, STAND_IN_FRAMES, Mode, XdpMachine

SIZE = 256
HELD = SIZE // 2 + 1


@contextlib.contextmanager
def machine(mode: Mode, *, stand_ins: int = 1, **options: int) -> Iterator[XdpMachine]:
    """A guest with a large ring on a port that has stand-ins."""
    made = XdpMachine(  # type: ignore[misc]
        mode, size=SIZE, socket_ring=512, bounce_frames=512, stand_ins=stand_ins, **options
    )
    with contextlib.closing(made):
        yield made


def offer(guest: XdpMachine, count: int) -> None:
    for number in range(1, count + 1):
        guest.offer_receive(number)
    guest.run()


def frame(number: int) -> bytes:
    return random.Random(number).randbytes(60 + number)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("offered", [1, 8, HELD, HELD + 63, HELD + 64])
def test_both_queues_have_buffers_however_many_the_guest_offers(mode: Mode, offered: int) -> None:
    """The last to be offered would be lost first: so one frame on each queue says enough."""
    for first in (0, 1):
        with machine(mode) as guest:
            offer(guest, offered)
            (other,) = guest.others
            sockets = [guest.socket, other]
            socket = sockets[first]
            address = socket.take_fill(1)[0]
            socket.deliver(address, frame(7))
            guest.run()
            ((_, length),) = guest.rx.used()
            assert length == 12 + len(frame(7))
            counted = guest.counted()["rx"]
            assert (counted["frames"], counted["drops"]) == (1, {})
            assert counted["copied_frames"].get("other_queue", 0) == first


@pytest.mark.parametrize("mode", MODES)
def test_what_is_kept_is_not_posted(mode: Mode) -> None:
    with machine(mode) as guest:
        offer(guest, SIZE - 1)
        chains, spares, _ = guest.port.held
        assert chains == (0 if mode == "bounce" else SIZE - 1 - HELD)
        assert (spares > 0) == (mode == "bounce")


def test_frames_go_round_and_wait_for_buffers() -> None:
    with machine("direct", stand_ins=2) as guest:
        for socket in guest.others:
            addresses = socket.take_fill()
            assert len(set(addresses)) == STAND_IN_FRAMES
            for number, address in enumerate(addresses):
                socket.deliver(address, frame(number))
        guest.run()
        assert guest.rx.used() == []
        offer(guest, STAND_IN_FRAMES + 5)
        assert len(guest.rx.used()) == STAND_IN_FRAMES + 5
        # Each had its turn, and the kernel has the frames back.
        free = [len(socket.take_fill()) for socket in guest.others]
        assert sum(free) == STAND_IN_FRAMES + 5
        assert min(free) >= 5
        guest.detach()
        assert guest.counted()["rx"]["drops"] == {"no_buffers": STAND_IN_FRAMES - 5}
        assert [socket.fd for socket in guest.others] == [-1, -1]


def test_a_long_frame_over_several_bounce_frames() -> None:
    with machine("bounce", mtu=9000, mergeable=True) as guest:
        (other,) = guest.others
        first, second = other.take_fill(2)
        other.deliver(first, bytes(3000), continued=True)
        offer(guest, 3)
        assert guest.rx.used() == []
        other.deliver(second, bytes(1001))
        guest.run()
        assert sum(length for _, length in guest.rx.used()) == 12 + 4001
        assert guest.counted()["rx"]["copied_frames"] == {"other_queue": 1}
        assert len(other.take_fill()) == STAND_IN_FRAMES


def test_a_kernel_that_names_other_places_is_not_believed() -> None:
    with machine("direct") as guest:
        (other,) = guest.others
        offer(guest, 4)
        addresses = other.take_fill()
        own_share = addresses[0] - 4096
        behind = addresses[-1] + 4096
        for address, length, shift in (
            (own_share, 60, 256),
            (behind, 60, 256),
            (addresses[0] + 8, 60, 256),
            (addresses[0], 4096, 256),
            (addresses[1], 0xFFFFFFFF, 256),
            (addresses[2], 60, 0xFFFF),
        ):
            other.describe(address, length, offset=shift)
        guest.run()
        assert guest.rx.used() == []
        assert guest.counted()["rx"]["drops"] == {"unexpected_place": 6}
        assert other.take_fill() == addresses[:3]


def test_queues_are_shared_out_evenly() -> None:
    assert share_out(2, {0}) == {0: (1,)}
    assert share_out(2, {0, 1}) == {0: (), 1: ()}
    assert share_out(8, [5, 1]) == {1: (0, 3, 6), 5: (2, 4, 7)}
    assert share_out(4, ()) == {}
