"""One worker for several queue pairs: pairs come and go, break and idle, and the others do not notice."""

from __future__ import annotations

import contextlib
import os
import random
import struct
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from backend.process import wait_until
from guestwire.datapath.counters import Counters
from guestwire.datapath.echo import EchoPort
from guestwire.datapath.queue_pair import QueuePair
from guestwire.datapath.window import Window
from guestwire.datapath.worker import WorkLoop
from guestwire.metrics import PairCounters, decode
from guestwire.worker import Worker
from unit.datapath.memory import GUEST_BASE, Ring
from unit.datapath.working import working

MIB = 1 << 20
RING = 0x4000  # bytes of memory for a ring, and for a pair's buffers of each direction
FULL = 2**64 - 2  # what an eventfd can hold; the next write waits for a reader (eventfd(2))


class Pair:
    """A queue pair on the echo port, and the driver that kicks it."""

    def __init__(self, guest: SeveralPairs, number: int, call_fd: int) -> None:
        self._guest, self._at = guest, number * 4 * RING
        self._kick = guest.eventfd()
        self.rx = Ring(guest.window, self._at, receive=True, kick_fd=self._kick)
        self.tx = Ring(guest.window, self._at + RING, receive=False, kick_fd=guest.eventfd(), call_fd=call_fd)
        self.kick_fd = guest.last_fd
        self.work = QueuePair(
            guest.window,
            EchoPort(),
            self.rx.device,
            self.tx.device,
            counters=guest.counters,
            index=number,
            trouble_fd=guest.trouble_fd,
        )
        self.work.enable(rx=True, tx=True)
        self.number = number
        self.sent = 0

    def used(self, ring: Ring) -> int:
        (index,) = struct.unpack("<H", self._guest.window.read(ring.at + 0x2002, 2))
        return int(index)

    def exchange(self, payload: bytes) -> None:
        """Send a frame and wait until it is back, unchanged."""
        send, receive = GUEST_BASE + self._at + 2 * RING, GUEST_BASE + self._at + 3 * RING
        self._guest.write(send, bytes(12) + payload)
        self.rx.offer((receive, 2048))
        self.tx.offer((send, 12 + len(payload)))
        os.eventfd_write(self.kick_fd, 1)
        self.sent = (self.sent + 1) & 0xFFFF
        wait_until(lambda: self.used(self.rx) == self.sent and self.used(self.tx) == self.sent)
        assert self._guest.read(receive + 12, len(payload)) == payload

    def counted(self) -> PairCounters:
        return decode(self._guest.counters.read())[self.number]


class SeveralPairs:
    """A guest's memory and its queue pairs."""

    def __init__(self, pairs: int, call_fd: int = -1) -> None:
        self._fds: list[int] = []
        self.memory = os.memfd_create("guest")
        os.ftruncate(self.memory, 16 * MIB)
        self.window = Window([(GUEST_BASE, 0x7F0000000000, 16 * MIB, self.memory, 0)], bounce_frames=8)
        counter_fd = os.memfd_create("counters")
        self.counters = Counters(counter_fd, pairs)
        os.close(counter_fd)
        self.trouble_fd = self.eventfd()
        self.pairs = [Pair(self, number, call_fd) for number in range(pairs)]

    @property
    def last_fd(self) -> int:
        return self._fds[-1]

    def eventfd(self) -> int:
        self._fds.append(os.eventfd(0, os.EFD_NONBLOCK))
        return self._fds[-1]

    def write(self, address: int, data: bytes) -> None:
        self.window.write(self.window.translate_guest(address, len(data)), data)

    def read(self, address: int, length: int) -> bytes:
        return self.window.read(self.window.translate_guest(address, length), length)

    def close(self) -> None:
        for fd in (self.memory, *self._fds):
            os.close(fd)
        self.window.close()


@pytest.fixture
def make() -> Iterator[Callable[..., SeveralPairs]]:
    with contextlib.ExitStack() as made:

        def one(pairs: int, **options: int) -> SeveralPairs:
            return made.enter_context(contextlib.closing(SeveralPairs(pairs, **options)))

        yield one


