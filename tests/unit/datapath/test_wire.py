"""The wire port: who gets a frame, what waits, and guests that go or misbehave."""

from __future__ import annotations

import os
import threading
import time

import pytest

from guestwire.datapath.network import Network
from guestwire.datapath.queue_pair import QueuePair
from guestwire.datapath.wire import WirePort
from guestwire.virtio.ring_errors import RingError
from unit.datapath.memory import SIZE, Machine
from unit.datapath.wired import (
    EVERYBODY,
    GUEST_BASE,
    RECEIVE,
    SEND,
    SLOT,
    Guest,
    Join,
    frame,
    join,
    mac,
)

__all__ = ["join"]

MOST_ADDRESSES = 256


def drops(guest: Guest, direction: str = "rx") -> dict[str, int]:
    counted: dict[str, int] = guest.counted()[direction]["drops"]  # type: ignore[literal-required]
    return counted


# --- who gets a frame --------------------------------------------------------------------------------


def test_a_frame_arrives_as_it_was_sent_and_is_counted(join: Join) -> None:
    a, b = join(), join()
    b.offer()
    head = a.send(frame(b.address, a.address))
    a.run()
    assert b.heard_with_headers() == [(bytes(10) + b"\x01\x00", frame(b.address, a.address))]
    assert a.tx.used() == [(head, 0)]
    sent, received = a.counted()["tx"], b.counted()["rx"]
    assert (sent["frames"], sent["bytes"]) == (received["frames"], received["bytes"]) == (1, 100)
    assert received["copied_frames"] == {"port_copies": 1}
    assert received["copied_bytes"] == 100
    assert drops(a, "tx") == drops(b) == {}


def test_what_nobody_has_sent_from_goes_to_all_and_then_to_the_one(join: Join) -> None:
    a, b, c = join(), join(), join()
    for guest in (a, b, c):
        guest.offer(4)
    first = a.say(b)
    assert (b.heard(), c.heard()) == ([first], [first])
    answer = b.say(a)
    assert (a.heard(), c.heard()) == ([answer], [])
    second = a.say(b)
    assert (b.heard(), c.heard()) == ([second], [])


@pytest.mark.parametrize("destination", [EVERYBODY, bytes.fromhex("01005e000001")])
def test_a_group_is_everybody_else(join: Join, destination: bytes) -> None:
    a, b, c = join(), join(), join()
    for guest in (a, b, c):
        guest.offer(2)
    data = a.say(destination)
    assert (a.heard(), b.heard(), c.heard()) == ([], [data], [data])


def test_alone_there_is_nobody_to_get_it(join: Join) -> None:
    a = join()
    a.say(EVERYBODY)
    a.say(mac(77))
    assert drops(a, "tx") == {"no_receiver": 2}
    assert len(a.tx.used()) == 2


def test_what_is_for_oneself_comes_from_nowhere_else(join: Join) -> None:
    a, b = join(), join()
    b.offer(2)
    a.say(b)
    a.say(a)
    assert len(b.heard()) == 1
    assert drops(a, "tx") == {"no_receiver": 1}


def test_an_address_moves_to_whoever_sent_from_it_last(join: Join) -> None:
    a, b, c = join(), join(), join()
    for guest in (a, b, c):
        guest.offer(4)
    b.say(a)
    c.send(frame(a.address, b.address))
    c.run()
    for guest in (b, c):
        guest.heard()
    data = a.say(b)
    assert (b.heard(), c.heard()) == ([], [data])


def test_an_address_is_forgotten_after_a_time(join: Join) -> None:
    a, b, c = join(), join(ageing=1), join()
    for guest in (a, b, c):
        guest.offer(4)
    b.say(a)
    assert a.network.addresses() == {b.address: b.number}
    c.heard()
    end = time.monotonic() + 5
    while a.network.addresses() and time.monotonic() < end:
        time.sleep(0.05)
    data = a.say(b)
    assert c.heard() == [data]


def test_an_address_that_is_heard_is_not_forgotten(join: Join) -> None:
    a, b, c = join(), join(ageing=2), join()
    for guest in (a, b, c):
        guest.offer(64)
    b.say(a)
    end = time.monotonic() + 2.5
    while time.monotonic() < end:
        b.say(a)
        time.sleep(0.1)
        assert b.address in a.network.addresses()


