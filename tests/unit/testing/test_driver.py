"""The testing driver: traffic of every shape, and every fault of a device noticed."""

from __future__ import annotations

import pytest

from guestwire.testing import (
    BufferLayout,
    DeviceError,
    FrameStream,
    VerificationError,
)
from guestwire.virtio.features import Feature
from unit.testing.machine import EVENT_IDX, HEADER, INDIRECT, MERGEABLE, VERSION_1, machine

LAYOUTS = {
    "one descriptor": BufferLayout(),
    "header apart": BufferLayout(header_apart=True),
    "pieces": BufferLayout(length=1600, piece_length=400),
    "header cut": BufferLayout(length=70, piece_length=7, indirect=True),
    "indirect": BufferLayout(header_apart=True, indirect=True),
    "unaligned": BufferLayout(length=1531, offset=3),
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("event_idx", [EVENT_IDX, Feature(0)], ids=["event_idx", "flags"])
@pytest.mark.parametrize("wait", [False, True], ids=["poll", "wait"])
def test_frames_go_out_and_come_back(layout: BufferLayout, event_idx: Feature, wait: bool) -> None:
    transmit = LAYOUTS["pieces"] if layout.length < 1000 else layout
    with machine(
        features=MERGEABLE | INDIRECT | event_idx, receive_layout=layout, transmit_layout=transmit
    ) as m:
        m.pair.receive_ring.post()
        longest = min(1400, m.pair.receive_ring.buffers * layout.length - HEADER)
        stream = FrameStream((32, longest))
        with m.running():
            traffic = m.pair.exchange(stream, 300, wait=wait)
        assert traffic[:3] == (300, 300, 0)
        assert stream.sent == stream.received == 300
        assert m.pair.transmit_ring.in_flight == 0
        assert m.pair.receive_ring.in_flight == m.pair.receive_ring.buffers
        for driver in m.drivers:
            driver.check_guards()
        if wait:
            assert m.pair.receive_ring.calls > 0


@pytest.mark.parametrize("features", [VERSION_1, VERSION_1 | EVENT_IDX], ids=["flags", "event_idx"])
def test_a_driver_that_polls_is_not_called(features: Feature) -> None:
    with machine(features=features) as m:
        m.pair.receive_ring.post()
        for _ in range(3):
            m.pair.send(bytes(60))
            assert m.transmit.enable_notifications()
            chain = m.transmit.pop()
            assert chain is not None
            m.deliver(bytes(100))
            m.transmit.push(chain.head, 0)
            assert not m.receive.publish()
            assert not m.transmit.publish()
            assert m.pair.receive(wait=False) is not None
            m.pair.drain()


def test_a_device_that_polls_is_not_kicked() -> None:
    with machine(features=VERSION_1) as m:
        m.transmit.disable_notifications()
        m.pair.send(bytes(60))
        assert m.pair.transmit_ring.kicks == 0
        m.transmit.enable_notifications()
        m.pair.send(bytes(60))
        assert m.pair.transmit_ring.kicks == 1


@pytest.mark.parametrize("event_idx", [EVENT_IDX, Feature(0)], ids=["event_idx", "flags"])
def test_indices_wrap(event_idx: Feature) -> None:
    with machine(features=MERGEABLE | event_idx, base=0xFFFA, size=4) as m:
        m.pair.receive_ring.post()
        with m.running():
            assert m.pair.exchange(FrameStream(), 100, wait=True).received == 100


def test_streams_go_on_where_they_were() -> None:
    with machine() as m:
        m.pair.receive_ring.post()
        stream = FrameStream()
        with m.running():
            m.pair.exchange(stream, 10)
            m.pair.exchange(stream, 10)
        assert (stream.sent, stream.received, stream.lost) == (20, 20, 0)
        assert stream.received_bytes == 20 * 64


def test_streams_that_begin_apart() -> None:
    """What one stream sent before does not count as on the way."""
    with machine() as m:
        m.pair.receive_ring.post()
        sent, expected = FrameStream(), FrameStream()
        expected.take(500)
        with m.running(lambda _: None):
            m.pair.send_stream(sent, 40)
        for number in range(40):
            expected.accept(expected.frame(number))
        with m.running():
            m.pair.exchange(sent, 40, returning=expected, window=1, timeout=5)
        assert expected.received == 80


def test_a_reflector_may_exchange_the_addresses() -> None:
    there, back = bytes([2, 0, 0, 0, 0, 7]), bytes([2, 0, 0, 0, 0, 8])
    with machine() as m:
        m.pair.receive_ring.post()
        sent = FrameStream(200, destination=there, source=back)
        expected = FrameStream(200, destination=back, source=there)
        with m.running(lambda d: d[:HEADER] + d[18:24] + d[12:18] + d[24:]):
            m.pair.exchange(sent, 5, returning=expected)
        assert expected.received == 5


@pytest.mark.parametrize(("other", "share"), [(False, 1), (True, 2)], ids=["its own", "another's"])
def test_no_more_is_on_the_way_than_buffers_hold(other: bool, share: int) -> None:
    """Who sends frames of its own instead of returning ours may be as far ahead."""
    with machine() as m:
        m.pair.receive_ring.post()
        sent = FrameStream()
        with pytest.raises(DeviceError):
            m.pair.exchange(sent, 1000, returning=FrameStream() if other else None, timeout=0.1)
        assert sent.sent == min(m.pair.receive_ring.buffers // share, m.pair.transmit_ring.buffers)


def test_one_frame_with_a_header_of_its_own() -> None:
    with machine(features=MERGEABLE | Feature.VIRTIO_NET_F_GUEST_CSUM) as m:
        m.pair.receive_ring.post()
        header = bytes([1, 0]) + bytes(8) + bytes([1, 0])
        with m.running():
            m.pair.send(b"frame" * 20, header=header)
            received = m.pair.receive()
        assert received is not None
        assert (received.data, received.header, received.buffers) == (b"frame" * 20, header, 1)


def test_one_frame_over_several_buffers() -> None:
    with machine(receive_layout=BufferLayout(length=100)) as m:
        m.pair.receive_ring.post()
        data = bytes(range(250))
        with m.running():
            m.pair.send(data)
            received = m.pair.receive()
        assert received is not None
        assert (received.data, received.buffers) == (data, 3)


def test_nothing_arrives() -> None:
    with machine() as m:
        m.pair.receive_ring.post()
        assert m.pair.receive(timeout=0.05) is None
        with pytest.raises(VerificationError, match="0 of 3 frames arrived"):
            m.pair.receive_stream(FrameStream(), 3, timeout=0.05)
        assert m.pair.receive_stream(FrameStream(), 3, timeout=0.05, allow_loss=True).received == 0


def test_nothing_is_taken() -> None:
    with machine() as m:
        with pytest.raises(DeviceError, match="has not given back 16 transmit buffers"):
            m.pair.send_stream(FrameStream(), 20, timeout=0.05)
        with pytest.raises(DeviceError, match="has not given back 16"):
            m.pair.send(bytes(60), timeout=0.05)


def test_frames_are_taken_and_do_not_come_back() -> None:
    with machine() as m:
        m.pair.receive_ring.post()
        with m.running(lambda _: None):
            with pytest.raises(VerificationError, match=r"0 of 20 frames arrived.*16 were sent"):
                m.pair.exchange(FrameStream(), 20, timeout=0.1)
            traffic = m.pair.exchange(FrameStream(), 5, timeout=0.1, allow_loss=True)
        assert traffic[:3] == (5, 0, 0)


def test_frames_come_back_and_their_buffers_do_not() -> None:
    with machine() as m:
        m.pair.receive_ring.post()
        stream = FrameStream()
        m.deliver(bytes(HEADER) + stream.frame(0))
        m.call(m.receive)
        for allow_loss in (False, True):
            with pytest.raises(DeviceError, match="has not given back 1 transmit buffers"):
                m.pair.exchange(stream, 1, timeout=0.05, allow_loss=allow_loss)
            m.echo(lambda _: None)
            m.pair.drain()
            m.deliver(bytes(HEADER) + stream.frame(1))
            m.call(m.receive)


def test_a_frame_that_fits_no_buffer() -> None:
    small = BufferLayout(length=100)
    with machine(features=VERSION_1, receive_layout=small, transmit_layout=small) as m:
        for call in (m.pair.send_stream, m.pair.receive_stream, m.pair.exchange):
            with pytest.raises(ValueError, match="a buffer holds 88"):
                call(FrameStream(89), 1)
        with pytest.raises(ValueError, match="a buffer holds 1 to 88"):
            m.pair.send(bytes(89))
        with pytest.raises(ValueError, match="a header of 11 bytes"):
            m.pair.send(bytes(60), header=bytes(11))


def test_a_released_ring_is_refused() -> None:
    with machine() as m:
        m.pair.receive_ring.release()
        with pytest.raises(ValueError, match="released"):
            m.pair.receive(timeout=0)
