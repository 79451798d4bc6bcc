"""The tap port: every byte of every frame, and every header, against the kernel at the other end."""

from __future__ import annotations

import os
from pathlib import Path
from random import Random

import pytest
from scapy.layers.inet import TCP, UDP
from scapy.layers.l2 import Ether
from scapy.packet import Packet

from backend.process import wait_until
from guestwire.ports.simple import SENT_OFFLOADS
from guestwire.testing import BufferLayout, FakeGuest, FrameStream, SharedMemory
from guestwire.testing.frame_stream import ETHERTYPE
from guestwire.virtio.features import GUEST_OFFLOADS, Feature
from net.taps import (
    CHECKSUM,
    MERGEABLE,
    NEEDS_CSUM,
    NOT_MERGEABLE,
    OFFLOADS,
    SENDS,
    TCPV4,
    UDP_L4,
    Header,
    Line,
    line,
    ready,
    require_finished,
    segmented,
)

pytestmark = pytest.mark.root

BURST = 50
LEGACY = NOT_MERGEABLE & ~Feature.VIRTIO_F_VERSION_1
BIG_PACKET = BufferLayout(length=12 + 65550, piece_length=4096)  # as Linux posts it: 17 pages
SMALL = BufferLayout(length=1530)


def to_guest(on: Line, guest: FakeGuest, stream: FrameStream, bursts: int) -> None:
    ready(guest)
    for _ in range(bursts):
        for frame in stream.take(BURST):
            on.host.send(Header(), frame)
        assert guest.pair.receive_stream(stream, BURST)[1:3] == (BURST, 0)


def from_guest(on: Line, guest: FakeGuest, stream: FrameStream, bursts: int) -> None:
    for _ in range(bursts):
        guest.pair.send_stream(stream, BURST)
        for _ in range(BURST):
            header, frame = on.host.receive()
            assert header.gso_type == 0
            stream.accept(frame)


LAYOUTS = {
    "one buffer": BufferLayout(),
    "header apart": BufferLayout(header_apart=True),
    "pieces": BufferLayout(length=1600, piece_length=200, indirect=True),
    "pieces that cut the header": BufferLayout(length=1600, piece_length=7, indirect=True),
}


@pytest.mark.parametrize("features", [MERGEABLE, NOT_MERGEABLE, LEGACY], ids=["mergeable", "alone", "legacy"])
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_frames_each_way(tmp_path: Path, features: Feature, layout: BufferLayout) -> None:
    with (
        line(tmp_path, ethertype=ETHERTYPE) as on,
        FakeGuest(
            on.backend.socket,
            features=features,
            required=Feature(0),
            receive_layout=layout,
            transmit_layout=layout,
            verify_sent=True,
        ) as guest,
    ):
        arriving, leaving = FrameStream((60, 1514)), FrameStream((60, 1514), identifier=1)
        to_guest(on, guest, arriving, 10)
        from_guest(on, guest, leaving, 10)
        counted = on.counters()
        for direction, stream in (("rx", arriving), ("tx", leaving)):
            assert counted[direction]["frames"] == counted[direction]["direct_frames"] == 10 * BURST
            assert counted[direction]["bytes"] == stream.received_bytes
            assert counted[direction]["copied_frames"] == counted[direction]["drops"] == {}
            assert counted[direction]["gso_frames"] == 0
        port = on.state()["port"]
        assert (port["kind"], port["interface"], port["mode"]) == ("tap", "tap0", None)


# --- offloads ----------------------------------------------------------------------------------------------


def test_everything_is_offered_that_linux_can_do(tmp_path: Path) -> None:
    with line(tmp_path) as on, FakeGuest(on.backend.socket, features=MERGEABLE | OFFLOADS) as guest:
        ufo = Feature.VIRTIO_NET_F_HOST_UFO | Feature.VIRTIO_NET_F_GUEST_UFO
        ecn = Feature.VIRTIO_NET_F_HOST_ECN | Feature.VIRTIO_NET_F_GUEST_ECN
        offered = guest.frontend.get_features()
        assert offered & (OFFLOADS | ecn | ufo) == OFFLOADS | ecn
        assert {"VIRTIO_NET_F_HOST_USO", "VIRTIO_NET_F_GUEST_TSO4"} <= set(on.state()["features"])


