"""The compiled half of the tap port, with a socket in place of the interface: it carries frames, too."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pty
import socket
import struct
import tty
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guestwire.datapath.segmentation import segment
from guestwire.datapath.tap import TapPort
from guestwire.virtio.features import Feature
from unit.datapath import requests
from unit.datapath.memory import BUFFERS, GUEST_BASE, Machine

LARGE = (
    Feature.VIRTIO_NET_F_GUEST_CSUM
    | Feature.VIRTIO_NET_F_GUEST_TSO4
    | Feature.VIRTIO_NET_F_CSUM
    | Feature.VIRTIO_NET_F_HOST_TSO4
)
NEEDS_CSUM, DATA_VALID, TCPV4, UDP_L4 = 1, 2, 1, 5
LONGEST = 65557
GAP = 64  # bytes between buffers that belong to nobody
PAINT = b"\xaa"
PLAIN = bytes(12)
SEGMENTED = struct.pack("<BBHHHHH", NEEDS_CSUM, TCPV4, 54, 1448, 34, 16, 0)


@dataclass
class Guest:
    """A guest on one end of a pair of sockets."""

    machine: Machine
    port: TapPort
    peer: socket.socket
    near: socket.socket
    chains: dict[int, list[tuple[int, int]]] = field(default_factory=dict)
    free: int = GUEST_BASE + BUFFERS
    gaps: list[int] = field(default_factory=list)
    taken: int = 0

    def offer(self, *lengths: int) -> int:
        """Offer a receive buffer in pieces of these lengths."""
        pieces = []
        for length in lengths:
            self.machine.write(self.free, PAINT * (length + GAP))
            pieces.append((self.free, length))
            self.gaps.append(self.free + length)
            self.free += length + GAP
        head = self.machine.rx.offer(*pieces)
        self.chains[head] = pieces
        return head

    def arrive(self, frame: bytes, header: bytes = PLAIN) -> None:
        self.peer.send(header + frame)

    def received(self) -> list[tuple[bytes, bytes, int]]:
        """The frames that the guest has got since the last time: header, bytes, number of buffers."""
        used = self.machine.rx.used()[self.taken :]
        self.taken += len(used)
        frames = []
        while used:
            (buffers,) = struct.unpack("<H", self.bytes_of(*used[0])[10:12])
            assert 1 <= buffers <= len(used)
            whole = b"".join(self.bytes_of(*element) for element in used[:buffers])
            for head, length in used[: buffers - 1]:
                assert length == sum(piece for _, piece in self.chains[head])
            frames.append((whole[:12], whole[12:], buffers))
            used = used[buffers:]
        return frames

    def bytes_of(self, head: int, length: int) -> bytes:
        data = b"".join(self.machine.read(address, piece) for address, piece in self.chains[head])
        return data[:length]

    def check_gaps(self) -> None:
        assert all(self.machine.read(gap, GAP) == PAINT * GAP for gap in self.gaps)

    def drops(self, direction: str) -> dict[str, int]:
        return self.machine.counted()[direction]["drops"]  # type: ignore[literal-required,no-any-return]


@contextlib.contextmanager
def guest(*, mergeable: bool = True, features: Feature = LARGE, longest: int = LONGEST) -> Iterator[Guest]:
    near, peer = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    near.setblocking(False)
    for end in (near, peer):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    port = TapPort(near.fileno(), longest_frame=1522, longest_received=longest)
    machine = Machine(port, mergeable=mergeable, offloads=int(features))
    try:
        yield Guest(machine, port, peer, near)
    finally:
        machine.close()
        near.close()
        peer.close()


def frame_of(number: int, length: int) -> bytes:
    return bytes((number * 31 + i) % 251 for i in range(length))


# --- receiving ---------------------------------------------------------------------------------------------

lengths = st.one_of(st.integers(1, 20), st.integers(1, 3000))
events = st.lists(
    st.one_of(
        st.tuples(st.just("offer"), st.lists(lengths, min_size=1, max_size=4)),
        st.tuples(st.just("arrive"), st.integers(14, 9000)),
        st.tuples(st.just("run"), st.just(0)),
    ),
    max_size=40,
)


@settings(deadline=None, max_examples=200)
@given(events=events, mergeable=st.booleans(), longest=st.sampled_from([1522, LONGEST]))
def test_frames_arrive_whole_and_in_order_or_are_dropped(
    events: list[tuple[str, int | list[int]]], mergeable: bool, longest: int
) -> None:
    with guest(mergeable=mergeable, longest=longest) as g:
        sent: list[bytes] = []
        got: list[tuple[bytes, bytes, int]] = []
        descriptors = 0
        for event, value in events:
            if isinstance(value, list):
                descriptors += len(value)
                if descriptors <= 64:
                    g.offer(*value)
            elif event == "arrive":
                sent.append(frame_of(len(sent), value))
                g.arrive(sent[-1], SEGMENTED if value > 1522 else PLAIN)
            else:
                g.machine.run()
        g.machine.run()
        got = g.received()
        g.check_gaps()
        places = [sent.index(frame) for _, frame, _ in got]
        assert places == sorted(set(places))
        for header, frame, buffers in got:
            assert header[:10] == (SEGMENTED if len(frame) > 1522 else PLAIN)[:10]
            assert mergeable or buffers == 1
        unread = 0
        with contextlib.suppress(BlockingIOError):
            while g.near.recv(1 << 17):
                unread += 1
        g.port.close()
        waited = g.drops("rx").get("no_buffers", 0)
        assert waited <= 1
        assert len(got) + g.drops("rx").get("too_long", 0) + waited + unread == len(sent)
        counted = g.machine.counted()["rx"]
        assert counted["frames"] == len(got)
        assert counted["direct_frames"] + sum(counted["copied_frames"].values()) == len(got)
        assert counted["gso_frames"] == sum(len(frame) > 1522 for _, frame, _ in got)


def test_the_rest_of_a_frame_waits_for_buffers() -> None:
    with guest() as g:
        frame = frame_of(1, 5000)
        g.offer(1000)
        g.arrive(frame, SEGMENTED)
        g.arrive(frame[:100])
        g.machine.run()
        assert g.received() == []
        for _ in range(3):
            g.offer(1000)
            g.machine.run()
            assert g.received() == []
        for _ in range(3):
            g.offer(1000)
        g.machine.run()
        (large, small) = g.received()
        assert large == (SEGMENTED[:10] + b"\6\0", frame, 6)
        assert small == (PLAIN[:10] + b"\1\0", frame[:100], 1)
        counted = g.machine.counted()["rx"]
        assert counted["copied_frames"] == {"few_buffers": 1}
        assert counted["copied_bytes"] == 5000 - 988
        assert counted["direct_frames"] == 1


@pytest.mark.parametrize(
    ("header", "accepted", "expected"),
    [
        (PLAIN, LARGE, PLAIN),
        (bytes([DATA_VALID]), LARGE, bytes([DATA_VALID])),
        (bytes([DATA_VALID]), Feature(0), PLAIN),
        (SEGMENTED, LARGE, SEGMENTED),
        (SEGMENTED, LARGE & ~Feature.VIRTIO_NET_F_GUEST_TSO4, None),
        (SEGMENTED[:1] + b"\x81" + SEGMENTED[2:], LARGE, None),
        (
            SEGMENTED[:1] + b"\x81" + SEGMENTED[2:],
            LARGE | Feature.VIRTIO_NET_F_GUEST_ECN,
            SEGMENTED[:1] + b"\x81",
        ),
        (SEGMENTED[:1] + bytes([UDP_L4]), LARGE | Feature.VIRTIO_NET_F_GUEST_USO4, None),
        (SEGMENTED[:1] + bytes([3]), LARGE, None),
        (bytes([NEEDS_CSUM]), Feature.VIRTIO_NET_F_GUEST_CSUM, bytes([NEEDS_CSUM])),
        (bytes([NEEDS_CSUM]), Feature(0), None),
    ],
)
def test_a_guest_is_told_only_what_it_accepted(
    header: bytes, accepted: Feature, expected: bytes | None
) -> None:
    with guest(features=accepted) as g:
        g.offer(2000)
        g.arrive(frame_of(0, 1000), header.ljust(12, b"\0"))
        g.machine.run()
        if expected is None:
            assert g.received() == []
            assert g.drops("rx") == {"not_negotiated": 1}
        else:
            ((told, _, _),) = g.received()
            assert told[:2] == expected.ljust(2, b"\0")[:2]


@pytest.mark.parametrize(
    ("length", "reason"), [(0, "too_short"), (13, "too_short"), (LONGEST + 1, "too_long")]
)
def test_what_is_no_frame_is_dropped(length: int, reason: str) -> None:
    with guest() as g:
        for _ in range(50):
            g.offer(2000)
        g.arrive(bytes(length))
        g.arrive(bytes(14))
        g.machine.run()
        assert [len(frame) for _, frame, _ in g.received()] == [14]
        assert g.drops("rx") == {reason: 1}


@pytest.mark.parametrize("earlier", [0, 1, 2])
def test_a_buffer_without_room_for_a_header(earlier: int) -> None:
    with guest() as g:
        for _ in range(earlier):
            g.offer(2000)
        g.offer(11)
        for _ in range(earlier + 1):
            g.arrive(bytes(14))
        g.machine.run()
        assert len(g.received()) == earlier
        assert g.drops("rx") == {"too_long": 1}
        g.check_gaps()


def test_a_legacy_guest_gets_ten_bytes() -> None:
    near, peer = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    port = TapPort(near.fileno(), longest_frame=1522, longest_received=1522)
    machine = Machine(port, header_size=10)
    address = GUEST_BASE + BUFFERS
    machine.rx.offer((address, 2000))
    peer.send(bytes(10) + frame_of(3, 60))
    machine.run()
    assert machine.rx.used() == [(0, 70)]
    assert machine.read(address, 70) == bytes(10) + frame_of(3, 60)
    machine.write(address + 4096, bytes(10) + frame_of(4, 60))
    machine.tx.offer((address + 4096, 70))
    machine.run()
    assert peer.recv(100) == bytes(10) + frame_of(4, 60)
    machine.close()
    near.close()
    peer.close()


# --- sending -----------------------------------------------------------------------------------------------


def send(g: Guest, data: bytes, *lengths: int, gap: int = GAP) -> None:
    """Make a frame with its header available, in pieces of these lengths; the rest follows in one."""
    pieces, at = [], 0
    for length in (*lengths, len(data) - sum(lengths)):
        g.machine.write(g.free, data[at : at + length])
        pieces.append((g.free, length))
        g.free += length + gap
        at += length
    g.machine.tx.offer(*pieces)


@pytest.mark.parametrize("lengths", [(), (12,), (1,), (5, 7, 20), (11, 2), (1,) * 40])
def test_a_frame_leaves_as_it_is_however_it_lies(lengths: tuple[int, ...]) -> None:
    with guest() as g:
        header, frame = requests.tcp(1346, 1448)
        assert header.pack() == SEGMENTED
        send(g, SEGMENTED + frame, *lengths)
        g.machine.run()
        assert g.peer.recv(1 << 17) == SEGMENTED + frame
        counted = g.machine.counted()["tx"]
        assert (counted["frames"], counted["gso_frames"], counted["direct_frames"]) == (1, 1, 1)


def test_the_kernel_gets_no_checksum_to_write_but_that_of_the_transport_header() -> None:
    with guest() as g:
        header, frame = requests.tcp(100)
        send(g, header.pack() + frame)
        g.machine.run()
        assert g.peer.recv(1 << 17) == header.pack() + frame
        # The IPv4 header's own, or an address in it; another place in the TCP header; another header size.
        for start, offset in ((14, 10), (14, 12), (33, 17), (34, 14)):
            for gso_type in (0, TCPV4):
                forged = dataclasses.replace(
                    header, csum_start=start, csum_offset=offset, gso_type=gso_type, gso_size=50
                )
                send(g, forged.pack() + frame)
        g.machine.run()
        assert g.drops("tx") == {"bad_offload": 8}
        # What is inside a tunnel is computed here: nothing is left for the kernel to do.
        header, frame = requests.in_a_tunnel()
        send(g, header.pack() + frame)
        g.machine.run()
        assert g.peer.recv(1 << 17) == PLAIN + segment(header.pack(), frame)[0]
        assert g.machine.counted()["tx"]["checksums"] == 1


def test_a_header_that_asks_for_nothing_says_nothing() -> None:
    with guest() as g:
        send(g, bytes([0, 0]) + b"\xff" * 10 + frame_of(1, 60))
        g.machine.run()
        assert g.peer.recv(1 << 17) == PLAIN + frame_of(1, 60)


def test_frames_wait_while_the_kernel_takes_none() -> None:
    with guest() as g:
        filler = 0
        with contextlib.suppress(BlockingIOError):
            while True:
                g.near.send(b"x")
                filler += 1
        for number in range(3):
            send(g, PLAIN + frame_of(number, 60))
        g.machine.run()
        assert g.machine.tx.used() == []
        assert g.machine.counted()["tx"]["frames"] == 0
        for _ in range(filler):
            g.peer.recv(10)
        g.machine.run()
        assert [g.peer.recv(100) for _ in range(3)] == [PLAIN + frame_of(number, 60) for number in range(3)]
        assert len(g.machine.tx.used()) == 3


def test_what_nobody_can_get_is_counted() -> None:
    with guest() as g:
        g.peer.close()
        send(g, PLAIN + frame_of(1, 60))
        g.machine.run()
        assert g.drops("tx") == {"unsent": 1}
        assert len(g.machine.tx.used()) == 1


def test_a_file_that_does_not_know_nowait() -> None:
    master, slave = pty.openpty()
    tty.setraw(slave)
    os.set_blocking(slave, False)
    port = TapPort(slave, longest_frame=1522, longest_received=1522)
    machine = Machine(port)
    address = GUEST_BASE + BUFFERS
    machine.rx.offer((address, 2000))
    machine.run()
    os.write(master, PLAIN + frame_of(1, 60))
    machine.run()
    assert machine.read(address, 72) == PLAIN[:10] + b"\1\0" + frame_of(1, 60)
    machine.write(address + 4096, PLAIN + frame_of(2, 60))
    machine.tx.offer((address + 4096, 72))
    machine.run()
    assert os.read(master, 100) == PLAIN + frame_of(2, 60)
    machine.close()
    os.close(master)
    os.close(slave)


def test_a_closed_port_leaves_its_file_alone() -> None:
    with guest() as g:
        g.offer(2000)
        g.port.close()
        g.arrive(bytes(60))
        g.machine.run()
        assert g.received() == []
        assert g.near.recv(100) == PLAIN + bytes(60)


@pytest.mark.parametrize("direction", ["rx", "tx"])
def test_memory_that_is_gone_is_noticed_where_the_kernel_finds_it_missing(direction: str) -> None:
    with guest() as g:
        if direction == "rx":
            g.offer(2000)
        else:
            send(g, PLAIN + frame_of(1, 1000), 12, gap=4096)
        header_page = BUFFERS if direction == "rx" else BUFFERS + 4096
        os.ftruncate(g.machine.fd, header_page)
        if direction == "rx":
            g.arrive(bytes(60))
        g.machine.run()
        assert g.machine.window.fault is not None
        assert g.drops(direction) == ({"no_buffers": 1} if direction == "rx" else {"unsent": 1})
