"""Guests of one process on a wire: every byte between them, and nobody disturbed by who comes and goes."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import pytest

from backend.house import status
from backend.process import Backend, wait_until
from guestwire.control import ask_rebind
from guestwire.errors import GuestwireError
from guestwire.runtime import CONTROL_SOCKET
from guestwire.testing import (
    DRIVER_FEATURES,
    OFFLOAD_FEATURES,
    BufferLayout,
    FakeGuest,
    FrameStream,
    SharedMemory,
    processes,
)
from guestwire.virtio.features import Feature

MIB = 1 << 20
FRAMES = 20_000
PLAIN = DRIVER_FEATURES & ~Feature.VIRTIO_NET_F_MRG_RXBUF
PACKED = DRIVER_FEATURES | Feature.VIRTIO_F_RING_PACKED | Feature.VIRTIO_F_IN_ORDER
LEGACY = PLAIN & ~Feature.VIRTIO_F_VERSION_1
DEAF = b"\x02\x00\x00\x00\x00\x0e"
ADDRESSES = (b"\x02\x00\x00\x00\x00\x0a", b"\x02\x00\x00\x00\x00\x0b")


def streams(length: int | tuple[int, int] = (60, 1514)) -> tuple[FrameStream, FrameStream]:
    """The frames of one guest for the other, and the other way."""
    there, back = ADDRESSES
    return (
        FrameStream(length, source=there, destination=back, identifier=1),
        FrameStream(length, source=back, destination=there, identifier=2),
    )


def exchange(
    guests: Sequence[FakeGuest], both: Sequence[FrameStream], count: int = FRAMES, *, wait: bool = False
) -> None:
    """Let both guests send and receive so many frames at the same time; none is lost."""
    with ThreadPoolExecutor(2) as pool:
        ends = [
            pool.submit(guest.pair.exchange, mine, count, returning=others, wait=wait, burst=8)
            for guest, mine, others in zip(guests, both, reversed(both), strict=True)
        ]
        # The first that fails says why; the other one only waits for it in vain.
        for end in as_completed(ends):
            assert end.result()[:3] == (count, count, 0)


def guest(backend: Backend, number: int, **options: object) -> FakeGuest:
    return FakeGuest(backend.sockets[number], **options)  # type: ignore[arg-type]


@contextlib.contextmanager
def wire(folder: Path, count: int = 3, options: str = ",wait_us=1000000") -> Iterator[Backend]:
    """A process whose guests are all on one wire."""
    sockets = [folder / f"guest{number}.sock" for number in range(count)]
    file = folder / "guests.toml"
    file.write_text(
        "".join(f'[[guest]]\nsocket_path = "{socket}"\nport = "wire:lan{options}"\n' for socket in sockets)
    )
    with Backend(folder, arguments=[str(file)], sockets=sockets) as backend:
        yield backend


@pytest.fixture(scope="module")
def backend(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Backend]:
    with wire(tmp_path_factory.mktemp("wire"), 4) as backend:
        yield backend


@pytest.mark.parametrize("wait", [False, True], ids=["polling", "sleeping"])
@pytest.mark.parametrize(
    ("features", "others"),
    [(DRIVER_FEATURES, DRIVER_FEATURES), (DRIVER_FEATURES, PLAIN), (PLAIN, LEGACY), (PACKED, PLAIN)],
    ids=["mergeable", "one mergeable", "one legacy", "one packed"],
)
def test_every_byte_crosses_both_ways(
    backend: Backend, features: Feature, others: Feature, wait: bool
) -> None:
    with (
        guest(backend, 0, features=features, verify_sent=True) as one,
        guest(backend, 1, features=others, required=Feature(0), verify_sent=True) as other,
    ):
        exchange((one, other), streams(), FRAMES // 4 if wait else FRAMES, wait=wait)


def test_other_layouts(backend: Backend) -> None:
    small = BufferLayout(length=200)
    pieces = BufferLayout(length=1600, piece_length=100, indirect=True)
    with (
        guest(backend, 0, receive_layout=small, transmit_layout=pieces) as one,
        guest(backend, 1, receive_layout=pieces, transmit_layout=BufferLayout(header_apart=True)) as other,
    ):
        exchange((one, other), streams())


@pytest.mark.parametrize("mergeable", [True, False], ids=["mergeable", "not mergeable"])
def test_frames_of_64_kib_cross_whole(backend: Backend, mergeable: bool) -> None:
    large = BufferLayout(length=12 + 65536)
    receive = BufferLayout() if mergeable else large
    features = (DRIVER_FEATURES if mergeable else PLAIN) | OFFLOAD_FEATURES
    with contextlib.ExitStack() as stack:
        both = [
            stack.enter_context(
                FakeGuest(
                    backend.sockets[number],
                    memory=stack.enter_context(SharedMemory(64 * MIB)),
                    features=features,
                    receive_layout=receive,
                    transmit_layout=large,
                )
            )
            for number in range(2)
        ]
        exchange(both, streams((32, 65536)), 4000)


def test_a_sender_waits_for_a_slow_receiver(backend: Backend) -> None:
    """Far more frames than there are buffers, in spells: none is lost, and nobody turns in circles."""
    there, back = streams(1514)
    with guest(backend, 0) as one, guest(backend, 1) as other:
        exchange((one, other), (there, back), 100)
        sender = threading.Thread(target=one.pair.send_stream, args=(there, 5000))
        sender.start()
        for _ in range(50):
            other.pair.receive_stream(there, 100)
        sender.join()
        assert status(backend)["guest1"].counters.rx.drops == {}


def test_a_receiver_that_takes_nothing_costs_little(tmp_path: Path) -> None:
    there, back = streams(64)
    with wire(tmp_path, 3, "") as backend, guest(backend, 0) as one, guest(backend, 1) as other:
        stranger = FrameStream(64, source=b"\x02\x00\x00\x00\x00\x0c", destination=ADDRESSES[0])
        with guest(backend, 2, receive_buffers=1) as third:
            exchange((one, other), (there, back), 100)
            third.pair.send_stream(stranger, 1)
            one.pair.receive_stream(stranger, 1)
            wasted = FrameStream(64, source=ADDRESSES[0], destination=b"\x02\x00\x00\x00\x00\x0c")
            before = processes.cpu_seconds(backend.pid)
            # If each waited, it would be 100 seconds.
            assert one.pair.send_stream(wasted, 10_000).seconds < 20
            assert processes.cpu_seconds(backend.pid) - before < 1
            exchange((one, other), (there, back), 1000)
            dropped = status(backend)["guest2"].counters.rx.drops
            assert dropped["no_buffers"] >= 9_990


TALKER = """
import sys
from guestwire.testing import FakeGuest, FrameStream

