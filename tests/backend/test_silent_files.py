"""A frontend sends files of a file system that it serves itself, and that does not answer."""

from __future__ import annotations

import os
import re
import select
import socket
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from backend.house import House, house
from backend.process import wait_until
from backend.rogue import Rogue, region
from backend.silent_file import SilentFile
from guestwire.testing import BackendError, FakeGuest, FrameStream
from guestwire.vhost_user.constants import Request
from guestwire.vhost_user.messages import encode_request
from guestwire.vhost_user.payloads import U64, Empty, MemoryTable, Payload, RingDescriptor

MOST_STUCK = 4  # messages of one guest's frontends whose files nobody can close


@pytest.fixture(scope="module")
def inhabited(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    with house(tmp_path_factory.mktemp("house")) as made:
        yield made


@pytest.fixture
def silent(tmp_path: Path) -> Iterator[SilentFile]:
    with SilentFile(tmp_path) as file:
        yield file


KINDS: dict[str, tuple[Request, Payload, int]] = {
    "kick": (Request.SET_VRING_KICK, RingDescriptor(0), 1),
    "call": (Request.SET_VRING_CALL, RingDescriptor(0), 1),
    "error": (Request.SET_VRING_ERR, RingDescriptor(0), 1),
    "channel": (Request.SET_BACKEND_REQ_FD, Empty(), 1),
    "memory": (Request.ADD_MEM_REG, region(), 1),
    "memory again": (Request.ADD_MEM_REG, region(), 1),
    "memory table": (Request.SET_MEM_TABLE, MemoryTable((region().region,)), 1),
    "unasked": (Request.SET_FEATURES, U64(0), 3),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_that_makes_everybody_wait(inhabited: House, silent: SilentFile, kind: str) -> None:
    request, payload, count = KINDS[kind]
    mark = len(inhabited.backend.text())
    with inhabited.visitor():
        rogue = Rogue(inhabited.rogue, acknowledged=True)
        with rogue.resources:
            if kind == "memory again":
                rogue.memory()
            silent.send(rogue.frontend.socket, encode_request(request, payload, need_reply=True), count)
            if kind == "unasked":
                rogue.frontend.expect_end()
            else:
                with pytest.raises(BackendError, match="refused"):
                    rogue.frontend.read_reply(request)
                rogue.frontend.get_features()
    inhabited.neighbour.check()
    wait_until(lambda: inhabited.last_complaints(mark))
    (said,) = inhabited.last_complaints(mark)
    assert ("/file: a file whose file system others could make wait" in said) == (kind != "unasked")


def test_the_process_ends_when_it_is_told(tmp_path: Path) -> None:
    with house(tmp_path) as inhabited, SilentFile(tmp_path) as silent:
        complaint(inhabited, silent)
        inhabited.neighbour.leave()
        inhabited.backend.process.terminate()
        assert inhabited.backend.process.wait(10) == 0


def complaint(inhabited: House, silent: SilentFile) -> str:
    """What is said of the file when it comes once more."""
    mark = len(inhabited.backend.text())
    with inhabited.visitor():
        rogue = Rogue(inhabited.rogue, acknowledged=False)
        with rogue.resources:
            silent.send(rogue.frontend.socket, encode_request(*KINDS["kick"][:2]))
            rogue.frontend.expect_end()
    wait_until(lambda: inhabited.last_complaints(mark))
    (said,) = inhabited.last_complaints(mark)
    return said


def frames_come_back(inhabited: House) -> bool:
    with inhabited.visitor(), FakeGuest(inhabited.rogue) as guest:
        return guest.pair.exchange(FrameStream(), 100).received == 100


def test_one_guest_keeps_only_so_many_threads_of_the_helper_waiting(inhabited: House, tmp_path: Path) -> None:
    assert frames_come_back(inhabited)
    before = inhabited.resources()
    with SilentFile(tmp_path) as silent:
        for _ in range(MOST_STUCK):
            assert "whose file system others could make wait" in complaint(inhabited, silent)
        for _ in range(2):
            said = complaint(inhabited, silent)
            assert f"the files of {MOST_STUCK} messages of this guest's frontends cannot be closed" in said
        inhabited.neighbour.check()
    # The file system is given up: all that waited goes on.
    wait_until(lambda: frames_come_back(inhabited) and inhabited.resources() == before)


def test_the_helper_is_started_anew_when_it_has_died(inhabited: House) -> None:
    children = Path(f"/proc/{inhabited.backend.pid}/task/{inhabited.backend.pid}/children")
    (helper,) = map(int, children.read_text().split())
    with inhabited.visitor():
        rogue = Rogue(inhabited.rogue, acknowledged=True)
        with rogue.resources:
            rogue.memory()
            os.kill(helper, 9)
            wait_until(lambda: ") Z " in Path(f"/proc/{helper}/stat").read_text())
            with pytest.raises(BackendError, match="closed the connection"):
                rogue.request(Request.SET_VRING_CALL, RingDescriptor(0), rogue.eventfd())
    assert inhabited.backend.process.poll() is None
    assert frames_come_back(inhabited)


def on_disk(folder: Path) -> int:
    return os.open(folder / "file", os.O_RDWR | os.O_CREAT)


def network_socket(folder: Path) -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as lingering:
        return lingering.detach()


def epoll(folder: Path) -> int:
    with select.epoll() as made:
        return os.dup(made.fileno())


@pytest.mark.parametrize(
    ("make", "name"),
    [(on_disk, ".*/file"), (network_socket, r"socket:\[\d+\] of family 2"), (epoll, "anon_inode:.*")],
)
def test_other_files_that_could_make_wait(
    inhabited: House, tmp_path: Path, make: Callable[[Path], int], name: str
) -> None:
    repetitions = 2 * MOST_STUCK  # they are closed at once, and not counted
    mark = len(inhabited.backend.text())
    with inhabited.undisturbed():
        for _ in range(repetitions):
            with inhabited.visitor():
                rogue = Rogue(inhabited.rogue, acknowledged=True)
                with rogue.resources, pytest.raises(BackendError, match="refused"):
                    rogue.kick(0, rogue.own(make(tmp_path)))
    said = inhabited.last_complaints(mark)
    assert len(said) == repetitions
    for line in said:
        assert re.match(f"refused: VHOST_USER_SET_VRING_KICK: {name}: a file whose file system others", line)


@pytest.mark.parametrize("make", [os.pipe, lambda: [end.detach() for end in socket.socketpair()]])
def test_signals_by_pipe_and_by_socket(inhabited: House, make: Callable[[], Sequence[int]]) -> None:
    with inhabited.undisturbed(), inhabited.visitor():
        rogue = Rogue(inhabited.rogue, acknowledged=True)
        with rogue.resources:
            read, write = map(rogue.own, make())
            rogue.memory()
            rogue.ring(0)
            rogue.request(Request.SET_VRING_CALL, RingDescriptor(0), write)
            rogue.kick(0, read)
