"""What `guestwire run` refuses: one clear error, what to do, the exit status, and nothing left behind."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from backend.house import complaints, status
from backend.process import COMMAND, Backend, wait_until
from guestwire.cli.main import main
from guestwire.testing import FakeGuest, FrameStream, processes

DESCRIPTION, HOST = 2, 3  # exit statuses (docs/reference.md)


def refused(folder: Path, *arguments: str | Path, runtime: Path | None = None) -> tuple[int, str, str]:
    """Run `guestwire run` to its end: its exit status, the error and the remedy; nothing else is said."""
    runtime = runtime or folder / "run"
    answer = subprocess.run(
        [*COMMAND, "run", *map(str, arguments)],
        env={**os.environ, "GUESTWIRE_RUNTIME_DIRECTORY": str(runtime)},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert answer.stdout == ""
    said = re.fullmatch(r"guestwire: (.*)\n  to do: (.*)\n", answer.stderr)
    assert said, answer.stderr
    assert not runtime.is_dir() or list(runtime.iterdir()) == []
    return answer.returncode, said[1], said[2]


def refused_here(
    arguments: Sequence[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> tuple[str, str]:
    """The same in this process, since a start takes a while: a wrong description's error and remedy."""
    monkeypatch.setattr(sys, "argv", ["guestwire", "run", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == DESCRIPTION
    printed = capsys.readouterr()
    assert printed.out == ""
    said = re.fullmatch(r"guestwire: (.*)\n  to do: (.*)\n", printed.err)
    assert said, printed.err
    return said[1], said[2]


def echo_on(path: Path) -> tuple[str | Path, ...]:
    return ("--socket-path", path, "--port", "echo")


def test_a_path_in_use_by_a_live_process(tmp_path: Path) -> None:
    with Backend(tmp_path, "echo") as backend:
        code, error, remedy = refused(tmp_path, *echo_on(backend.socket), runtime=tmp_path / "other")
        assert code == DESCRIPTION
        assert re.search(rf"{backend.socket} is in use by process {backend.pid} \(.+\)", error)
        assert remedy == f"choose another socket path; whose this one is: ss -xlp src {backend.socket}"
        with FakeGuest(backend.socket) as guest:
            assert guest.pair.exchange(FrameStream(), 100).received == 100


def test_a_stale_socket_is_replaced(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as stale:
        stale.bind(str(tmp_path / "guest.sock"))
    with Backend(tmp_path, "echo") as backend, FakeGuest(backend.socket) as guest:
        assert guest.pair.exchange(FrameStream(), 100).received == 100


def test_a_path_that_is_a_file(tmp_path: Path) -> None:
    file = tmp_path / "precious"
    file.write_text("precious")
    code, error, remedy = refused(tmp_path, *echo_on(file))
    assert (code, error) == (DESCRIPTION, f"socket path {file} exists and is not a socket")
    assert remedy.startswith("choose another path")
    assert file.read_text() == "precious"


def test_a_directory_that_is_missing(tmp_path: Path) -> None:
    code, error, remedy = refused(tmp_path, *echo_on(tmp_path / "no" / "guest.sock"))
    assert (code, remedy) == (DESCRIPTION, f"create the directory: mkdir -p {tmp_path}/no")
    assert "No such file or directory" in error


def test_an_interface_that_is_missing(tmp_path: Path) -> None:
    path = tmp_path / "guest.sock"
    code, error, remedy = refused(tmp_path, "--socket-path", path, "--port", "xdp:nowhere0")
    assert (code, remedy) == (HOST, "ip -brief link")
    assert error.startswith("there is no interface 'nowhere0' in this network namespace")
    assert not path.exists()


def test_a_runtime_directory_that_cannot_be(tmp_path: Path) -> None:
    taken = tmp_path / "taken"
    taken.write_text("")
    code, error, remedy = refused(tmp_path, *echo_on(tmp_path / "guest.sock"), runtime=taken / "run")
    assert code == HOST
    assert error.startswith(f"cannot create the runtime directory {taken}/run/")
    assert "GUESTWIRE_RUNTIME_DIRECTORY=DIR" in remedy


def test_a_runtime_directory_whose_name_is_too_long(tmp_path: Path) -> None:
    code, error, remedy = refused(tmp_path, *echo_on(tmp_path / "guest.sock"), runtime=tmp_path / ("x" * 100))
    assert code == HOST
    assert "AF_UNIX path too long" in error
    assert "choose a shorter place" in remedy


@pytest.mark.parametrize(
    ("arguments", "error", "remedy"),
    [
        ((), "nothing to serve: no file and no --port", "guestwire run --socket-path PATH --port PORT"),
        (("--port", "echo"), "needs either socket_path or fd", "--socket-path"),
        (("--fd", "99", "--port", "echo"), "file descriptor 99 cannot be the vhost-user socket", "--fd"),
        (("--fd", "99", "--port", "echo", "--connect"), "file descriptor 99 is open already", "--connect"),
        (
            ("--socket-path", "x", "--port", "echo", "--queue-pairs", "65"),
            "queue_pairs",
            "guestwire run --help",
        ),
        (("--socket-path", "x", "--port", "xdp:e,mode=fast"), "cannot understand 'mode=fast'", "mode=auto|"),
    ],
)
def test_wrong_flags(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    error: str,
    remedy: str,
) -> None:
    said, to_do = refused_here(arguments, monkeypatch, capsys)
    assert error in said
    assert remedy in to_do


TWO_GUESTS = """
[[guest]]
name = "{names[0]}"
socket_path = "{folder}/one.sock"
port = "{port}"

[[guest]]
name = "{names[1]}"
socket_path = "{folder}/two.sock"
port = "echo"
"""


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("", "missing required field `guest`"),
        ("guest = []", "the configuration names no guest"),
        ("[[guest", "does not describe guests"),
        ('[[guest]]\nsoket_path = "x"\nport = "echo"', "unknown field `soket_path` - at `$.guest[0]`"),
        (TWO_GUESTS.format(names=("a", "a"), folder="/tmp", port="echo"), "two guests have the same name: a"),
        (TWO_GUESTS.format(names=("a", "b"), folder="/tmp", port="eco"), "unknown port 'eco'"),
    ],
    ids=["empty", "no guests", "no TOML", "unknown key", "same name", "unknown port"],
)
def test_wrong_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], text: str, error: str
) -> None:
    monkeypatch.setenv("GUESTWIRE_RUNTIME_DIRECTORY", str(tmp_path / "run"))
    file = tmp_path / "guests.toml"
    file.write_text(text)
    said, _ = refused_here([str(file)], monkeypatch, capsys)
    assert error in said