def payload(number: int) -> bytes:
    return random.Random(number).randbytes(60 + number % 1000)


@contextlib.contextmanager
def busy(pair: Pair) -> Iterator[None]:
    """Exchange frames on a pair all the time, until the end."""
    failures: list[BaseException] = []
    leaving = threading.Event()

    def live() -> None:
        try:
            number = 0
            while not leaving.is_set():
                pair.exchange(payload(number))
                number += 1
        except BaseException as failure:
            failures.append(failure)

    thread = threading.Thread(target=live)
    thread.start()
    try:
        wait_until(lambda: pair.sent > 1 or failures)
        yield
        before = pair.counted()["tx"]["frames"]
        wait_until(lambda: pair.counted()["tx"]["frames"] > before + 2 or failures)
    finally:
        leaving.set()
        thread.join()
    assert failures == []


@pytest.mark.parametrize("count", [2, 64])
def test_every_pair_is_served(make: Callable[..., SeveralPairs], count: int) -> None:
    guest = make(count)
    with working(*(pair.work for pair in guest.pairs)):
        for number in range(4 * count):
            guest.pairs[number % count].exchange(payload(number))
        # A kick that comes while the worker polls is counted when it goes to sleep.
        wait_until(lambda: all(pair.counted()["worker"]["kicks"] for pair in guest.pairs))
    assert [pair.counted()["tx"]["frames"] for pair in guest.pairs] == [4] * count
    assert guest.pairs[0].counted()["worker"]["sleeps"] > 0


def test_pairs_come_and_go_while_another_is_busy(make: Callable[..., SeveralPairs]) -> None:
    guest = make(3)
    first, second, third = guest.pairs
    with working(first.work) as worker, busy(first):
        for number in range(50):
            for pair in (second, third):
                worker.add(pair.work)
                pair.exchange(payload(number))
            for pair in (second, third):
                worker.remove(pair.work)
    assert second.counted()["tx"]["frames"] == third.counted()["tx"]["frames"] == 50
    assert second.rx.device.in_flight == second.tx.device.in_flight == 0


def test_a_pair_that_left_is_left_alone(make: Callable[..., SeveralPairs]) -> None:
    guest = make(2)
    first, second = guest.pairs
    with working(first.work, second.work) as worker:
        second.exchange(payload(0))
        worker.remove(second.work)
        kicks = second.counted()["worker"]["kicks"]
        second.tx.offer((GUEST_BASE + MIB, 100))
        os.eventfd_write(second.kick_fd, 1)
        for number in range(100):
            first.exchange(payload(number))
        assert second.used(second.tx) == 1
        assert second.counted()["worker"]["kicks"] == kicks


def test_a_worker_ends_with_its_last_pair(make: Callable[..., SeveralPairs]) -> None:
    guest = make(2)
    with working(*(pair.work for pair in guest.pairs)) as worker:
        before = threading.active_count()
        worker.remove(guest.pairs[0].work)
        assert threading.active_count() == before
        worker.remove(guest.pairs[1].work)
        assert threading.active_count() == before - 1


def test_a_ring_that_breaks_is_reported_and_the_others_go_on(make: Callable[..., SeveralPairs]) -> None:
    guest = make(3)
    with working(*(pair.work for pair in guest.pairs)), busy(guest.pairs[0]):
        guest.pairs[1].tx.offer((GUEST_BASE + 64 * MIB, 100))
        os.eventfd_write(guest.pairs[1].kick_fd, 1)
        wait_until(lambda: guest.pairs[1].counted()["worker"]["ring_errors"])
        assert os.eventfd_read(guest.trouble_fd) == 1
        guest.pairs[2].exchange(payload(0))
    assert guest.pairs[1].tx.device.error is not None
    assert guest.pairs[0].tx.device.error is guest.pairs[2].tx.device.error is None


