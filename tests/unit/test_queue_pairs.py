"""Queue pairs whose attachment fails: every buffer is given back once, whatever happened before."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from backend.process import wait_until
from guestwire import queue_pairs
from guestwire.config import GuestConfig
from guestwire.datapath.counters import Counters
from guestwire.datapath.window import Window
from guestwire.errors import GuestwireError, HostError
from guestwire.ports.wire import WireControl
from guestwire.queue_pairs import QueuePairs
from guestwire.vhost_user.device import RingConfiguration
from guestwire.virtio.features import Feature
from guestwire.worker import Workers
from unit.datapath.memory import BUFFERS, GUEST_BASE, SIZE, Ring
from unit.datapath.wired import EVERYBODY, frame, mac

USER = 0x7F00_0000_0000
SEND = GUEST_BASE + BUFFERS
RECEIVE = GUEST_BASE + 2 * BUFFERS
POSTED = 8
FRAMES = 4


@dataclass
class Member:
    """A guest on a wire, with its driver's side of both rings."""

    pairs: QueuePairs
    receive: Ring
    transmit: Ring

    def start(self, index: int) -> None:
        at = USER + 0x4000 * index
        self.pairs.start_ring(
            index,
            RingConfiguration(
                size=64,
                descriptor_address=at,
                available_address=at + 0x1000,
                used_address=at + 0x2000,
                log_address=None,
                base=0,
                kick_fd=os.eventfd(0, os.EFD_NONBLOCK),
                call_fd=None,
                error_fd=None,
                enabled=True,
            ),
        )

    def send(self) -> None:
        """Send some frames to everybody, and wait until they have left."""
        window = self.pairs.window
        assert window is not None
        data = bytes(12) + frame(EVERYBODY, mac(1))
        window.write(window.translate_guest(SEND, len(data)), data)
        expected = len(self.transmit.used()) + FRAMES
        for _ in range(FRAMES):
            self.transmit.offer((SEND, len(data)))
        kick = self.pairs.rings[1].configuration.kick_fd
        assert kick is not None
        os.eventfd_write(kick, 1)
        wait_until(lambda: len(self.transmit.used()) == expected)

    def close(self) -> None:
        for index in list(self.pairs.rings):
            kick = self.pairs.rings[index].configuration.kick_fd
            assert kick is not None
            self.pairs.stop_ring(index)
            os.close(kick)
        assert self.pairs.window is not None
        self.pairs.window.close()
        self.pairs.port.close()
        self.pairs.close()


def member(name: str) -> Member:
    port = WireControl("wire", guest=name)
    port.open(1)
    pairs = QueuePairs(
        GuestConfig(port="wire:wire", name=name, socket_path="/none"), logging.getLogger(name), port
    )
    memory, counters = os.memfd_create("memory"), os.memfd_create("counters")
    os.ftruncate(memory, SIZE)
    pairs.open(Counters(counters, 1))
    pairs.window = Window([(GUEST_BASE, USER, SIZE, memory, 0)], bounce_frames=8)
    for fd in (memory, counters):
        os.close(fd)
    pairs.features = Feature.VIRTIO_F_VERSION_1
    return Member(
        pairs,
        Ring(pairs.window, 0, receive=True),
        Ring(pairs.window, 0x4000, receive=False),
    )


@pytest.fixture
def neighbour() -> Iterator[Member]:
    made = member("neighbour")
    made.start(0)
    made.start(1)
    yield made
    made.close()


@pytest.fixture
def guest() -> Iterator[Member]:
    made = member("guest")
    for i in range(POSTED):
        made.receive.offer((RECEIVE + 2048 * i, 2048))
    yield made
    made.close()


def fail(*_: object, **__: object) -> None:
    raise OSError(11, "nothing left")


# Each step of an attachment: where it is, and whether frames come before it.
STEPS: dict[str, tuple[object, str, bool]] = {
    "the port": (WireControl, "attach", False),
    "the pair": (queue_pairs, "QueuePair", False),
    "the way in": (WireControl, "resume", True),
    "the worker": (Workers, "add", True),
}


@pytest.mark.parametrize("last", [0, 1], ids=["receive ring last", "transmit ring last"])
@pytest.mark.parametrize("step", STEPS)
def test_an_attachment_that_fails(
    neighbour: Member, guest: Member, monkeypatch: pytest.MonkeyPatch, step: str, last: int
) -> None:
    owner, name, frames_come = STEPS[step]
    before: Callable[..., None] = getattr(owner, name)

    def fail_after_frames(*arguments: object, **options: object) -> None:
        if step == "the way in":
            before(*arguments, **options)
        neighbour.send()
        raise HostError("nothing left", "wait")

    guest.start(1 - last)
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, fail_after_frames if frames_come else fail)
        with pytest.raises((GuestwireError, OSError), match="nothing left"):
            guest.start(last)
    came = FRAMES if frames_come else 0
    assert len(guest.receive.used()) == came
    guest.start(last)
    neighbour.send()
    wait_until(lambda: len(guest.receive.used()) == came + FRAMES)
    assert [head for head, _ in guest.receive.used()] == list(range(came + FRAMES))
    assert guest.pairs.stop_ring(0) == came + FRAMES
    guest.start(0)