def test_one_guest_that_cannot_be_served_among_others(tmp_path: Path) -> None:
    file = tmp_path / "guests.toml"
    file.write_text(TWO_GUESTS.format(names=("first", "second"), folder=tmp_path, port="xdp:nowhere0"))
    with Backend(tmp_path, arguments=[str(file)], sockets=[tmp_path / "two.sock"]) as backend:
        (said,) = complaints(backend.text())
        assert said.startswith("guestwire.guest.first: not served: there is no interface 'nowhere0'")
        assert said.endswith("; ip -brief link")
        assert not (tmp_path / "one.sock").exists()
        with FakeGuest(tmp_path / "two.sock") as guest:
            assert guest.pair.exchange(FrameStream(), 100).received == 100
        states = {name: guest.state for name, guest in status(backend).items()}
        assert states["first"].startswith("failed: there is no interface 'nowhere0'")


# Once there is something on its path, a connector fails for good: no way is known in which a real one does.
FAILING = """
import asyncio
from guestwire.cli.main import main
from guestwire.errors import HostError
from guestwire.vhost_user.endpoint import Connector

async def connection(self):
    while not self._path.exists():
        await asyncio.sleep(0.01)
    raise HostError(f"{self._path} is broken", "mend it")

Connector.connection = connection
main()
"""
TWO_CONNECTING = TWO_GUESTS.replace("port =", 'role = "connect"\nport =')


def test_a_guest_that_fails_later_among_others(tmp_path: Path) -> None:
    file = tmp_path / "guests.toml"
    first = TWO_GUESTS.replace('port = "{port}"', 'port = "{port}"\nrole = "connect"', 1)
    file.write_text(first.format(names=("first", "second"), folder=tmp_path, port="echo"))
    sockets = [tmp_path / "two.sock"] * 2
    command = (sys.executable, "-c", FAILING)
    with Backend(tmp_path, arguments=[str(file)], sockets=sockets, command=command) as backend:
        assert status(backend)["first"].state == "connecting"
        (tmp_path / "one.sock").touch()
        with FakeGuest(tmp_path / "two.sock") as guest:
            while "not served" not in backend.text():
                assert guest.pair.exchange(FrameStream(), 100, wait=True).received == 100
        (said,) = complaints(backend.text())
        assert "one.sock is broken; mend it" in said
        assert status(backend)["first"].state.startswith("failed: ")


def test_a_process_whose_guests_have_all_failed_fails(tmp_path: Path) -> None:
    """So whoever watches over it sees that nobody is served, also when that happens long after its start."""
    sockets = [tmp_path / "one.sock", tmp_path / "two.sock"]
    file = tmp_path / "guests.toml"
    file.write_text(TWO_CONNECTING.format(names=("first", "second"), folder=tmp_path, port="echo"))
    backend = Backend(
        tmp_path, arguments=[str(file)], sockets=sockets, command=(sys.executable, "-c", FAILING)
    )
    backend.__enter__()
    try:
        for number, path in enumerate(sockets):
            path.touch()
            wait_until(lambda: backend.text().count("not served") > number)  # noqa: B023
        assert backend.process.wait(60) == HOST
    finally:
        processes.stop(backend.process)
    assert re.search(r"^guestwire: .* is broken$", backend.text(), re.MULTILINE)
    assert "Traceback" not in backend.text()


def test_a_guest_that_meets_a_wrong_socket_waits_for_the_right_one(tmp_path: Path) -> None:
    path = tmp_path / "guest.sock"
    with Backend(tmp_path, "echo", ["--connect"]) as backend:
        path.write_text("no socket")
        wait_until(lambda: "exists and is not a socket" in backend.text())
        assert status(backend)["guest"].state == "connecting"
        path.unlink()
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listening:
            listening.settimeout(10)
            listening.bind(os.fspath(path))
            listening.listen(1)
            listening.accept()[0].close()


def test_a_cpu_that_does_not_exist(tmp_path: Path) -> None:
    code, error, remedy = refused(tmp_path, *echo_on(tmp_path / "guest.sock"), "--cpus", "0,8000,8001")
    assert code == HOST
    assert error == "cpus: this process cannot run on CPU 8000, 8001"
    assert remedy.startswith("lscpu --extended")
    assert not (tmp_path / "guest.sock").exists()
