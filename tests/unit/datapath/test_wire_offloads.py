"""Frames with offloads on a wire: passed on to a guest that accepts them, else done by us, for each guest."""

from __future__ import annotations

import dataclasses

import pytest

from guestwire.datapath.segmentation import segment
from guestwire.virtio.features import Feature
from unit.datapath import requests
from unit.datapath.wired import EVERYBODY, RECEIVE, SEND, SENDING, Guest, Join, join, mac

__all__ = ["join"]

CSUM = Feature.VIRTIO_NET_F_GUEST_CSUM
TSO4, TSO6 = Feature.VIRTIO_NET_F_GUEST_TSO4, Feature.VIRTIO_NET_F_GUEST_TSO6
USO4, USO6 = Feature.VIRTIO_NET_F_GUEST_USO4, Feature.VIRTIO_NET_F_GUEST_USO6
ECN = Feature.VIRTIO_NET_F_GUEST_ECN
RECEIVING = CSUM | TSO4 | TSO6 | USO4 | USO6 | ECN

REQUESTS = {
    "checksum": (requests.tcp(100), CSUM),
    "tso4": (requests.tcp(5000, 1448), CSUM | TSO4),
    "tso6": (requests.tcp(5000, 1428, version=6), CSUM | TSO6),
    "uso4": (requests.udp(5000, 1472), CSUM | USO4),
    "uso6": (requests.udp(5000, 1452, version=6), CSUM | USO6),
}
LARGE = 8192


def for_guest(guest: Guest, data: bytes) -> bytes:
    """The frame with the guest's address as its destination, from somebody who is not on the wire."""
    return guest.address + mac(77) + data[12:]


def know(sender: Guest, receiver: Guest) -> None:
    sender.network.learn(receiver.number, receiver.address, 300)


@pytest.mark.parametrize("name", REQUESTS)
@pytest.mark.parametrize("sizes", [(12, 12), (12, 10), (10, 12), (10, 10)])
def test_what_the_receiver_accepts_is_passed_on(join: Join, name: str, sizes: tuple[int, int]) -> None:
    (header, data), accepted = REQUESTS[name]
    a = join(features=SENDING, header_size=sizes[0])
    b = join(features=accepted, header_size=sizes[1])
    know(a, b)
    b.offer(1, LARGE)
    data = for_guest(b, data)
    a.send(data, header)
    a.run()
    expected = (header.pack()[:10] + b"\x01\x00")[: sizes[1]]
    assert b.heard_with_headers(LARGE) == [(expected, data)]
    large = int(header.gso_type != 0)
    sent, received = a.counted()["tx"], b.counted()["rx"]
    assert (sent["gso_frames"], received["gso_frames"]) == (large, large)
    assert (sent["checksums"], received["checksums"]) == (0, 1)


@pytest.mark.parametrize("name", REQUESTS)
@pytest.mark.parametrize("sizes", [(12, 12), (12, 10), (10, 12), (10, 10)])
def test_what_it_does_not_accept_is_done(join: Join, name: str, sizes: tuple[int, int]) -> None:
    (header, data), accepted = REQUESTS[name]
    (*_, lacking) = accepted
    # What the sender accepts itself does not matter.
    a = join(features=SENDING | RECEIVING, header_size=sizes[0])
    b = join(features=RECEIVING & ~lacking, header_size=sizes[1])
    know(a, b)
    b.offer(8)
    data = for_guest(b, data)
    a.send(data, header)
    a.run()
    wanted = segment(header.pack(), data)
    plain = (bytes(10) + b"\x01\x00")[: sizes[1]]
    assert b.heard_with_headers() == [(plain, wire) for wire in wanted]
    sent, received = a.counted()["tx"], b.counted()["rx"]
    assert (received["frames"], received["gso_frames"], received["checksums"]) == (len(wanted), 0, 0)
    assert sent["segments"] == (len(wanted) if header.gso_type else 0)
    assert sent["checksums"] == len(wanted)


def test_everybody_gets_it_as_they_accept_it(join: Join) -> None:
    header, data = requests.tcp(5000, 1448)
    data = EVERYBODY + data[6:]
    a = join(features=SENDING)
    whole = join(features=RECEIVING)
    spread = join(features=RECEIVING, mergeable=True)
    done = join()
    slow = join()
    whole.offer(1, LARGE)
    spread.offer(6, 1024)
    done.offer(8)
    slow.offer(2)
    a.send(data, header)
    a.run()
    wanted = segment(header.pack(), data)
    assert whole.heard(LARGE) == [data]
    (first, start), *rest = spread.heard_with_headers(1024)
    assert first == header.pack()[:10] + b"\x05\x00"
    assert start + b"".join(head + tail for head, tail in rest) == data
    assert done.heard() == wanted
    # It does not wait for whoever is slow, and says how much is missing.
    assert slow.heard() == wanted[:2]
    assert slow.counted()["rx"]["drops"] == {"no_buffers": len(wanted) - 2}
    assert len(a.tx.used()) == 1


