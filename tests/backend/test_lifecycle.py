"""The life of a process: how it starts, is found, ends, is killed, and starts again."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from backend.house import status
from backend.process import COMMAND, Backend, wait_until
from guestwire.errors import GuestwireError
from guestwire.testing import FakeGuest, FrameStream, Frontend, processes
from guestwire.vhost_user.constants import Request
from guestwire.vhost_user.messages import encode_request
from guestwire.vhost_user.payloads import U64


def frames_come_back(guest: FakeGuest) -> None:
    assert guest.pair.exchange(FrameStream((60, 1514)), 500).received == 500


def test_term_ends_it_under_traffic(tmp_path: Path) -> None:
    with Backend(tmp_path, "echo") as backend:
        guest = FakeGuest(backend.socket)
        guest.start()
        stream = FrameStream()
        enough = threading.Event()

        def exchange() -> None:
            with contextlib.suppress(GuestwireError):  # the backend goes in the middle of it
                while not enough.is_set():
                    guest.pair.exchange(stream, 1000, timeout=1)

        traffic = threading.Thread(target=exchange)
        traffic.start()
        try:
            wait_until(lambda: stream.received > 2000)
            backend.process.send_signal(signal.SIGTERM)
            enough.set()
            assert backend.process.wait(5) == 0
        finally:
            enough.set()
            traffic.join()
            guest.close()
        assert not backend.socket.exists()
        assert list((tmp_path / "run").iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_it_in_the_middle_of_a_session(tmp_path: Path, number: signal.Signals) -> None:
    # A test run under nohup ignores SIGHUP, and what it starts would, too.
    wrapper = ("env", "--default-signal=HUP")
    with (
        Backend(tmp_path, "echo", wrapper=wrapper) as backend,
        Frontend.connect(backend.socket) as frontend,
    ):
        frontend.get_features()
        backend.process.send_signal(number)
        assert backend.process.wait(5) == 0
        assert not backend.socket.exists()
        assert list((tmp_path / "run").iterdir()) == []


def test_under_nohup_it_stays(tmp_path: Path) -> None:
    with Backend(tmp_path, "echo", wrapper=("env", "--ignore-signal=HUP")) as backend:
        backend.process.send_signal(signal.SIGHUP)
        with FakeGuest(backend.socket) as guest:
            frames_come_back(guest)


def test_a_killed_process_is_in_nobodys_way(tmp_path: Path) -> None:
    with Backend(tmp_path, "echo") as first:
        guest = FakeGuest(first.socket)
        guest.start()
        frames_come_back(guest)
        first.process.kill()
        first.process.wait()
    assert first.socket.exists()
    assert [path.name for path in (tmp_path / "run").iterdir()] == [str(first.pid)]
    first.log.unlink()
    with Backend(tmp_path, "echo") as second:
        assert [path.name for path in (tmp_path / "run").iterdir()] == [str(second.pid)]
        # The guest goes on where it was, as QEMU with a reconnecting socket would.
        guest.reconnect()
        frames_come_back(guest)
        assert status(second)["guest"].state == "running"
        guest.close()


def test_status_shows_nothing_stale(tmp_path: Path) -> None:
    with Backend(tmp_path, "echo") as backend:
        (guest,) = json.loads(backend.run("status", "--json").stdout)["guests"]
        assert guest["state"] == "listening"
        backend.process.kill()
        backend.process.wait()
        answer = backend.run("status", "--json")
        assert answer.returncode == 3
        assert "no running guestwire process has its runtime directory" in answer.stderr
        assert "to do: guestwire run" in answer.stderr


def test_status_deletes_nothing(tmp_path: Path) -> None:
    with Backend(tmp_path, "echo") as backend:
        precious = tmp_path / "run" / "2026" / "precious"
        precious.parent.mkdir()
        precious.write_text("precious")
        assert backend.run("status").returncode == 0
        backend.process.kill()
        backend.process.wait()
        assert backend.run("status").returncode == 3
    backend.log.unlink()
    with Backend(tmp_path, "echo"):
        assert not (tmp_path / "run" / str(backend.pid)).exists()
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["2026"]
    assert precious.read_text() == "precious"


def test_status_shows_all_processes_that_answer(tmp_path: Path) -> None:
    with Backend(tmp_path, "echo") as one:
        other_socket = tmp_path / "other.sock"
        log = tmp_path / "other.log"
        other = processes.spawn(
            [*COMMAND, "run", "--socket-path", other_socket, "--port", "null"],
            log,
            environment={"GUESTWIRE_RUNTIME_DIRECTORY": str(tmp_path / "run")},
        )
        try:
            wait_until(lambda: "listening on" in log.read_text())
            every = json.loads(one.run("status", "--json").stdout)["guests"]
            assert {guest["name"]: guest["port"]["kind"] for guest in every} == {
                "guest": "echo",
                "other": "null",
            }
            alone = json.loads(one.run("status", "--json", "--pid", str(one.pid)).stdout)
            assert alone == {"guests": [guest for guest in every if guest["name"] == "guest"]}
            table = one.run("status").stdout
            assert "guest" in table
            assert "other" in table
        finally:
            assert processes.stop(other) == 0


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


def test_an_inherited_connection(tmp_path: Path, pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    process = start(tmp_path, "--fd", str(theirs.fileno()), "--port", "echo", pass_fds=(theirs.fileno(),))
    try:
        theirs.close()
        with FakeGuest(Frontend(ours)) as guest:
            frames_come_back(guest)
        # Nobody else can come by that way.
        assert process.wait(5) == 0
    finally:
        process.kill()
        process.wait()
    assert list((tmp_path / "run").iterdir()) == []


def test_an_inherited_listening_socket(tmp_path: Path) -> None:
    path = tmp_path / "inherited.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listening:
        listening.bind(str(path))
        listening.listen()
        number = listening.fileno()
        process = start(tmp_path, "--fd", str(number), "--port", "echo", pass_fds=(number,))
    try:
        for _ in range(2):
            with FakeGuest(path) as guest:
                frames_come_back(guest)
        assert processes.stop(process) == 0
    finally:
        process.kill()
        process.wait()


def test_it_connects_as_soon_as_somebody_listens(tmp_path: Path) -> None:
    with Backend(tmp_path, "echo", ["--connect"]) as backend:
        assert status(backend)["guest"].state == "connecting"
        for _ in range(2):
            with Frontend.listen(backend.socket) as accept, FakeGuest(accept()) as guest:
                frames_come_back(guest)
                assert status(backend)["guest"].state == "running"
        wait_until(lambda: status(backend)["guest"].state == "connecting")


def test_it_says_what_it_is(tmp_path: Path) -> None:
    answer = subprocess.run(
        [*COMMAND, "run", "--print-capabilities"], capture_output=True, text=True, timeout=30, check=True
    )
    assert json.loads(answer.stdout) == {"type": "net", "features": []}
    assert answer.stderr == ""


def test_a_second_frontend_waits_for_the_first_to_go(tmp_path: Path) -> None:
    with Backend(tmp_path, "echo") as backend:
        with FakeGuest(backend.socket) as first:
            second = Frontend.connect(backend.socket)
            second.send(encode_request(Request.GET_FEATURES))
            frames_come_back(first)
        with second:
            assert isinstance(second.read_reply(Request.GET_FEATURES), U64)


def start(folder: Path, *arguments: str, pass_fds: tuple[int, ...] = ()) -> subprocess.Popen[bytes]:
    return processes.spawn(
        [*COMMAND, "run", *arguments],
        folder / "log",
        pass_fds=pass_fds,
        environment={"GUESTWIRE_RUNTIME_DIRECTORY": str(folder / "run")},
    )
