"""The pcap port: what is read, what is written, what is refused."""

from __future__ import annotations

import errno
import os
import struct
from array import array
from collections.abc import Iterator
from pathlib import Path

import pytest

from guestwire.datapath.pcap import PcapPort
from guestwire.datapath.segmentation import segment
from guestwire.ports.capture_file import read
from guestwire.virtio.features import Feature
from unit.datapath import requests
from unit.datapath.memory import BUFFERS, GUEST_BASE, Machine

SEND = GUEST_BASE + BUFFERS
RECEIVE = GUEST_BASE + 2 * BUFFERS


def capture(*frames: bytes, order: str = "<", magic: int = 0xA1B2C3D4, linktype: int = 1) -> bytes:
    header = struct.pack(order + "IHHiIII", magic, 2, 4, 0, 0, 65535, linktype)
    records = (struct.pack(order + "IIII", 1, 2, len(f), len(f)) + f for f in frames)
    return header + b"".join(records)


def sends(data: bytes, *, repeat: bool = False) -> PcapPort:
    found = read(data)
    return PcapPort(found.data, found.places, repeat=repeat)


def records(data: bytes) -> Iterator[bytes]:
    at = 24
    while at < len(data):
        (length,) = struct.unpack_from("<I", data, at + 8)
        yield data[at + 16 : at + 16 + length]
        at += 16 + length


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("magic", [0xA1B2C3D4, 0xA1B23C4D])
def test_frames_of_the_input_arrive_in_order(order: str, magic: int) -> None:
    frames = [bytes([i]) * (60 + i) for i in range(100)]
    guest = Machine(sends(capture(*frames, order=order, magic=magic)))
    for i, frame in enumerate(frames):
        guest.rx.offer((RECEIVE + 2048 * (i % 64), 2048))
        guest.run()
        assert guest.read(RECEIVE + 2048 * (i % 64) + 12, len(frame)) == frame
    assert guest.counted()["rx"]["frames"] == len(frames)
    guest.close()


def test_a_repeated_input_begins_anew_and_loses_nothing() -> None:
    frames = [bytes([i]) * (60 + i) for i in range(7)]
    guest = Machine(sends(capture(*frames), repeat=True))
    delivered = 0
    for burst in (1, 3, 20, 64, 5):
        for i in range(burst):
            guest.rx.offer((RECEIVE + 2048 * i, 2048))
        guest.run()
        for i in range(burst):
            frame = frames[delivered % len(frames)]
            assert guest.read(RECEIVE + 2048 * i + 12, len(frame)) == frame
            delivered += 1
        # Without buffers nothing moves, and no frame is counted or skipped meanwhile.
        assert guest.pair.step() == 0
    assert len(guest.rx.used()) == delivered
    counted = guest.counted()["rx"]
    assert counted["frames"] == counted["copied_frames"]["port_copies"] == delivered
    assert counted["bytes"] == counted["copied_bytes"]
    assert counted["bytes"] == sum(len(frames[i % len(frames)]) for i in range(delivered))
    assert counted["drops"] == {}
    guest.close()


def test_an_input_that_has_no_frames_is_at_rest_when_repeated() -> None:
    guest = Machine(PcapPort(capture(), array("Q"), repeat=True))
    guest.rx.offer((RECEIVE, 2048))
    guest.run()
    assert guest.pair.step() == 0
    assert guest.counted()["rx"]["frames"] == 0
    guest.close()


def test_a_repeated_input_that_no_buffer_holds_ends_each_burst() -> None:
    guest = Machine(sends(capture(bytes(1500), bytes(1400)), repeat=True), mergeable=False)
    guest.rx.offer((RECEIVE, 512))
    guest.run()
    counted = guest.counted()["rx"]
    assert counted["frames"] == 0
    assert counted["drops"]["too_long"] > 0
    assert guest.rx.used() == []
    guest.close()


def test_a_frame_is_found_behind_many_that_no_buffer_holds() -> None:
    long, short = bytes(1500), bytes(range(100))
    guest = Machine(sends(capture(*[long] * 300, short)), mergeable=False)
    guest.rx.offer((RECEIVE, 512))
    assert guest.pair.step() > 0
    assert guest.counted()["rx"]["drops"]["too_long"] == 64  # a pass, and others have their turn
    guest.run()
    assert guest.counted()["rx"]["drops"]["too_long"] == 300
    assert guest.read(RECEIVE + 12, 100) == short
    guest.close()


def test_what_the_guest_sends_is_written_and_can_be_read_back(tmp_path: Path) -> None:
    path = tmp_path / "out.pcap"
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    guest = Machine(PcapPort(output_fd=fd))
    frames = [bytes([i]) * (60 + i) for i in range(30)]
    for i, frame in enumerate(frames):
        guest.write(SEND + 2048 * i, bytes(12) + frame)
        guest.tx.offer((SEND + 2048 * i, 12), (SEND + 2048 * i + 12, len(frame)))
    guest.run()
    guest.close()
    os.close(fd)
    again = Machine(sends(path.read_bytes()))
    for i, frame in enumerate(frames):
        again.rx.offer((RECEIVE + 2048 * (i % 64), 2048))
        again.run()
        assert again.read(RECEIVE + 2048 * (i % 64) + 12, len(frame)) == frame
    again.close()


def test_a_full_disk_is_counted_and_does_not_stop_the_guest() -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    sink = os.memfd_create("sink")
    port = PcapPort(output_fd=sink)
    os.dup2(full, sink)
    guest = Machine(port)
    for _ in range(3):
        guest.write(SEND, bytes(72))
        guest.tx.offer((SEND, 72))
        guest.run()
    assert port.output_error == errno.ENOSPC
    assert guest.tx.used() == [(0, 0), (1, 0), (2, 0)]
    assert guest.counted()["tx"]["drops"] == {"no_receiver": 2}
    guest.close()
    os.close(full)
    os.close(sink)


@pytest.mark.parametrize(
    "places", [(0, 61), (60, 1), (61, 1), (1 << 63, 60), (10, (1 << 64) - 1), (0, 0), (0, 60, 0, 61)]
)
def test_places_outside_of_the_file_are_refused(places: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="lies outside of the file"):
        PcapPort(bytes(60), array("Q", places))


def test_large_frames_are_written_as_they_are_on_a_wire(tmp_path: Path) -> None:
    path = tmp_path / "out.pcap"
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    offloads = Feature.VIRTIO_NET_F_CSUM | Feature.VIRTIO_NET_F_HOST_TSO4 | Feature.VIRTIO_NET_F_HOST_USO
    guest = Machine(PcapPort(output_fd=fd), offloads=int(offloads))
    large, single = requests.tcp(5000, 1448), requests.tcp(100)
    refused, bytewise = requests.tcp(5000, 1448, version=6), requests.udp(60000, 1)
    sent = [large, refused, single, bytewise]
    for number, (header, frame) in enumerate(sent):
        guest.write(SEND + 65536 * number, header.pack() + frame)
        guest.tx.offer((SEND + 65536 * number, 12 + len(frame)))
    guest.run()
    counted = guest.counted()["tx"]
    guest.close()
    os.close(fd)
    taken = [large, single, bytewise]
    wire = [wire for header, frame in taken for wire in segment(header.pack(), frame)]
    assert list(records(path.read_bytes())) == wire
    assert counted["drops"] == {"not_negotiated": 1}
    assert counted["frames"] == counted["copied_frames"]["port_copies"] == 3
    assert (counted["gso_frames"], counted["segments"], counted["checksums"]) == (2, 60004, 60005)
