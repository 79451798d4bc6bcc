"""The control socket: requests that it answers, and those that it refuses."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from guestwire.control import LONGEST_REQUEST, ControlServer, Rebound, Status, ask_rebind, ask_status
from guestwire.errors import ConfigurationError, HostError

STATUS = Status(pid=1, version="1", guests=[])


async def rebind(guest: str, port: str) -> Rebound:
    """Takes a moment, in which others are answered; only vm1 is there."""
    await asyncio.sleep(0.01)
    if guest != "vm1":
        raise ConfigurationError(f"no guest {guest}", "look for it")
    return Rebound(guest=guest, old_port="echo", port=port, milliseconds=1.5)


@contextlib.contextmanager
def served(path: Path, status: Callable[[], Status]) -> Iterator[None]:
    """A control server in a thread of its own."""
    ready, loop, end = threading.Event(), asyncio.new_event_loop(), asyncio.Event()

    async def serve() -> None:
        server = ControlServer(path, status, rebind)
        await server.start()
        ready.set()
        await end.wait()
        await server.stop()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    try:
        assert ready.wait(10)
        yield
    finally:
        loop.call_soon_threadsafe(end.set)
        thread.join()
        loop.close()


def talk(path: Path, *lines: bytes) -> list[Any]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(10)
        connection.connect(str(path))
        connection.sendall(b"".join(lines))
        connection.shutdown(socket.SHUT_WR)
        with connection.makefile("rb") as answers:
            return [msgspec.json.decode(line) for line in answers]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "control.sock"


def test_status(path: Path) -> None:
    with served(path, lambda: STATUS):
        assert ask_status(path) == STATUS
        assert path.stat().st_mode & 0o777 == 0o600
        request = b'{"command": "status"}\n'
        answer = {"pid": 1, "version": "1", "guests": []}
        assert talk(path, request, request) == [answer, answer]


@pytest.mark.parametrize(
    ("line", "error"),
    [
        (b"\n", "this is no request"),
        (b"status\n", "this is no request"),
        (b"{}\n", "missing required field `command`"),
        (b'{"command": "status", "more": 1}\n', "unknown field `more`"),
        (b'{"command": "stop"}\n', "Invalid value 'stop' - at `$.command`"),
        (b'{"command": "rebind", "guest": "vm1"}\n', "missing required field `port`"),
        (b'{"command": "rebind", "guest": 1, "port": "echo"}\n', "Expected `str`, got `int` - at `$.guest`"),
        (b"\xff\n", "this is no request"),
    ],
)
def test_what_is_no_request_is_refused_and_the_next_is_answered(path: Path, line: bytes, error: str) -> None:
    with served(path, lambda: STATUS):
        refusal, answer = talk(path, line, b'{"command": "status"}\n')
        assert error in refusal["error"]
        assert refusal["remedy"] == 'send {"command": "status"}'
        assert answer["pid"] == 1


def test_a_request_without_end_does_not_stay(path: Path) -> None:
    with served(path, lambda: STATUS):
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(10)
            connection.connect(str(path))
            with contextlib.suppress(ConnectionError):
                connection.sendall(bytes(2 * LONGEST_REQUEST + 1))
            with contextlib.suppress(ConnectionError):
                assert connection.recv(1) == b""
        assert ask_status(path) == STATUS


def test_a_status_that_cannot_be_made(path: Path) -> None:
    def fail() -> Status:
        raise HostError("no counters", "look for them")

    with served(path, fail):
        answer = {"error": "no counters", "remedy": "look for them", "exit_code": 3}
        assert talk(path, b'{"command": "status"}\n') == [answer]
        with pytest.raises(HostError, match="no counters") as caught:
            ask_status(path)
        assert caught.value.remedy == "look for them"


def test_rebind(path: Path) -> None:
    with served(path, lambda: STATUS):
        done = ask_rebind(path, "vm1", "null")
        assert done == Rebound(guest="vm1", old_port="echo", port="null", milliseconds=1.5)
        request = b'{"command": "rebind", "guest": "vm1", "port": "null"}\n'
        answer = {"guest": "vm1", "old_port": "echo", "port": "null", "milliseconds": 1.5}
        assert talk(path, request) == [answer]


def test_a_rebind_that_is_refused_is_the_same_error_at_the_other_end(path: Path) -> None:
    with served(path, lambda: STATUS), pytest.raises(ConfigurationError, match="no guest vm2") as caught:
        ask_rebind(path, "vm2", "null")
    assert caught.value.remedy == "look for it"


def test_nobody_answers(path: Path) -> None:
    with pytest.raises(HostError, match=f"the process behind {path} does not answer"):
        ask_status(path)
    with served(path, lambda: STATUS):
        pass
    with pytest.raises(HostError, match=f"the process behind {path} does not answer"):
        ask_status(path)


def test_a_path_that_is_too_long(tmp_path: Path) -> None:
    server = ControlServer(tmp_path / ("x" * 100) / "control.sock", lambda: STATUS, rebind)
    with pytest.raises(HostError, match="AF_UNIX path too long") as caught:
        asyncio.run(server.start())
    assert "GUESTWIRE_RUNTIME_DIRECTORY" in str(caught.value.remedy)