def test_a_member_that_leaves_is_forgotten(join: Join) -> None:
    a, b, c = join(), join(), join()
    for guest in (a, c):
        guest.offer(4)
    b.say(a)
    b.close()
    assert a.network.addresses() == {}
    c.heard()
    assert a.say(b) in c.heard()
    assert join().number == b.number


def test_a_source_address_is_checked_in_what_arrives(join: Join) -> None:
    a, b = join(source=mac(1)), join()
    b.offer(2)
    a.send(frame(b.address, mac(9)))
    a.run()
    assert b.heard() == []
    assert drops(a, "tx") == {"source_address": 1}
    assert a.counted()["tx"]["frames"] == 0
    assert a.say(b) in b.heard()


def test_a_claimed_address_is_nobody_elses(join: Join) -> None:
    a, b, c = join(source=mac(1)), join(), join()
    for guest in (a, b, c):
        guest.offer(4)
    c.send(frame(b.address, a.address))
    c.run()
    for guest in (a, b, c):
        guest.heard()
    data = b.say(a)
    assert (a.heard(), c.heard()) == ([data], [])


def test_a_guest_with_many_addresses_pushes_out_nobody_elses(join: Join) -> None:
    a, b, c = join(), join(), join()
    b.say(a)
    for number in range(4 * MOST_ADDRESSES):
        c.send(frame(b.address, mac(1000 + number)))
        c.run()
    known = a.network.addresses()
    assert known[b.address] == b.number
    assert MOST_ADDRESSES - 16 <= sum(member == c.number for member in known.values()) <= MOST_ADDRESSES
    # Nor does it keep others from being heard.
    a.say(b)
    assert a.network.addresses()[a.address] == a.number


def test_an_announced_address_is_known_before_its_guest_sends(join: Join) -> None:
    a, b, c = join(), join(), join()
    c.offer()
    a.network.learn(b.number, b.address, 300)
    a.say(b)
    assert c.heard() == []


def test_queue_pairs_are_spread_over_those_that_are_open(join: Join) -> None:
    a = join(pair=3)
    b = join()
    others = [WirePort(b.network, b.number, pair) for pair in (2, 5)]
    a.network.learn(b.number, b.address, 300)
    b.offer(4)
    # The other two have no buffers: they belong to a machine without a wire.
    spare = Machine(others[0])
    second = QueuePair(spare.window, others[1], spare.rx.device, spare.tx.device, counters=spare.counters)
    second.enable(rx=True, tx=True)
    for port in others:
        port.open()
    # Guest b has pairs 0, 2 and 5: number 3 of a sends to the first of them.
    a.say(b)
    assert len(b.heard()) == 1
    others[0].close()
    # Of 0 and 5, it is now the second's turn, which has no buffers.
    a.say(b)
    assert b.heard() == []
    others[1].close()
    a.say(b)
    assert len(b.heard()) == 1
    spare.close()


# --- what waits --------------------------------------------------------------------------------------


def test_a_frame_waits_for_buffers_and_none_is_lost(join: Join) -> None:
    a, b = join(wait_us=1_000_000), join()
    a.network.learn(b.number, b.address, 300)
    wanted = [frame(b.address, a.address, fill=n) for n in range(40)]
    for data in wanted:
        a.send(data)
    got = []
    for _ in range(40):
        a.run()
        assert len(a.tx.used()) == len(got)
        b.offer()
        a.run()
        got += b.heard()
    assert got == wanted
    assert drops(b) == {}


def test_one_that_waited_in_vain_is_dropped_and_the_next_do_not_wait(join: Join) -> None:
    a, b = join(wait_us=20_000), join()
    a.network.learn(b.number, b.address, 300)
    for _ in range(10):
        a.send(frame(b.address, a.address))
    a.pair.step()
    assert a.tx.used() == []
    began = time.monotonic()
    while len(a.tx.used()) < 10:
        a.pair.step()
        assert time.monotonic() < began + 5
    assert time.monotonic() - began >= 0.015
    assert drops(b) == {"no_buffers": 10}
    assert a.counted()["tx"]["frames"] == 10
    # Buffers make it worth waiting for.
    b.offer()
    a.say(b)
    a.say(b)
    assert len(a.tx.used()) == 11


