"""A machine that is out of descriptors or of room: one clear line, nothing left behind, and on it goes."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from backend.house import complaints, status
from backend.process import COMMAND, Backend, wait_until
from guestwire.runtime import CONTROL_SOCKET
from guestwire.testing import FakeGuest, FrameStream, processes

HOST = 3  # exit status (docs/reference.md)
GUESTS = """
[[guest]]
name = "first"
socket_path = "{folder}/first.sock"
port = "echo"

[[guest]]
name = "second"
socket_path = "{folder}/second.sock"
port = "echo"
"""


@contextlib.contextmanager
def many_connections(path: Path, count: int) -> Iterator[None]:
    with contextlib.ExitStack() as all_of_them:
        for _ in range(count):
            connection = all_of_them.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            connection.settimeout(10)
            connection.connect(os.fspath(path))
        yield


def test_a_control_socket_with_more_connections_than_descriptors(tmp_path: Path) -> None:
    limit = 40
    with Backend(tmp_path, "echo", wrapper=("prlimit", f"--nofile={limit}:{limit}", "--")) as backend:
        control = tmp_path / "run" / str(backend.pid) / CONTROL_SOCKET
        with FakeGuest(backend.socket) as guest:
            with many_connections(control, limit):
                wait_until(lambda: complaints(backend.text()))
                assert guest.pair.exchange(FrameStream(), 1000).received == 1000
            assert status(backend)["guest"].state == "running"
        said = "guestwire.accepting: cannot accept a control socket's connection yet: Too many open files"
        assert complaints(backend.text()) == [said]


@pytest.mark.parametrize("limit", [8, 10, 11, 13, 15])
def test_a_start_with_few_descriptors(tmp_path: Path, limit: int) -> None:
    """Whoever of two guests finds none: the other is served, or the process ends; nothing is left."""
    file = tmp_path / "guests.toml"
    file.write_text(GUESTS.format(folder=tmp_path))
    log = tmp_path / "log"
    process = processes.spawn(
        ["prlimit", f"--nofile={limit}:{limit}", "--", *COMMAND, "run", file],
        log,
        environment={"GUESTWIRE_RUNTIME_DIRECTORY": str(tmp_path / "run")},
    )
    try:
        settled = r"guest\.(?:first|second): (listening|not served)"

        def is_settled() -> bool:
            said = re.findall(settled, log.read_text())
            return process.poll() is not None or (len(said) == 2 and "listening" in said)

        wait_until(is_settled, 30)
        ended = process.poll()
        if ended is None:
            process.terminate()
            assert process.wait(10) == 0
        else:
            assert ended == HOST, log.read_text()
            assert "guestwire: cannot" in log.read_text()
        assert "Traceback" not in log.read_text()
    finally:
        process.kill()
        process.wait()
    assert not list(tmp_path.glob("*.sock"))
    assert not list((tmp_path / "run").glob("*"))


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a file system needs root")
@pytest.mark.parametrize("pages", [0, 1, 2])
def test_a_full_runtime_directory(tmp_path: Path, pages: int) -> None:
    """With room for so many pages there is none for the counters of 64 queue pairs, nor for more at first."""
    mount = f'mount -t tmpfs -o size={4096 * (pages + 1)} small "$0"'
    inside = f'{mount} && head -c 4096 /dev/zero >"$0/full" && exec "$@"'
    guest = ("--socket-path", tmp_path / "guest.sock", "--port", "echo", "--queue-pairs", "64")
    (tmp_path / "run").mkdir()
    done = subprocess.run(
        [
            *("unshare", "--mount", "--propagation", "private", "sh", "-c", inside, tmp_path / "run"),
            *(*COMMAND, "run", *guest),
        ],
        env={**os.environ, "GUESTWIRE_RUNTIME_DIRECTORY": str(tmp_path / "run")},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == HOST, done.stderr
    assert re.search(r"guestwire: cannot .*: No space left on device\n  to do: make room: df -h", done.stderr)
    assert not (tmp_path / "guest.sock").exists()
