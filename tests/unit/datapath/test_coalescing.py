"""Calls that are held back: for how long, for how many, and what becomes of them when a pair leaves."""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable, Iterator

import pytest

from backend.process import wait_until
from guestwire.datapath.counters import Counters
from guestwire.datapath.echo import EchoPort
from guestwire.datapath.queue_pair import QueuePair
from guestwire.datapath.window import Window
from guestwire.metrics import decode
from unit.datapath.memory import BUFFERS, GUEST_BASE, Machine, Ring
from unit.datapath.wired import Join, join
from unit.datapath.working import working

__all__ = ["join"]

SEND = GUEST_BASE + BUFFERS
RECEIVE = GUEST_BASE + 2 * BUFFERS
LONG = 1_000_000  # microseconds: longer than a test takes
Make = Callable[..., Machine]


@pytest.fixture
def machine() -> Iterator[Make]:
    made: list[Machine] = []

    def make(**options: int) -> Machine:
        made.append(Machine(EchoPort(), **options))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for one in made:
        one.close()


def exchange(guest: Machine, count: int = 1) -> None:
    """Let the guest send frames, which come back in the same burst."""
    guest.write(SEND, bytes(72))
    for _ in range(count):
        guest.tx.offer((SEND, 72))
        guest.rx.offer((RECEIVE, 1600))
    guest.run()


def calls(guest: Machine) -> tuple[int, int]:
    worker = guest.counted()["worker"]
    return worker["rx_calls"], worker["tx_calls"]


def test_each_burst_is_called_for_unless_something_else_is_asked_for(machine: Make) -> None:
    guest = machine()
    for _ in range(5):
        exchange(guest, 3)
    assert calls(guest) == (5, 5)


