"""Load for a given time, with the oracle as the device."""

from __future__ import annotations

import pytest

from guestwire.testing import DeviceError, FrameStream, VerificationError
from guestwire.testing.load import Load
from guestwire.virtio.segmentation import NetHeader
from unit.testing.machine import Machine, machine


def load(m: Machine, *, returning: bool = True, stream: FrameStream | None = None) -> Load:
    m.pair.receive_ring.post()
    return Load([m.pair], [stream or FrameStream(64)], returning=returning, yielding=True)


def test_frames_that_return() -> None:
    with machine() as m:
        driver = load(m)
        with m.running():
            windows = [driver.run(0.1) for _ in range(2)]
            driver.drain()
        for window in windows:
            assert 0.1 <= window.seconds < 5
            assert window.received > 0
            assert window.received_bytes == 64 * window.received
            assert window.turns > 0
            assert 0 <= window.waited <= window.seconds
        assert m.pair.transmit_ring.in_flight == 0


def test_what_does_not_return_is_counted_if_anything_arrives() -> None:
    with machine() as m:
        driver = load(m, returning=False)
        for _ in range(3):
            m.deliver(bytes(12 + 100))
        m.receive.publish()
        window = driver.run(0.02)
        assert (window.sent, window.received, window.received_bytes) == (0, 3, 300)
        with pytest.raises(DeviceError, match=r"has not given back all that was sent in 0\.05 s"):
            driver.drain(0.05)


def test_single_frames_one_after_the_other() -> None:
    with machine() as m:
        driver = load(m)
        with m.running():
            driver.run(0.05)
            driver.drain()
            sent = m.pair.transmit_ring.next_used
            times = driver.round_trips(0.2)
            assert m.pair.transmit_ring.next_used - sent in {len(times), len(times) - 1, len(times) + 1}
        assert len(times) > 0
        assert min(times) > 0


def test_a_changed_frame_is_an_error() -> None:
    with machine() as m:
        driver = load(m)
        with m.running(lambda data: data[:-40] + bytes(1) + data[-39:]), pytest.raises(VerificationError):
            driver.run(5)


def test_a_frames_header_is_the_streams() -> None:
    header = NetHeader(flags=1, csum_start=14, csum_offset=2).pack()
    with machine() as m:
        driver = load(m, returning=False, stream=FrameStream(64, header=header))
        driver.run(0.01)
        chain = m.transmit.pop()
        assert chain is not None
        assert m.read(chain)[:12] == header
        m.transmit.push(chain.head, 0)
