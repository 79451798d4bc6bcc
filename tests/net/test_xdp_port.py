"""The xdp port on a veth pair, in all modes that the kernel has for one: every byte of every frame."""

from __future__ import annotations

import contextlib
import random
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from backend.process import Backend, another_region, wait_until
from guestwire.host.interface import Interface
from guestwire.testing import (
    DRIVER_FEATURES,
    BufferLayout,
    FakeGuest,
    FrameStream,
    SharedMemory,
    Wire,
    processes,
)
from guestwire.testing.frame_stream import ETHERTYPE
from guestwire.virtio.features import Feature

pytestmark = pytest.mark.root

MIB = 1 << 20
BURST = 50  # at most half of a guest's buffers: the other half is posted while these are on their way back
MERGEABLE = DRIVER_FEATURES
NOT_MERGEABLE = DRIVER_FEATURES & ~int(Feature.VIRTIO_NET_F_MRG_RXBUF)


@dataclass
class Line:
    """A wire with guestwire on its near end and a raw socket on the far one."""

    wire: Wire
    backend: Backend
    peer: socket.socket

    def to_guest(self, guest: FakeGuest, stream: FrameStream, bursts: int) -> None:
        # Requests are followed in order: when this one is answered, the rings run.
        guest.frontend.get_features()
        for _ in range(bursts):
            for frame in stream.take(BURST):
                self.peer.send(frame)
            assert guest.pair.receive_stream(stream, BURST)[1:3] == (BURST, 0)

    def from_guest(self, guest: FakeGuest, stream: FrameStream, bursts: int) -> None:
        for _ in range(bursts):
            guest.pair.send_stream(stream, BURST)
            for _ in range(BURST):
                stream.accept(self.peer.recv(65536))

    def counters(self) -> Any:
        return self.backend.guest()["counters"]


def peer_socket(wire: Wire) -> socket.socket:
    def make() -> socket.socket:
        peer = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETHERTYPE))
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 * MIB)
        peer.bind((wire.peer_interface, ETHERTYPE))
        peer.settimeout(10)
        return peer

    return wire.far.call(make)


@contextlib.contextmanager
def line(folder: Path, mode: str, **options: int) -> Iterator[Line]:
    with Wire(**options) as wire:
        port = f"xdp:{wire.interface},mode={mode}"
        with Backend(folder, port, namespace=wire.near.name) as backend, peer_socket(wire) as peer:
            yield Line(wire, backend, peer)


@pytest.mark.parametrize(
    ("features", "length"),
    [
        # The smallest that Linux posts.
        pytest.param(MERGEABLE, 1536, id="mergeable, Linux"),
        pytest.param(NOT_MERGEABLE, 1530, id="not mergeable, Linux"),
        pytest.param(MERGEABLE, 2048, id="mergeable"),
        pytest.param(NOT_MERGEABLE, 2048, id="not mergeable"),
    ],
)
def test_direct_mode_copies_nothing(tmp_path: Path, features: Feature, length: int) -> None:
    layout = BufferLayout(length=length)
    with (
        line(tmp_path, "direct") as on,
        FakeGuest(
            on.backend.socket,
            features=features,
            receive_layout=layout,
            transmit_layout=layout,
            verify_sent=True,
        ) as guest,
    ):
        arriving, leaving = FrameStream((60, 1514)), FrameStream((60, 1514), identifier=1)
        on.to_guest(guest, arriving, 50)
        on.from_guest(guest, leaving, 50)
        counted = on.counters()
        for direction, stream in (("rx", arriving), ("tx", leaving)):
            assert counted[direction]["frames"] == counted[direction]["direct_frames"] == 50 * BURST
            assert counted[direction]["bytes"] == stream.received_bytes
            assert counted[direction]["copied_frames"] == {}
            assert counted[direction]["copied_bytes"] == 0
            assert counted[direction]["drops"] == {}
        assert on.backend.guest()["port"]["mode"] == "direct"