with FakeGuest(sys.argv[1]) as guest:
    stream = FrameStream((60, 1514), source=b"\\x02\\0\\0\\0\\0\\x0d", destination=b"\\x02\\0\\0\\0\\0\\x0e")
    while True:
        guest.pair.send_stream(stream, 200)
        print("alive", flush=True)
"""


def kill_a_guest(socket: Path, folder: Path) -> None:
    """Have a guest in a process of its own send to others, and kill it."""
    log = folder / "guest.log"
    log.unlink(missing_ok=True)
    process = processes.spawn([sys.executable, "-c", TALKER, str(socket)], log)
    try:
        wait_until(lambda: "alive" in log.read_text() or process.poll() is not None)
        assert process.poll() is None, log.read_text()
    finally:
        process.kill()
        process.wait()


def test_guests_come_and_go_and_the_others_notice_nothing(backend: Backend, tmp_path: Path) -> None:
    enough = threading.Event()
    errors: list[BaseException] = []
    both = streams()

    def live(guests: Sequence[FakeGuest]) -> None:
        try:
            while not enough.is_set():
                exchange(guests, both, 500)
        except BaseException as error:
            errors.append(error)

    with guest(backend, 0) as one, guest(backend, 1) as other, guest(backend, 3) as deaf:
        deaf.frontend.send_rarp(DEAF)
        exchange((one, other), both, 100)
        living = threading.Thread(target=live, args=((one, other),))
        living.start()
        try:
            for _ in range(3):
                with guest(backend, 2) as third:
                    third.pair.send_stream(
                        FrameStream(source=b"\x02\x00\x00\x00\x00\x0c", destination=DEAF), 100
                    )
                kill_a_guest(backend.sockets[2], tmp_path)
        finally:
            enough.set()
            living.join()
    assert errors == []
    assert "Traceback" not in backend.text()


def test_a_frontend_that_blocks_its_call_descriptor_blocks_nobody_else(backend: Backend) -> None:
    both = streams()
    with guest(backend, 0) as one, guest(backend, 1) as other, guest(backend, 2) as third:
        call = third.rings[0].call_fd
        os.set_blocking(call, True)
        with contextlib.suppress(BlockingIOError):
            os.write(call, (2**64 - 2).to_bytes(8, "little"))
        mine, others, thirds = (
            FrameStream(64, source=ADDRESSES[0], destination=b"\xff" * 6) for _ in range(3)
        )
        one.pair.send_stream(mine, 100)
        other.pair.receive_stream(others, 100)
        exchange((one, other), both, 1000)
        os.eventfd_read(call)
        assert third.pair.receive_stream(thirds, 100).received == 100


def test_status_names_the_wire_and_its_members(backend: Backend) -> None:
    port = status(backend)["guest1"].port
    assert (port.kind, port.network, port.members) == ("wire", "lan", ["guest0", "guest2", "guest3"])
    assert "wire lan" in backend.run("status").stdout
    assert port.mode_reason is None


def rebind(backend: Backend, name: str, port: str) -> None:
    ask_rebind(backend.log.parent / "run" / str(backend.pid) / CONTROL_SOCKET, name, port)


def test_to_another_wire_and_back_under_traffic(backend: Backend) -> None:
    there, _ = streams()
    enough = threading.Event()
    errors: list[GuestwireError] = []

    def change() -> None:
        try:
            while not enough.is_set():
                for port in ("wire:other", "null", "wire:lan,wait_us=0", "echo", "wire:lan,wait_us=1000000"):
                    rebind(backend, "guest1", port)
        except GuestwireError as error:
            errors.append(error)

    with guest(backend, 0) as one, guest(backend, 1, accept_empty=True) as other:
        changing = threading.Thread(target=change)
        changing.start()
        for _ in range(10):
            one.pair.send_stream(there, 500)
        enough.set()
        changing.join()
        assert errors == []
        assert status(backend)["guest0"].port.members == ["guest1", "guest2", "guest3"]
        with contextlib.suppress(GuestwireError):
            other.pair.receive_stream(there, 100_000, allow_loss=True, timeout=0.2)
        exchange((one, other), streams(), 1000)


def test_nothing_is_left_of_guests_that_came_and_went(backend: Backend) -> None:
    def visit() -> None:
        gone = backend.text().count("the frontend is gone")
        with guest(backend, 0) as one, guest(backend, 1) as other:
            exchange((one, other), streams(), 50)
        wait_until(lambda: backend.text().count("the frontend is gone") == gone + 2)

    wait_until(lambda: {state.state for state in status(backend).values()} == {"listening"})
    visit()
    before = backend.resources()
    for _ in range(10):
        visit()
    assert backend.resources() == before


def test_alone_it_says_who_can_join(tmp_path: Path) -> None:
    with Backend(tmp_path, "wire:lan") as backend:
        assert "alone: only guests of the same process can join it" in str(backend.guest()["port"])
