"""Frames that can be verified: nothing that happens to them goes unnoticed."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guestwire.testing import FrameStream, VerificationError


def test_a_frame_is_an_ethernet_frame() -> None:
    stream = FrameStream(64, destination=b"abcdef", source=b"ghijkl", identifier=0x1234)
    frame = stream.frame(0x0102030405060708)
    assert len(frame) == 64
    assert frame[:24] == b"abcdefghijkl" + bytes.fromhex("88b5 3412 0807060504030201")


@given(st.integers(0, 2**64 - 1), st.integers(32, 2000), st.data())
def test_every_changed_byte_is_noticed(number: int, length: int, data: st.DataObject) -> None:
    stream = FrameStream(length)
    frame = bytearray(stream.frame(number))
    frame[data.draw(st.integers(0, length - 1))] ^= data.draw(st.integers(1, 255))
    with pytest.raises(VerificationError):
        stream.accept(frame)
    assert (stream.received, stream.lost) == (0, 0)


@given(st.integers(32, 300), st.integers(0, 100))
def test_lengths_vary_within_their_bounds(shortest: int, more: int) -> None:
    stream = FrameStream((shortest, shortest + more))
    lengths = {len(stream.frame(i)) for i in range(200)}
    assert all(shortest <= n <= shortest + more for n in lengths)
    assert len(lengths) > min(1, more)
    assert stream.longest == shortest + more


def test_frames_of_other_streams_are_noticed() -> None:
    frame = FrameStream(identifier=1).frame(0)
    with pytest.raises(VerificationError, match="byte 14 is 0x01 instead of 0x02"):
        FrameStream(identifier=2).accept(frame)


def test_no_two_frames_share_a_word() -> None:
    stream = FrameStream(1024)
    words = [stream.frame(i)[at : at + 8] for i in range(200) for at in range(24, 1024, 8)]
    assert len(set(words)) == len(words)


@given(st.lists(st.integers(0, 40), max_size=60))
def test_bookkeeping(numbers: list[int]) -> None:
    """Whatever arrives in whatever order is counted as the plain definition says."""
    stream = FrameStream()
    arrived: set[int] = set()
    for number in numbers:
        expected = max(arrived, default=-1) + 1
        if number in arrived:
            with pytest.raises(VerificationError, match=f"frame {number} arrived again"):
                stream.accept(stream.frame(number))
        elif number < expected:
            with pytest.raises(VerificationError, match=f"frame {number} arrived late"):
                stream.accept(stream.frame(number))
        else:
            stream.accept(stream.frame(number))
        arrived.add(number)
        assert stream.received == len(arrived)
        assert stream.lost == max(arrived) + 1 - len(arrived)


def test_old_numbers_are_forgotten() -> None:
    stream = FrameStream()
    stream.accept(stream.frame(0))
    stream.accept(stream.frame(1))
    stream.accept(stream.frame(200_000))
    with pytest.raises(VerificationError, match="frame 2 arrived again"):
        stream.accept(stream.frame(2))
    with pytest.raises(VerificationError, match="frame 199999 arrived late"):
        stream.accept(stream.frame(199_999))
    assert stream.lost == 200_001 - 4


def test_sending_by_other_ways() -> None:
    stream = FrameStream((60, 100))
    for frame in stream.take(10) + stream.take(10):
        stream.accept(frame)
    assert (stream.sent, stream.received) == (20, 20)
    assert stream.received_bytes == sum(len(stream.frame(i)) for i in range(20))


@pytest.mark.parametrize("length", [31, 65537, (100, 99), (0, 100)])
def test_impossible_lengths(length: int | tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="32 to 65536 are possible"):
        FrameStream(length)


def test_a_mac_address_has_six_bytes() -> None:
    with pytest.raises(ValueError, match="6 bytes"):
        FrameStream(destination=bytes(5))


def test_other_headers_take_the_place_of_the_first_bytes() -> None:
    head = bytes(range(54))
    stream = FrameStream((70, 200), head=head)
    frames = stream.take(50)
    assert all(frame[:62] == head + i.to_bytes(8, "little") for i, frame in enumerate(frames))
    for frame in frames:
        stream.accept(frame)
    with pytest.raises(VerificationError, match="byte 53 is 0xff instead of 0x35"):
        stream.accept(frames[0][:53] + b"\xff" + frames[0][54:])


def test_most_frames_may_be_left_as_they_are() -> None:
    stream = FrameStream(100, whole_every=4)
    frames = [bytearray(frame) for frame in stream.take(8)]
    for i, frame in enumerate(frames):
        assert (frame[32:] == bytes(68)) == (i % 4 != 0)
    frames[1][-1] ^= 1
    for frame in frames[:4]:
        stream.accept(frame)
    frames[4][-1] ^= 1
    with pytest.raises(VerificationError, match="byte 99"):
        stream.accept(frames[4])
    with pytest.raises(VerificationError, match="has 99 bytes instead of 100"):
        stream.accept(frames[5][:99])


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"head": bytes(15)}, "a head of 15 bytes"),
        ({"head": bytes(65)}, "a head of 65 bytes"),
        ({"head": bytes(64), "length": 79}, "frames of 79 to 79 bytes: 80 to 65536"),
        ({"header": bytes(10)}, "a virtio_net_hdr of 10 bytes"),
        ({"whole_every": 3}, "not a power of two"),
    ],
)
def test_streams_that_cannot_be(arguments: dict[str, Any], error: str) -> None:
    with pytest.raises(ValueError, match=error):
        FrameStream(**arguments)
