"""A whole process with the echo port and guests of several queue pairs, on one worker or on many."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from backend.house import status, threads
from backend.multiqueue import cpu_nanoseconds, pair_counters
from backend.process import Backend, wait_until
from guestwire.daemon import CHANGES
from guestwire.testing import FakeGuest, FrameStream
from guestwire.testing.driver import QueuePair
from guestwire.virtio.features import Feature

ENOUGH_FRAMES = 200


@contextlib.contextmanager
def backend_of(folder: Path, pairs: int, cpus: str | None) -> Iterator[Backend]:
    arguments = ["--queue-pairs", str(pairs), *(["--cpus", cpus] if cpus else [])]
    with Backend(folder, "echo", arguments) as backend:
        yield backend


def first_cpu() -> str:
    return str(min(os.sched_getaffinity(0)))


def set_enabled(guest: FakeGuest, pairs: range, enabled: bool) -> None:
    """What `ethtool -L` in a guest makes its frontend say."""
    for index in (ring for pair in pairs for ring in (2 * pair, 2 * pair + 1)):
        guest.frontend.set_ring_enable(index, enabled)
    guest.frontend.get_features()  # requests are followed in order


class Traffic:
    """Frames that go around on a queue pair all the time, none lost, until the end."""

    def __init__(self, pair: QueuePair) -> None:
        self._pair = pair
        self._stream = FrameStream((60, 1514))
        self._leaving = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._live)

    def _live(self) -> None:
        try:
            # A pause after each burst leaves the machine to others.
            while not self._leaving.wait(0.0005):
                self._pair.exchange(self._stream, 20, wait=True)
        except BaseException as error:
            self._error = error

    def flows(self) -> None:
        """Wait until many more frames have come back."""
        enough = self._stream.received + ENOUGH_FRAMES
        wait_until(lambda: self._stream.received >= enough or self._error)
        assert self._error is None
        assert self._stream.lost == 0

    @contextlib.contextmanager
    def going(self) -> Iterator[None]:
        self._thread.start()
        try:
            yield
        finally:
            self._leaving.set()
            self._thread.join()
        assert self._error is None


@pytest.mark.parametrize("cpus", [first_cpu(), None], ids=["one worker", "a worker a pair"])
@pytest.mark.parametrize("pairs", [4, 64])
def test_every_byte_comes_back_on_every_pair(tmp_path: Path, pairs: int, cpus: str | None) -> None:
    with backend_of(tmp_path, pairs, cpus) as backend:
        with FakeGuest(backend.socket, queue_pairs=pairs, queue_size=64, verify_sent=True) as guest:
            assert guest.frontend.get_queue_count() == 2 * pairs
            streams = [FrameStream((60, 1514), identifier=number) for number in range(pairs)]
            for _ in range(2):
                for pair, stream in zip(guest.pairs, streams, strict=True):
                    assert pair.exchange(stream, 500)[:3] == (500, 500, 0)
            assert len(status(backend)["guest"].rings) == 2 * pairs
            counted = pair_counters(backend)
            assert [each["tx"]["frames"] for each in counted] == [1000] * pairs
            assert [each["rx"]["frames"] for each in counted] == [1000] * pairs
            # The main thread, those of changes and of the session, and the workers.
            wait_until(lambda: threads(backend) == 2 + CHANGES + (1 if cpus else pairs))
            for ring in guest.rings:
                assert guest.stop_ring(ring) == 1000
            wait_until(lambda: threads(backend) == 2 + CHANGES)
            for ring in guest.rings:
                guest.start_ring(ring)
            for pair, stream in zip(guest.pairs, streams, strict=True):
                assert pair.exchange(stream, 100)[:3] == (100, 100, 0)
        assert "WARNING" not in backend.text()


def test_all_pairs_at_once_on_one_worker(tmp_path: Path) -> None:
    with (
        backend_of(tmp_path, 4, first_cpu()) as backend,
        FakeGuest(backend.socket, queue_pairs=4) as guest,
        contextlib.ExitStack() as going,
    ):
        all_traffic = [Traffic(pair) for pair in guest.pairs]
        for traffic in all_traffic:
            going.enter_context(traffic.going())
        for traffic in all_traffic:
            traffic.flows()


def test_pairs_are_disabled_and_enabled_under_traffic(tmp_path: Path) -> None:
    with (
        backend_of(tmp_path, 4, first_cpu()) as backend,
        FakeGuest(backend.socket, queue_pairs=4) as guest,
    ):
        first = Traffic(guest.pairs[0])
        waiting = FrameStream().frame(0)
        with first.going():
            for number in (1, 3, 2, 4, 1, 4):
                set_enabled(guest, range(number, 4), False)
                set_enabled(guest, range(number), True)
                first.flows()
                for pair in guest.pairs[1:number]:
                    assert pair.exchange(FrameStream(), 50).received == 50
                before = [each["tx"]["frames"] for each in pair_counters(backend)[number:]]
                for pair in guest.pairs[number:]:
                    pair.send(waiting)
                first.flows()
                # A pair that is disabled altogether is left alone; its frame waits.
                assert [each["tx"]["frames"] for each in pair_counters(backend)[number:]] == before
                set_enabled(guest, range(4), True)
                for index in range(number, 4):
                    pair = guest.pairs[index]
                    pair.drain()
                    # Dropped if it was looked at while only its receive ring was enabled, else it comes back.
                    if pair_counters(backend)[index]["tx"]["frames"] > before[index - number]:
                        received = pair.receive()
                        assert received is not None
                        assert received.data == waiting
                    assert pair.exchange(FrameStream(), 50).received == 50


def test_a_ring_that_breaks_stops_alone(tmp_path: Path) -> None:
    with (
        backend_of(tmp_path, 4, first_cpu()) as backend,
        FakeGuest(backend.socket, queue_pairs=4) as guest,
    ):
        first = Traffic(guest.pairs[0])
        with first.going():
            ring = guest.rings[5]
            ring.driver.raw.offer(0xFFFF)
            os.eventfd_write(ring.kick_fd, 1)
            wait_until(lambda: status(backend)["guest"].rings[5].error)
            assert ring.is_broken()
            for pair in (guest.pairs[1], guest.pairs[3]):
                assert pair.exchange(FrameStream(), 100).received == 100
            first.flows()
        assert [ring.error is None for ring in status(backend)["guest"].rings] == [True] * 5 + [False] + [
            True
        ] * 2


@pytest.mark.parametrize("cpus", [first_cpu(), None], ids=["one worker", "a worker a pair"])
def test_64_idle_pairs_cost_no_time(tmp_path: Path, cpus: str | None) -> None:
    with (
        backend_of(tmp_path, 64, cpus) as backend,
        FakeGuest(backend.socket, queue_pairs=64, queue_size=64) as guest,
    ):
        for pair in guest.pairs:
            pair.exchange(FrameStream(), 10)

        def idle() -> bool:
            # Each look takes a second in which nothing happens, which is what is tested.
            before = cpu_nanoseconds(backend)
            time.sleep(1)
            return cpu_nanoseconds(backend) - before < 2_000_000

        assert idle() or idle()
        assert guest.pairs[63].exchange(FrameStream(), 10, wait=True).received == 10


@pytest.mark.parametrize("pairs", [1, 4])
def test_multiqueue_is_offered_where_it_has_a_use(tmp_path: Path, pairs: int) -> None:
    with backend_of(tmp_path, pairs, None) as backend, FakeGuest(backend.socket) as guest:
        assert (Feature.VIRTIO_NET_F_MQ in guest.frontend.get_features()) is (pairs > 1)
        assert guest.frontend.get_queue_count() == 2 * pairs