@pytest.mark.parametrize("indirect", [True, False], ids=["indirect", "direct"])
def test_scattered_frames_leave_in_place(tmp_path: Path, indirect: bool) -> None:
    layout = BufferLayout(length=1600, piece_length=200, indirect=indirect)
    with line(tmp_path, "direct") as on, FakeGuest(on.backend.socket, transmit_layout=layout) as guest:
        on.from_guest(guest, FrameStream((60, 1514)), 20)
        assert on.counters()["tx"]["direct_frames"] == 20 * BURST


def test_too_many_pieces_are_copied_with_the_reason(tmp_path: Path) -> None:
    layout = BufferLayout(length=1600, piece_length=40, indirect=True)
    with line(tmp_path, "direct") as on, FakeGuest(on.backend.socket, transmit_layout=layout) as guest:
        on.from_guest(guest, FrameStream(1514), 5)
        assert on.counters()["tx"]["copied_frames"] == {"scattered": 5 * BURST}


def test_the_header_in_a_descriptor_of_its_own(tmp_path: Path) -> None:
    layout = BufferLayout(header_apart=True)
    with (
        line(tmp_path, "direct") as on,
        FakeGuest(on.backend.socket, receive_layout=layout, transmit_layout=layout) as guest,
    ):
        on.to_guest(guest, FrameStream((60, 1514)), 10)
        on.from_guest(guest, FrameStream((60, 1514)), 10)
        counted = on.counters()
        assert counted["rx"]["direct_frames"] == counted["tx"]["direct_frames"] == 10 * BURST


def test_small_mergeable_buffers_get_the_frame_by_a_copy(tmp_path: Path) -> None:
    layout = BufferLayout(length=400)
    with line(tmp_path, "direct") as on, FakeGuest(on.backend.socket, receive_layout=layout) as guest:
        stream = FrameStream((60, 1514))
        guest.frontend.get_features()
        for _ in range(100):
            # A frame may take four buffers, and the guest has offered 256.
            for frame in stream.take(30):
                on.peer.send(frame)
            assert guest.pair.receive_stream(stream, 30).received == 30
        assert on.counters()["rx"]["copied_frames"] == {"buffer_too_small": 3000}


def test_a_scattered_receive_buffer_gets_the_frame_by_a_copy(tmp_path: Path) -> None:
    layout = BufferLayout(length=1600, piece_length=400)
    with (
        line(tmp_path, "direct") as on,
        FakeGuest(on.backend.socket, features=NOT_MERGEABLE, receive_layout=layout) as guest,
    ):
        stream = FrameStream((60, 1514))
        guest.frontend.get_features()
        for _ in range(50):
            # The guest has offered 64 buffers.
            for frame in stream.take(30):
                on.peer.send(frame)
            assert guest.pair.receive_stream(stream, 30).received == 30
        assert on.counters()["rx"]["copied_frames"] == {"buffer_too_small": 1500}


@pytest.mark.parametrize("features", [MERGEABLE, NOT_MERGEABLE], ids=["mergeable", "not mergeable"])
def test_bounce_mode_pins_nothing_of_the_guest(tmp_path: Path, features: Feature) -> None:
    with line(tmp_path, "bounce") as on, FakeGuest(on.backend.socket, features=features) as guest:
        on.to_guest(guest, FrameStream((60, 1514)), 30)
        on.from_guest(guest, FrameStream((60, 1514)), 30)
        state = on.backend.guest()
        for direction in ("rx", "tx"):
            assert state["counters"][direction]["copied_frames"] == {"bounce_mode": 30 * BURST}
        assert state["port"]["mode"] == "bounce"
        assert state["memory"]["pinned_bytes"] < 16 * MIB


def test_frames_wait_in_bounce_mode_until_the_guest_has_buffers(tmp_path: Path) -> None:
    with line(tmp_path, "bounce") as on, FakeGuest(on.backend.socket, queue_size=64) as guest:
        stream = FrameStream(200)
        guest.frontend.get_features()
        for frame in stream.take(500):
            on.peer.send(frame)
        assert guest.pair.receive_stream(stream, 500).received == 500