def test_a_frame_for_everybody_does_not_wait(join: Join) -> None:
    a, b, c = join(wait_us=1_000_000), join(), join()
    c.offer()
    data = a.say(EVERYBODY)
    assert c.heard() == [data]
    assert drops(b) == {"no_buffers": 1}


def test_order_is_kept_behind_a_frame_that_waits(join: Join) -> None:
    a, b, c = join(wait_us=1_000_000), join(), join()
    for guest in (b, c):
        a.network.learn(guest.number, guest.address, 300)
    c.offer(2)
    first, second = frame(b.address, a.address), frame(c.address, a.address)
    a.send(first)
    a.send(second)
    a.run()
    assert c.heard() == []
    b.offer()
    a.run()
    assert (b.heard(), c.heard()) == ([first], [second])


def test_a_receiver_that_goes_lets_nobody_wait(join: Join) -> None:
    a, b = join(wait_us=1_000_000), join()
    a.network.learn(b.number, b.address, 300)
    a.send(frame(b.address, a.address))
    a.run()
    b.leave()
    a.run()
    assert len(a.tx.used()) == 1
    assert drops(a, "tx") == {"no_receiver": 1}


def test_a_disabled_receive_ring_takes_nothing(join: Join) -> None:
    a, b = join(wait_us=1_000_000), join()
    a.network.learn(b.number, b.address, 300)
    b.offer(2)
    b.pair.enable(rx=False, tx=True)
    a.say(b)
    assert b.heard() == []
    assert drops(b) == {"ring_disabled": 1}
    b.pair.enable(rx=True, tx=True)
    assert a.say(b) in b.heard()


def test_a_sender_that_goes_keeps_what_waits(join: Join) -> None:
    a, b = join(wait_us=1_000_000), join()
    a.network.learn(b.number, b.address, 300)
    for _ in range(3):
        a.send(frame(b.address, a.address))
    b.offer()
    a.run()
    a.leave()
    assert a.tx.device.base == 1
    # Nobody is woken who is there no more.
    b.offer(4)
    b.run()
    assert b.rx.device.base == 1


# --- what a guest that misbehaves does to the others -------------------------------------------------


def test_a_broken_ring_is_its_own_guests(join: Join) -> None:
    a, b, c = join(wait_us=1_000_000), join(), join()
    for guest in (b, c):
        a.network.learn(guest.number, guest.address, 300)
        guest.offer()
    b.rx.offer((GUEST_BASE + SIZE, 2048))
    for _ in range(3):
        a.send(frame(b.address, a.address))
    data = a.say(c)
    assert len(b.heard()) == 1
    assert drops(b) == {"ring_disabled": 2}
    assert c.heard() == [data]
    assert b.rx.device.error[0] == RingError.ADDRESS_OUTSIDE_MEMORY
    assert a.rx.device.error is None
    b.pair.step()
    assert b.counted()["worker"]["ring_errors"] == 1


def test_memory_that_shrinks_is_its_own_guests(join: Join) -> None:
    a, b, c = join(), join(), join()
    for guest in (b, c):
        a.network.learn(guest.number, guest.address, 300)
        guest.offer(4)
    os.ftruncate(b.fd, 0)
    a.say(b)
    a.say(b)
    assert b.window.fault
    assert not a.window.fault
    assert "ring_disabled" in drops(b)
    assert a.say(c) in c.heard()


def test_buffers_that_overlap_or_are_too_small(join: Join) -> None:
    a, b = join(), join(mergeable=True)
    a.network.learn(b.number, b.address, 300)
    for _ in range(4):
        b.rx.offer((RECEIVE, 40))
    a.say(b)
    assert [length for _, length in b.rx.used()] == [40, 40, 32]
    b.rx.offer((RECEIVE, 5))
    b.rx.offer((RECEIVE, 5))
    a.say(b, length=1000)
    a.say(b, length=14)
    assert drops(b) == {"too_long": 1} or drops(b) == {"no_buffers": 1}