def test_memory_that_goes_ends_the_work_and_is_reported(make: Callable[..., SeveralPairs]) -> None:
    guest = make(2)
    with working(*(pair.work for pair in guest.pairs)) as worker:
        for pair in guest.pairs:
            pair.exchange(payload(0))
        os.ftruncate(guest.memory, 0)
        for pair in guest.pairs:
            os.eventfd_write(pair.kick_fd, 1)
        wait_until(lambda: guest.window.fault)
        wait_until(lambda: all(pair.counted()["worker"]["ring_errors"] for pair in guest.pairs))
        assert os.eventfd_read(guest.trouble_fd) == 2
        worker.remove(guest.pairs[0].work)
        guest.pairs[0].work.finish()
        guest.pairs[0].work.settle()


def test_a_worker_that_is_made_to_wait_is_interrupted(make: Callable[..., SeveralPairs]) -> None:
    call = os.eventfd(0)
    try:
        guest = make(2, call_fd=call)
        first, second = guest.pairs
        with working(first.work) as worker:
            first.exchange(payload(0))
            os.eventfd_write(call, FULL - os.eventfd_read(call))
            os.eventfd_write(call, os.eventfd_read(call))
            first.exchange(payload(1))  # the used index is stored before the call, which waits
            worker.add(second.work)
            worker.remove(first.work)
            os.eventfd_read(call)
            second.exchange(payload(2))
    finally:
        os.close(call)


@pytest.mark.parametrize("count", [1, 64])
def test_idle_pairs_cost_no_time(make: Callable[..., SeveralPairs], count: int) -> None:
    guest = make(count)
    before = set(threading.enumerate())
    with working(*(pair.work for pair in guest.pairs)):
        (thread,) = set(threading.enumerate()) - before
        assert thread.ident is not None
        clock = time.pthread_getcpuclockid(thread.ident)
        for pair in guest.pairs:
            pair.exchange(payload(0))

        def is_asleep() -> bool:
            used = time.clock_gettime(clock)
            time.sleep(0.01)
            return time.clock_gettime(clock) - used < 0.0001

        wait_until(is_asleep)
        used = time.clock_gettime(clock)
        # Time in which nothing happens is what is tested.
        time.sleep(1)
        assert time.clock_gettime(clock) - used < 0.002


def test_what_cannot_be_added(make: Callable[..., SeveralPairs]) -> None:
    guest = make(1)
    with working(guest.pairs[0].work) as worker:
        with pytest.raises(ValueError, match="queue pair 0"):
            worker.add(guest.pairs[0].work)
        guest.pairs[0].exchange(payload(0))


def test_a_descriptor_that_cannot_be_waited_for(make: Callable[..., SeveralPairs]) -> None:
    guest = make(1)
    with open(os.devnull) as null:  # noqa: PTH123
        ring = Ring(guest.window, 8 * MIB, receive=False, kick_fd=null.fileno())
        pair = QueuePair(
            guest.window, EchoPort(), guest.pairs[0].rx.device, ring.device, counters=guest.counters
        )
        loop = WorkLoop()
        with pytest.raises(OSError, match="cannot wait"):
            loop.add(pair)
        assert loop.pairs == {}
        loop.add(guest.pairs[0].work)


def test_no_kicks_are_wanted_while_there_is_work(make: Callable[..., SeveralPairs]) -> None:
    """Also not after the kick that has woken the worker; it polls for so long that it stays awake."""
    guest = make(1)
    pair = guest.pairs[0]

    def used_flags() -> int:
        return int.from_bytes(guest.window.read(pair.tx.at + 0x2000, 2), "little")

    with working(pair.work, poll_us=1_000_000):
        wait_until(lambda: used_flags() == 0)
        pair.exchange(payload(1))
        assert used_flags() == 1


def test_no_thread_to_be_had(make: Callable[..., SeveralPairs], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(OSError, match="thread"):
        Worker("test", None, 50).add(make(1).pairs[0].work)
