"""The testing packet socket on a veth pair: what it sends and what it notices."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from guestwire.errors import HostError
from guestwire.testing import FrameStream, PacketSocket, VerificationError, Wire
from guestwire.testing.frame_stream import ETHERTYPE

pytestmark = pytest.mark.root

LENGTHS = (60, 1514)


@dataclass
class Ends:
    wire: Wire
    near: PacketSocket
    far: PacketSocket
    raw: socket.socket


@pytest.fixture
def ends() -> Iterator[Ends]:
    with (
        Wire() as wire,
        wire.near.call(lambda: PacketSocket(wire.interface)) as near,
        wire.far.call(lambda: PacketSocket(wire.peer_interface)) as far,
        wire.far.call(lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)) as raw,
    ):
        raw.bind((wire.peer_interface, ETHERTYPE))
        yield Ends(wire, near, far, raw)


def test_both_ways(ends: Ends) -> None:
    there, back = FrameStream(LENGTHS), FrameStream(LENGTHS, identifier=1)
    for count in (1, 64, 333):
        assert ends.near.send_stream(there, count).sent == count
        assert ends.far.send_stream(back, count).sent == count
        assert ends.far.receive_stream(there, count)[1:3] == (count, 0)
        assert ends.near.receive_stream(back, count)[1:3] == (count, 0)
    assert there.sent == there.received == back.received == 398


def test_only_as_many_are_taken_as_are_wanted(ends: Ends) -> None:
    stream = FrameStream(LENGTHS)
    ends.far.send_stream(stream, 70)
    assert ends.near.receive_stream(stream, 3).received == 3
    assert ends.near.receive_stream(stream, 60).received == 60
    assert ends.near.discard() == 7
    assert ends.near.discard() == 0


def test_other_frames_are_not_seen(ends: Ends) -> None:
    stream = FrameStream()
    ends.raw.send(bytes(12) + b"\x88\xb6" + bytes(50))
    ends.far.send_stream(stream, 1)
    assert ends.near.receive_stream(stream, 1).received == 1


def test_a_frame_that_changed(ends: Ends) -> None:
    stream = FrameStream(100)
    frame = bytearray(stream.frame(0))
    frame[50] ^= 1
    ends.raw.send(frame)
    with pytest.raises(VerificationError, match=r"byte 50 is .*, 1 bytes differ, on wire0"):
        ends.near.receive_stream(stream, 1)


def test_a_frame_that_is_lost(ends: Ends) -> None:
    stream = FrameStream(LENGTHS)
    ends.far.send_stream(stream, 5)
    first, _, third, *rest = (stream.frame(number) for number in range(5))
    ends.near.discard()
    for frame in (first, third):
        ends.raw.send(frame)
    with pytest.raises(VerificationError, match="frame 2 arrived where number 1 was expected: 1 were lost"):
        ends.near.receive_stream(stream, 3)
    for frame in rest[1:]:
        ends.raw.send(frame)
    assert ends.near.receive_stream(stream, 2, allow_loss=True)[1:3] == (1, 1)


def test_a_frame_that_comes_again(ends: Ends) -> None:
    stream = FrameStream(LENGTHS)
    ends.far.send_stream(stream, 1)
    ends.raw.send(stream.frame(0))
    with pytest.raises(VerificationError, match="frame 0 arrived again"):
        ends.near.receive_stream(stream, 2)


def test_silence(ends: Ends) -> None:
    stream = FrameStream()
    ends.far.send_stream(stream, 2)
    with pytest.raises(VerificationError, match=r"2 of 3 frames arrived on wire0, then none for 0\.1 s"):
        ends.near.receive_stream(stream, 3, timeout=0.1)
    assert ends.near.receive_stream(stream, 3, timeout=0.1, allow_loss=True).received == 0


def test_frames_that_the_interface_does_not_take(ends: Ends) -> None:
    with pytest.raises(HostError, match="frames on interface peer0: Message too long"):
        ends.far.send_stream(FrameStream(1600), 1)


def test_an_interface_that_goes_down(ends: Ends) -> None:
    with ends.wire.near.netlink() as netlink:
        netlink.link("set", index=netlink.link_lookup(ifname=ends.wire.interface)[0], state="down")
    with pytest.raises(HostError, match="frames on interface wire0: Network is down"):
        ends.near.receive_stream(FrameStream(), 1)


def test_no_such_interface() -> None:
    with pytest.raises(HostError, match="a packet socket on interface nowhere0: No such device"):
        PacketSocket("nowhere0")