@pytest.mark.parametrize("first", [12, 13, 18, 23, 24, 25])
@pytest.mark.parametrize("cut", [1, 12, 15, 24, 26])
def test_any_layout_of_either_side(join: Join, first: int, cut: int) -> None:
    a, b = join(), join(mergeable=True)
    data = frame(b.address, a.address)
    content = bytes(12) + data
    a.write(SEND, content[:cut])
    a.write(SEND + SLOT, content[cut:])
    a.tx.offer((SEND, cut), (SEND + SLOT, len(content) - cut))
    b.rx.offer((RECEIVE, first), (RECEIVE + SLOT, 8))
    b.rx.offer((RECEIVE + 2 * SLOT, 200))
    a.run()
    lengths = [length for _, length in b.rx.used()]
    assert lengths == [first + 8, 112 - first - 8]
    got = b.read(RECEIVE, first) + b.read(RECEIVE + SLOT, 8) + b.read(RECEIVE + 2 * SLOT, lengths[1])
    assert got == bytes(10) + b"\x02\x00" + data


# --- who comes and goes ------------------------------------------------------------------------------


def test_a_receiver_that_goes_keeps_its_buffers(join: Join) -> None:
    a, b = join(), join()
    a.network.learn(b.number, b.address, 300)
    b.offer(10)
    for _ in range(3):
        a.say(b)
    b.leave()
    assert len(b.heard()) == 3
    assert b.rx.device.base == 3
    assert b.rx.device.in_flight == 7
    before = b.read(RECEIVE, 10 * SLOT)
    a.say(b)
    assert b.read(RECEIVE, 10 * SLOT) == before
    assert drops(a, "tx") == {"no_receiver": 1}


def test_members_are_numbered_anew_and_no_more_than_there_can_be() -> None:
    network = Network("full")
    numbers = [network.join(str(n)) for n in range(256)]
    assert numbers == list(range(256))
    with pytest.raises(IndexError, match="256 members already"):
        network.join("one too many")
    network.leave(7)
    assert network.join("another") == 7
    with pytest.raises(IndexError):
        WirePort(network, 7, 64)


def test_calls_are_the_receivers_own_workers(join: Join) -> None:
    """A driver is called by the worker of its own guest: its frontend can make nobody else wait."""
    a, b = join(), join()
    a.network.learn(b.number, b.address, 300)
    b.offer(2)
    a.say(b)
    assert b.counted()["worker"]["rx_calls"] == 0
    b.pair.step()
    assert b.counted()["worker"]["rx_calls"] == 1
    b.pair.step()
    assert b.counted()["worker"]["rx_calls"] == 1


def test_guests_come_and_go_under_traffic(join: Join) -> None:
    """Two send all the time to one that comes and goes: frames arrive or are counted, and none twice."""
    senders = [join(wait_us=1000) for _ in range(2)]
    network = senders[0].network
    stop = threading.Event()
    sent = [0, 0]

    def work(number: int) -> None:
        guest = senders[number]
        while not stop.is_set():
            if sent[number] - len(guest.tx.used()) % 65536 < 32:
                guest.send(frame(mac(99), guest.address, fill=sent[number] & 0xFF))
                sent[number] += 1
            guest.pair.step()

    threads = [threading.Thread(target=work, args=(n,)) for n in range(2)]
    for thread in threads:
        thread.start()
    received = 0
    try:
        for _ in range(30):
            guest = Guest(network)
            network.learn(guest.number, mac(99), 300)
            guest.offer(32)
            end = time.monotonic() + 5
            while len(guest.rx.used()) < 20 and time.monotonic() < end:
                guest.pair.step()
            guest.leave()
            frames = guest.heard()
            assert len(frames) >= 20
            assert guest.rx.device.base == len(frames)
            assert guest.counted()["rx"]["frames"] == len(frames)
            assert all(data[:6] == mac(99) and len(set(data[14:])) == 1 for data in frames)
            received += len(frames)
            guest.close()
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    for number, sender in enumerate(senders):
        sender.run()
        assert sender.counted()["tx"]["frames"] <= sent[number]
    assert received >= 600