def test_big_packets_over_the_pages_of_one_chain(join: Join) -> None:
    """A driver without mergeable buffers that accepts large frames posts chains of pages."""
    header, data = requests.tcp(60_000, 1448)
    a, b = join(features=SENDING), join(features=RECEIVING)
    know(a, b)
    data = for_guest(b, data)
    pieces = [(RECEIVE, 12)] + [(RECEIVE + 4096 * n, 4096) for n in range(1, 17)]
    b.rx.offer(*pieces)
    a.send(data, header)
    a.run()
    ((_, length),) = b.rx.used()
    assert length == 12 + len(data)
    assert b.read(RECEIVE + 4096, len(data)) == data
    assert b.read(RECEIVE, 10) == header.pack()[:10]


def test_segments_wait_and_none_is_lost_or_sent_twice(join: Join) -> None:
    header, data = requests.tcp(5000, 500)
    a, b = join(features=SENDING, wait_us=1_000_000), join()
    know(a, b)
    data = for_guest(b, data)
    wanted = segment(header.pack(), data)
    a.send(data, header)
    for number in range(len(wanted)):
        b.offer()
        a.run()
        # What the guest does to the frame's headers meanwhile is too late.
        a.write(SEND, b"\xff" * 64)
        assert len(a.tx.used()) == (number == len(wanted) - 1)
    assert b.heard() == wanted
    assert b.counted()["rx"]["drops"] == {}


def test_the_rest_of_a_frame_is_dropped_when_its_time_is_over(join: Join) -> None:
    header, data = requests.tcp(5000, 500)
    a, b = join(features=SENDING, wait_us=1), join()
    know(a, b)
    data = for_guest(b, data)
    b.offer(3)
    a.send(data, header)
    while not a.tx.used():
        a.pair.step()
    assert b.heard() == segment(header.pack(), data)[:3]
    assert b.counted()["rx"]["drops"] == {"no_buffers": 7}
    b.offer()
    a.say(b)
    assert len(b.heard()) == 1


@pytest.mark.parametrize("closes", [True, False])
def test_the_end_of_one_side_in_the_middle_of_a_frame(join: Join, closes: bool) -> None:
    header, data = requests.tcp(5000, 500)
    a, b = join(features=SENDING, wait_us=1_000_000), join()
    know(a, b)
    b.offer(4)
    a.send(for_guest(b, data), header)
    a.run()
    assert a.tx.used() == []
    if closes:
        b.leave()
        a.run()
    else:
        # Of a frame that has begun to arrive nothing is left to be sent once more.
        a.leave()
        assert a.tx.device.base == 1
        assert b.counted()["rx"]["drops"] == {"no_buffers": 6}
    assert len(a.tx.used()) == 1
    assert b.rx.device.in_flight == 0


def test_a_frame_that_waits_as_it_is_is_made_for_who_takes_it_at_last(join: Join) -> None:
    """The receiver comes back with a driver that accepts less."""
    header, data = requests.tcp(5000, 1448)
    a, b = join(features=SENDING, wait_us=1_000_000), join(features=RECEIVING)
    know(a, b)
    data = for_guest(b, data)
    a.send(data, header)
    a.pair.step()
    b.leave()
    later = join()
    later.network.learn(later.number, b.address, 300)
    later.offer(8)
    a.run()
    assert later.heard() == segment(header.pack(), data)


def test_more_segments_than_a_burst_has_buffers(join: Join) -> None:
    header, data = requests.udp(1000, 10)
    a, b = join(features=SENDING, wait_us=1_000_000), join()
    know(a, b)
    data = for_guest(b, data)
    wanted = segment(header.pack(), data)
    a.send(data, header)
    got: list[bytes] = []
    for _ in range(2):
        b.offer(50, 128)
        a.run()
        got += b.heard(128)
    assert got == wanted
    assert len(a.tx.used()) == 1


def test_headers_that_contradict_themselves_are_dropped(join: Join) -> None:
    header, data = requests.tcp(5000, 1448)
    a, b, c = join(features=SENDING), join(features=RECEIVING), join()
    for guest in (b, c):
        guest.offer(4)
    a.send(EVERYBODY + data[6:14] + b"\x55" + data[15:], header)
    a.run()
    assert a.counted()["tx"]["drops"] == {"bad_offload": 1}
    assert (b.heard(), c.heard()) == ([], [])
    d = join()
    d.offer()
    d.send(data, header)
    d.run()
    assert d.counted()["tx"]["drops"] == {"not_negotiated": 1}


def test_no_receiver_gets_a_checksum_to_write_but_that_of_the_transport_header(join: Join) -> None:
    header, data = requests.tcp(100)
    a, b = join(features=SENDING), join(features=RECEIVING)
    know(a, b)
    b.offer(2)
    data = for_guest(b, data)
    # The IPv4 header's own, or an address in it; another place in the TCP header.
    for start, offset in ((14, 10), (14, 12), (33, 17), (34, 14)):
        a.send(data, dataclasses.replace(header, csum_start=start, csum_offset=offset))
    a.run()
    assert b.heard() == []
    assert a.counted()["tx"]["drops"] == {"bad_offload": 4}
    # What is inside a tunnel is computed by us, whatever the receiver accepts.
    header, data = requests.in_a_tunnel()
    data = for_guest(b, data)
    a.send(data, header)
    a.run()
    assert b.heard_with_headers() == [(bytes(10) + b"\x01\x00", segment(header.pack(), data)[0])]