@pytest.mark.parametrize("case", ["small buffers", "hung guest", "disabled"])
def test_a_worker_with_nothing_to_do_sleeps(tmp_path: Path, case: str) -> None:
    mode = "bounce" if case == "hung guest" else "direct"
    layout = BufferLayout(length=400) if case == "small buffers" else BufferLayout()
    with line(tmp_path, mode) as on, FakeGuest(on.backend.socket, receive_layout=layout) as guest:
        on.to_guest(guest, FrameStream(), 1)
        if case == "hung guest":
            for frame in FrameStream().take(400):
                on.peer.send(frame)
        if case == "disabled":
            guest.frontend.set_ring_enable(0, False)
            guest.frontend.get_features()
            on.peer.send(FrameStream().frame(0))
        before = processes.cpu_seconds(on.backend.pid)
        # Time in which nothing happens is what is tested.
        time.sleep(2)
        assert processes.cpu_seconds(on.backend.pid) - before < 0.1
        if case == "hung guest":
            guest.pair.drain()
            while guest.pair.receive(timeout=0.5) is not None:
                pass


def test_auto_says_why_it_is_not_zero_copy(tmp_path: Path) -> None:
    with line(tmp_path, "auto") as on, FakeGuest(on.backend.socket) as guest:
        on.to_guest(guest, FrameStream(), 1)
        port = on.backend.guest()["port"]
        assert port["mode"] == "direct"
        assert "does not offer it" in port["mode_reason"]


def test_several_regions_and_memory_added_under_traffic(tmp_path: Path) -> None:
    with (
        SharedMemory(4 * MIB, 2 * MIB, 8 * MIB) as memory,
        another_region() as more,
        line(tmp_path, "direct") as on,
        FakeGuest(on.backend.socket, memory=memory) as guest,
    ):
        arriving, leaving = FrameStream((60, 1514)), FrameStream((60, 1514), identifier=1)
        for _ in range(3):
            on.to_guest(guest, arriving, 3)
            guest.frontend.add_memory_region(more)
            on.from_guest(guest, leaving, 3)
            on.to_guest(guest, arriving, 3)
            guest.frontend.remove_memory_region(more)
        assert arriving.lost == leaving.lost == 0


def test_rings_stop_and_go_on_exactly(tmp_path: Path) -> None:
    choose = random.Random(1)
    with line(tmp_path, "direct") as on, FakeGuest(on.backend.socket) as guest:
        arriving, leaving = FrameStream((60, 1514)), FrameStream((60, 1514), identifier=1)
        received = sent = 0
        for _ in range(10):
            some = choose.randrange(1, 5)
            on.to_guest(guest, arriving, some)
            on.from_guest(guest, leaving, some)
            received, sent = received + some * BURST, sent + some * BURST
            rx, tx = guest.rings
            assert guest.stop_ring(rx) == received % 65536
            assert guest.stop_ring(tx) == sent % 65536
            guest.start_ring(rx)
            guest.start_ring(tx)
        # The newest used entry is the newest frame: nothing was offered twice, nothing is held back.
        assert arriving.lost == leaving.lost == 0


def test_a_guest_that_comes_back_finds_the_port_as_it_was(tmp_path: Path) -> None:
    with line(tmp_path, "direct") as on:
        before = None
        for visit in range(5):
            with FakeGuest(on.backend.socket) as guest:
                on.to_guest(guest, FrameStream(), 2)
                on.from_guest(guest, FrameStream(), 2)
            wait_until(lambda: on.backend.text().count("the frontend is gone") > visit)  # noqa: B023
            now = on.backend.resources()
            assert before in (None, now)
            before = now
        assert on.counters()["rx"]["direct_frames"] == 5 * 2 * BURST


def test_a_killed_backend_leaves_no_program_and_the_next_one_starts(tmp_path: Path) -> None:
    with Wire() as wire, peer_socket(wire) as peer:

        def programs() -> object:
            return wire.near.call(lambda: Interface.open(wire.interface)).programs

        for _ in range(2):
            port = f"xdp:{wire.interface},mode=direct"
            (tmp_path / "backend.log").unlink(missing_ok=True)
            with Backend(tmp_path, port, namespace=wire.near.name) as backend:
                guest = FakeGuest(backend.socket)
                guest.start()
                Line(wire, backend, peer).to_guest(guest, FrameStream(), 1)
                assert programs()
                backend.process.kill()
                backend.process.wait()
                guest.close()
                wait_until(lambda: not programs())