def test_nothing_is_offered_if_so_told(tmp_path: Path) -> None:
    with (
        line(tmp_path, ",offloads=no") as on,
        FakeGuest(on.backend.socket, features=MERGEABLE | OFFLOADS) as guest,
    ):
        assert guest.frontend.get_features() & OFFLOADS == Feature(0)
        ready(guest)
        header, frame = segmented(TCP, 5000, to_guest=True)
        on.host.send(header, frame)
        assert len(guest.pair.receive().data) == 54 + 1448


@pytest.mark.parametrize("rebound", [False, True], ids=["from the start", "after a rebind"])
def test_what_a_guest_must_understand_is_withheld(tmp_path: Path, rebound: bool) -> None:
    withheld = ",guest-offloads=no"
    layout = BufferLayout(length=65600)
    with (
        line(tmp_path, "" if rebound else withheld) as on,
        FakeGuest(on.backend.socket, features=MERGEABLE | OFFLOADS, transmit_layout=layout) as guest,
    ):
        offered = guest.frontend.get_features()
        assert offered & SENT_OFFLOADS == SENT_OFFLOADS
        assert bool(offered & GUEST_OFFLOADS) is rebound
        ready(guest)
        if rebound:
            on.backend.run("rebind", "guest", f"tap:tap0{withheld}")
            ready(guest)
        header, frame = segmented(TCP, 5000, to_guest=True)
        on.host.send(header, frame)
        assert len(guest.pair.receive().data) == 54 + 1448
        header, frame = segmented(TCP, 5000, to_guest=False)
        guest.pair.send(frame, header=header.encode(12))
        seen, arrived = on.host.receive()
        assert (seen.gso_size, arrived) == (header.gso_size, frame)


@pytest.mark.parametrize("transport", [TCP, UDP])
@pytest.mark.parametrize("length", [3000, 60000])
def test_a_large_frame_from_the_guest_reaches_the_kernel_whole(
    tmp_path: Path, transport: type[Packet], length: int
) -> None:
    if transport is UDP:
        length = min(length, 1448 * 40)
    layout = BufferLayout(length=65600)
    with (
        line(tmp_path) as on,
        FakeGuest(on.backend.socket, features=MERGEABLE | OFFLOADS, transmit_layout=layout) as guest,
    ):
        header, frame = segmented(transport, length, to_guest=False)
        guest.pair.send(frame, header=header.encode(12))
        seen, arrived = on.host.receive()
        assert arrived == frame
        assert (seen.flags & NEEDS_CSUM, seen.gso_type, seen.gso_size) == (
            1,
            header.gso_type,
            header.gso_size,
        )
        guest.pair.drain()
        sent = on.counters()["tx"]
        assert (sent["frames"], sent["gso_frames"], sent["direct_frames"]) == (1, 1, 1)


