"""Learning addresses while others change the table: whoever sends is known from its first frame on.

GUESTWIRE_SOAK=1 (``make soak``) makes 10,000 trials.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

import pytest

from guestwire.datapath.network import Network
from unit.datapath.wired import EVERYBODY, Guest, Join, frame, join, mac

__all__ = ["join"]

SOAK = "GUESTWIRE_SOAK" in os.environ
TRIALS = 10_000 if SOAK else 500
SOURCES = 60  # of one guest, so that the two are at it at the same time
CHANGES = 200  # of which none is refused because its member has too many

pytestmark = pytest.mark.timeout(3600 if SOAK else 300)


def together(*works: Callable[[], object]) -> None:
    """Run them in threads, which begin at the same moment."""
    ready = threading.Barrier(len(works))

    def run(work: Callable[[], object]) -> None:
        ready.wait()
        work()

    threads = [threading.Thread(target=run, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_two_guests_that_begin_to_send_at_the_same_time_are_both_learnt() -> None:
    unlearnt = 0
    for _ in range(TRIALS):
        network = Network("race")
        one, other, third = (Guest(network) for _ in range(3))
        for guest in (one, other):
            for number in range(SOURCES):
                guest.send(frame(EVERYBODY, mac(SOURCES * guest.number + number)))
        together(one.run, other.run)
        unlearnt += 2 * SOURCES - len(network.addresses())
        for guest in (one, other, third):
            guest.close()
    assert unlearnt == 0


@pytest.mark.parametrize("secret", [0x9E3779B97F000001, 0xBF58476D1C555555, 0x94D049BB13800003], ids=hex)
def test_addresses_in_a_row_are_learnt_whatever_the_secret(
    monkeypatch: pytest.MonkeyPatch, secret: int
) -> None:
    monkeypatch.setattr(os, "urandom", lambda count: secret.to_bytes(count, "little"))
    network = Network("row")
    number = network.join("guest")
    row = {mac(address): number for address in range(SOURCES)}
    for address in row:
        network.learn(number, address, 300)
    assert network.addresses() == row


def test_one_frame_and_one_announcement_are_enough_while_members_leave(join: Join) -> None:
    """The table is searched for the addresses of a member that leaves, over and over."""
    sender, announced = join(), join()
    network = sender.network
    busy, enough = threading.Event(), threading.Event()
    missed = []

    def come_and_go() -> None:
        while not enough.is_set():
            network.leave(visitor)
            network.members[visitor] = "visitor"
            busy.set()

    visitor = network.join("visitor")
    leaving = threading.Thread(target=come_and_go)
    leaving.start()
    try:
        assert busy.wait(60)
        for number in range(CHANGES):
            source, arrived = mac(1000 + number), mac(2000 + number)
            sender.send(frame(EVERYBODY, source))
            sender.run()
            network.learn(announced.number, arrived, 300)
            known = network.addresses()
            missed += [address for address in (source, arrived) if address not in known]
    finally:
        enough.set()
        leaving.join()
    assert missed == []