def test_one_call_is_made_for_so_many_frames(machine: Make) -> None:
    guest = machine(coalesce_us=LONG, coalesce_packets=8)
    for number in range(1, 33):
        exchange(guest)
        assert len(guest.rx.used()) == len(guest.tx.used()) == number  # seen at once by a driver that looks
        assert calls(guest) == (number // 8, number // 8)
    exchange(guest, 20)
    assert calls(guest) == (5, 5)


def test_a_call_is_held_back_for_so_long_and_then_made_although_nothing_moves(machine: Make) -> None:
    guest = machine(coalesce_us=2000)
    before = time.monotonic_ns()
    exchange(guest)
    while calls(guest) != (1, 1):
        assert guest.pair.step() == 0
    assert time.monotonic_ns() - before >= 2_000_000
    guest.run()
    assert calls(guest) == (1, 1)


def test_the_time_is_that_of_the_first_frame(machine: Make) -> None:
    guest = machine(coalesce_us=2000, coalesce_packets=32768)
    before = time.monotonic_ns()
    while calls(guest) == (0, 0):
        exchange(guest)
    assert time.monotonic_ns() - before >= 2_000_000


def test_what_was_wanted_stays_owed_though_later_bursts_are_not_called_for(machine: Make) -> None:
    guest = machine(coalesce_us=LONG, coalesce_packets=4)
    exchange(guest)
    for ring in (guest.rx, guest.tx):
        ring.want_no_calls()
    exchange(guest, 2)
    assert calls(guest) == (0, 0)
    exchange(guest)
    assert calls(guest) == (1, 1)
    exchange(guest, 8)
    assert calls(guest) == (1, 1)


def test_an_event_index_is_heeded_once(machine: Make) -> None:
    guest = machine(coalesce_us=LONG, coalesce_packets=4, event_index=True)
    for ring in (guest.rx, guest.tx):
        ring.want_call_after(2)
    exchange(guest, 2)
    exchange(guest, 3)  # the third frame is the one; three count
    exchange(guest)
    assert calls(guest) == (1, 1)
    exchange(guest, 20)
    assert calls(guest) == (1, 1)


def test_a_held_call_is_owed_when_the_pair_leaves(machine: Make) -> None:
    guest = machine(coalesce_us=LONG)
    exchange(guest)
    guest.pair.finish()
    assert guest.pair.settle() == (True, True)
    calm = machine(coalesce_us=LONG)
    calm.pair.finish()
    assert calm.pair.settle() == (False, False)


def test_frames_that_come_over_a_wire_are_coalesced_by_their_receiver(join: Join) -> None:
    sender, receiver = join(), join(coalesce_us=LONG, coalesce_packets=8)
    receiver.offer(32)
    sender.say(receiver)
    for number in range(1, 33):
        sender.run()
        receiver.run()
        assert receiver.counted()["rx"]["frames"] == number
        assert calls(receiver)[0] == number // 8
        sender.say(receiver)


def test_what_came_over_a_wire_before_the_call_was_wanted_does_not_count(join: Join) -> None:
    sender, receiver = join(), join(coalesce_us=LONG, coalesce_packets=4)
    receiver.offer(32)

    def hear(count: int) -> int:
        for _ in range(count):
            sender.say(receiver)
            receiver.run()
        return calls(receiver)[0]

    receiver.rx.want_no_calls()
    assert hear(10) == 0
    receiver.rx.want_calls()
    assert hear(3) == 0
    assert hear(1) == 1


def test_what_comes_over_a_wire_after_the_call_was_wanted_counts(join: Join) -> None:
    sender, receiver = join(), join(coalesce_us=LONG, coalesce_packets=4)
    receiver.offer(32)
    sender.say(receiver)
    receiver.run()
    receiver.rx.want_no_calls()
    for number in range(3):
        assert calls(receiver)[0] == 0, number
        sender.say(receiver)
        receiver.run()
    assert calls(receiver)[0] == 1


# --- a worker that sleeps ----------------------------------------------------------------------------


class Sleeper:
    """Queue pairs on the echo port, with a call descriptor for each transmit ring."""

    def __init__(self, pairs: int, coalesce_us: int) -> None:
        size = 4 << 20
        self.memory = os.memfd_create("guest")
        os.ftruncate(self.memory, size)
        self.window = Window([(GUEST_BASE, 0x7F0000000000, size, self.memory, 0)], bounce_frames=8)
        counter_fd = os.memfd_create("counters")
        self.counters = Counters(counter_fd, pairs)
        os.close(counter_fd)
        self.kicks = [os.eventfd(0, os.EFD_NONBLOCK) for _ in range(pairs)]
        self.calls = [os.eventfd(0, os.EFD_NONBLOCK) for _ in range(pairs)]
        self.rx, self.tx, self.pairs = [], [], []
        for i in range(pairs):
            self.rx.append(Ring(self.window, 0x8000 * i, receive=True, kick_fd=self.kicks[i]))
            self.tx.append(
                Ring(
                    self.window,
                    0x8000 * i + 0x4000,
                    receive=False,
                    kick_fd=os.dup(self.kicks[i]),
                    call_fd=self.calls[i],
                )
            )
            self.pairs.append(
                QueuePair(
                    self.window,
                    EchoPort(),
                    self.rx[i].device,
                    self.tx[i].device,
                    counters=self.counters,
                    index=i,
                    coalesce_us=coalesce_us,
                )
            )
            self.pairs[i].enable(rx=True, tx=True)

    def send(self, i: int) -> None:
        self.rx[i].offer((RECEIVE, 1600))
        self.tx[i].offer((SEND, 72))
        os.eventfd_write(self.kicks[i], 1)

    def called(self, i: int) -> bool:
        """Wait for a call; give up after long enough."""
        readable, _, _ = select.select([self.calls[i]], [], [], 20)
        return bool(readable) and os.eventfd_read(self.calls[i]) > 0

    def count(self, what: str, i: int = 0) -> int:
        value: int = decode(self.counters.read())[i]["worker"][what]  # type: ignore[literal-required]
        return value


@pytest.mark.parametrize("poll_us", [0, 50])
def test_a_worker_that_sleeps_wakes_up_for_a_call_alone(poll_us: int) -> None:
    guest = Sleeper(1, coalesce_us=20_000)
    with working(guest.pairs[0], poll_us=poll_us):
        for _ in range(3):
            before = time.monotonic_ns()
            guest.send(0)
            assert guest.called(0)
            assert time.monotonic_ns() - before >= 20_000_000
    assert guest.count("tx_calls") == 3
    assert guest.count("tx_calls") < guest.count("sleeps") + 3


def test_calls_of_an_idle_pair_are_made_while_another_is_busy() -> None:
    guest = Sleeper(2, coalesce_us=1000)
    with working(*guest.pairs, poll_us=1_000_000):
        guest.send(1)
        sent = 0

        def idle_was_called() -> bool:
            nonlocal sent
            guest.send(0)
            sent += 1
            wait_until(lambda: len(guest.tx[0].used()) == sent)
            return guest.count("tx_calls", 1) == 1

        wait_until(idle_was_called)
    assert 0 < guest.count("tx_calls") <= sent