@pytest.mark.parametrize("transport", [TCP, UDP])
@pytest.mark.parametrize("features", [MERGEABLE, NOT_MERGEABLE], ids=["mergeable", "big packets"])
def test_a_large_frame_reaches_the_guest_whole(
    tmp_path: Path, transport: type[Packet], features: Feature
) -> None:
    mergeable = features is MERGEABLE
    with (
        line(tmp_path) as on,
        FakeGuest(
            on.backend.socket,
            features=features | OFFLOADS,
            receive_layout=SMALL if mergeable else BIG_PACKET,
        ) as guest,
    ):
        ready(guest)
        for length in (2000, 20000, 1448 * 40):
            header, frame = segmented(transport, length, to_guest=True)
            on.host.send(header, frame)
            received = guest.pair.receive()
            assert received.data == frame
            seen = Header.decode(received.header)
            assert (seen.flags, seen.gso_type) == (NEEDS_CSUM, TCPV4 if transport is TCP else UDP_L4)
            assert (seen.gso_size, seen.checksum_start) == (1448, 34)
            assert received.buffers == (-(-(len(frame) + 12) // 1530) if mergeable else 1)
        counted = on.counters()["rx"]
        assert counted["frames"] == counted["gso_frames"] == counted["direct_frames"] == 3
        assert counted["copied_frames"] == counted["drops"] == {}


ACCEPTED = {
    "nothing": (Feature(0), False),
    "what it can send only": (Feature.VIRTIO_NET_F_CSUM | SENDS, False),
    "checksums": (CHECKSUM, True),
    "checksums and TSO for IPv6": (CHECKSUM | Feature.VIRTIO_NET_F_GUEST_TSO6, True),
    "checksums and USO for IPv4": (CHECKSUM | Feature.VIRTIO_NET_F_GUEST_USO4, True),
}


@pytest.mark.parametrize(("accepted", "unfinished"), ACCEPTED.values(), ids=ACCEPTED)
@pytest.mark.parametrize("transport", [TCP, UDP])
def test_what_the_guest_does_not_accept_is_done_before(
    tmp_path: Path, accepted: Feature, unfinished: bool, transport: type[Packet]
) -> None:
    with line(tmp_path) as on, FakeGuest(on.backend.socket, features=MERGEABLE | accepted) as guest:
        ready(guest)
        header, frame = segmented(transport, 10000, to_guest=True)
        on.host.send(header, frame)
        payload = b""
        while len(payload) < 10000:
            received = guest.pair.receive()
            assert received.data.startswith(frame[:12])
            seen = Header.decode(received.header)
            assert seen.gso_type == 0
            if not unfinished:
                assert received.header == Header().encode(10) + b"\1\0"
            if not seen.flags & NEEDS_CSUM:
                require_finished(received.data)
            packet = Ether(received.data)[transport]
            assert len(packet.payload) <= 1448
            payload += bytes(packet.payload)
        assert payload == frame[-10000:]
        assert on.counters()["rx"]["gso_frames"] == 0


def test_a_single_unfinished_checksum(tmp_path: Path) -> None:
    _, frame = segmented(TCP, 100, to_guest=True)
    header = Header(NEEDS_CSUM, 0, 0, 0, 34, 16)
    for accepted in (CHECKSUM, Feature(0)):
        folder = tmp_path / str(int(accepted))
        folder.mkdir()
        with line(folder) as on, FakeGuest(on.backend.socket, features=MERGEABLE | accepted) as guest:
            ready(guest)
            on.host.send(header, frame)
            received = guest.pair.receive()
            if accepted:
                assert received.data == frame
                seen = Header.decode(received.header)
                assert (seen.flags, seen.checksum_start, seen.checksum_offset) == (NEEDS_CSUM, 34, 16)
            else:
                assert received.header == Header().encode(10) + b"\1\0"
                require_finished(received.data)


HOSTILE = {
    "a checksum outside the frame": (Header(NEEDS_CSUM, 0, 0, 0, 60000, 16), "bad_offload"),
    "a checksum offset outside the frame": (Header(NEEDS_CSUM, 0, 0, 0, 34, 60000), "bad_offload"),
    "segments of no bytes": (Header(NEEDS_CSUM, TCPV4, 54, 0, 34, 16), "bad_offload"),
    "a header longer than the frame": (Header(NEEDS_CSUM, TCPV4, 60000, 1448, 34, 16), "bad_offload"),
    "segments without a checksum": (Header(0, TCPV4, 54, 1448, 34, 16), "bad_offload"),
    "a wrong protocol": (Header(NEEDS_CSUM, UDP_L4, 54, 1448, 34, 16), "bad_offload"),
    "an unknown kind": (Header(NEEDS_CSUM, 3, 54, 1448, 34, 16), "not_negotiated"),
    "what was not negotiated": (Header(NEEDS_CSUM, TCPV4 | 0x80, 54, 1448, 34, 16), "not_negotiated"),
}


@pytest.mark.parametrize(("header", "reason"), HOSTILE.values(), ids=HOSTILE)
def test_a_header_that_contradicts_itself_is_dropped(tmp_path: Path, header: Header, reason: str) -> None:
    with line(tmp_path) as on, FakeGuest(on.backend.socket, features=MERGEABLE | OFFLOADS) as guest:
        good, frame = segmented(TCP, 1900, to_guest=False)
        guest.pair.send(frame, header=header.encode(12))
        guest.pair.drain()
        counted = on.counters()["tx"]
        assert (counted["frames"], counted["drops"]) == (0, {reason: 1})
        # The next one passes.
        guest.pair.send(frame, header=good.encode(12))
        assert on.host.receive()[1] == frame


# --- buffers -----------------------------------------------------------------------------------------------


def test_a_frame_that_needs_more_buffers_than_wait(tmp_path: Path) -> None:
    with (
        line(tmp_path) as on,
        FakeGuest(
            on.backend.socket, features=MERGEABLE | OFFLOADS, receive_layout=SMALL, receive_buffers=16
        ) as guest,
    ):
        ready(guest)
        _, small = segmented(UDP, 100, to_guest=True)
        header, large = segmented(TCP, 20000, to_guest=True)
        for _ in range(12):
            on.host.send(Header(), small)
        wait_until(lambda: on.counters()["rx"]["frames"] == 12)
        # 4 buffers are left, it needs 14; the guest posts the 12 again as it takes the small frames.
        on.host.send(header, large)
        on.host.send(Header(), small)
        wait_until(lambda: on.read_frames() == 13)
        for _ in range(12):
            assert guest.pair.receive().data == small
        received = guest.pair.receive()
        assert (received.data, received.buffers) == (large, 14)
        assert guest.pair.receive().data == small
        counted = on.counters()["rx"]
        assert counted["copied_frames"] == {"few_buffers": 1}
        assert counted["copied_bytes"] == len(large) - (4 * 1530 - 12)
        assert (counted["frames"], counted["direct_frames"], counted["drops"]) == (14, 13, {})


def test_a_frame_that_waits_when_the_guest_stops_is_counted(tmp_path: Path) -> None:
    with (
        line(tmp_path) as on,
        FakeGuest(
            on.backend.socket, features=MERGEABLE | OFFLOADS, receive_layout=SMALL, receive_buffers=4
        ) as guest,
    ):
        ready(guest)
        on.host.send(*segmented(TCP, 20000, to_guest=True))
        on.host.send(Header(), segmented(UDP, 100, to_guest=True)[1])
        wait_until(lambda: on.read_frames() == 1)
        for ring in guest.rings:
            assert guest.stop_ring(ring) == 0
        wait_until(lambda: on.counters()["rx"]["drops"] == {"no_buffers": 1})


@pytest.mark.parametrize("features", [MERGEABLE, NOT_MERGEABLE], ids=["mergeable", "alone"])
def test_a_frame_for_which_no_buffers_can_do(tmp_path: Path, features: Feature) -> None:
    # Mergeable: 64 buffers, which is as many as are looked at together, hold 64 x 500 bytes.
    length = 500 if features is MERGEABLE else 2048
    with (
        line(tmp_path) as on,
        FakeGuest(
            on.backend.socket, features=features | OFFLOADS, receive_layout=BufferLayout(length=length)
        ) as guest,
    ):
        ready(guest)
        on.host.send(*segmented(TCP, 50000, to_guest=True))
        _, small = segmented(UDP, 100, to_guest=True)
        on.host.send(Header(), small)
        assert guest.pair.receive().data == small
        counted = on.counters()["rx"]
        assert (counted["frames"], counted["drops"]) == (1, {"too_long": 1})


@pytest.mark.parametrize("mergeable", [True, False])
def test_frames_of_any_length_in_buffers_of_any_layout(tmp_path: Path, mergeable: bool) -> None:
    random = Random(f"tap {mergeable}")
    with line(tmp_path) as on:
        for _ in range(12):
            length = random.choice([300, 777, 1530, 4096] if mergeable else [2048, 9000, 65600])
            piece_length = random.choice([None, None, 61 if length < 10000 else 4096, 512])
            layout = BufferLayout(length=length, piece_length=piece_length, indirect=True)
            buffers = random.randint(8, 128)
            with FakeGuest(
                on.backend.socket,
                features=(MERGEABLE if mergeable else NOT_MERGEABLE) | OFFLOADS,
                receive_layout=layout,
                receive_buffers=buffers,
            ) as guest:
                ready(guest)
                # As many segments as a burst has room for.
                pieces = len(layout.lengths(12))
                together = min(buffers, 64, 512 // pieces) if mergeable else 1
                most = min(together * layout.length - 12, 65000) - 54
                for _ in range(6):
                    lengths = [
                        random.choice([random.randint(6, most), random.randint(6, 200)]) for _ in range(5)
                    ]
                    frames = [segmented(TCP, length, to_guest=True) for length in lengths]
                    for header, frame in frames:
                        on.host.send(header if len(frame) > 1514 else Header(), frame)
                    for _, frame in frames:
                        received = guest.pair.receive()
                        assert received is not None, (layout, buffers, len(frame))
                        assert received.data == frame
        assert on.counters()["rx"]["drops"] == {}


def test_chains_of_more_pieces_than_one_call_takes(tmp_path: Path) -> None:
    layout = BufferLayout(length=2 * 1023, piece_length=2, indirect=True)
    with (
        line(tmp_path) as on,
        FakeGuest(on.backend.socket, queue_size=1024, receive_layout=layout, receive_buffers=8) as guest,
    ):
        ready(guest)
        _, frame = segmented(UDP, 1000, to_guest=True)
        for _ in range(20):
            on.host.send(Header(), frame)
            assert guest.pair.receive().data == frame
        assert on.counters()["rx"]["copied_frames"] == {"scattered": 20}


@pytest.mark.parametrize("features", [MERGEABLE, NOT_MERGEABLE], ids=["mergeable", "alone"])
def test_jumbo_frames(tmp_path: Path, features: Feature) -> None:
    large = BufferLayout(length=9100)
    with (
        line(tmp_path, ",mtu=9000", ethertype=ETHERTYPE) as on,
        FakeGuest(
            on.backend.socket,
            features=features,
            receive_layout=BufferLayout() if features is MERGEABLE else large,
            transmit_layout=large,
        ) as guest,
    ):
        ready(guest)
        arriving, leaving = FrameStream((60, 9014)), FrameStream((60, 9014), identifier=1)
        for _ in range(10):
            for frame in arriving.take(20):
                on.host.send(Header(), frame)
            assert guest.pair.receive_stream(arriving, 20).received == 20
        from_guest(on, guest, leaving, 5)
        counted = on.counters()
        assert counted["rx"]["direct_frames"] == 200
        guest.pair.send(bytes(9000 + 14 + 9))
        guest.pair.drain()
        assert on.counters()["tx"]["drops"] == {"too_long": 1}


def test_frames_are_read_only_into_memory_that_is_there(tmp_path: Path) -> None:
    with SharedMemory(16 << 20, 16 << 20) as memory, line(tmp_path) as on:
        guest = FakeGuest(on.backend.socket, memory=memory)
        try:
            guest.start()
            ready(guest)
            os.ftruncate(memory.regions[1].fd, 0)
            for _ in range(3):
                on.host.send(Header(), segmented(UDP, 1000, to_guest=True)[1])
            wait_until(lambda: "truncated" in on.backend.text())
        finally:
            guest.close()


def test_a_guest_with_all_offloads_gets_no_frame_that_was_queued_for_another(tmp_path: Path) -> None:
    with line(tmp_path) as on:
        with FakeGuest(on.backend.socket, features=MERGEABLE | OFFLOADS) as guest:
            ready(guest)
        # The interface of one queue keeps what arrives meanwhile, as the last guest accepted it.
        on.host.send(*segmented(TCP, 20000, to_guest=True))
        _, small = segmented(UDP, 100, to_guest=True)
        on.host.send(Header(), small)
        with FakeGuest(on.backend.socket, features=MERGEABLE) as guest:
            assert guest.pair.receive().data == small
            assert on.counters()["rx"]["drops"] == {"not_negotiated": 1}
