"""Runtime directories: how a process is found while it lives, and no longer."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from backend.process import wait_until
from guestwire import runtime
from guestwire.errors import HostError
from guestwire.runtime import RuntimeDirectory, base_directory, live_directories, process_number

LIVE = """
import sys
from guestwire.runtime import RuntimeDirectory
directory = RuntimeDirectory()
print(directory.path, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GUESTWIRE_RUNTIME_DIRECTORY", str(tmp_path / "run"))
    return tmp_path / "run"


@pytest.mark.parametrize(
    ("user", "environment", "expected"),
    [
        (0, {}, "/run/guestwire"),
        (0, {"XDG_RUNTIME_DIR": "/run/user/1000"}, "/run/guestwire"),
        (1000, {"XDG_RUNTIME_DIR": "/run/user/1000"}, "/run/user/1000/guestwire"),
        (1000, {}, "/tmp/guestwire-1000"),
        (1000, {"GUESTWIRE_RUNTIME_DIRECTORY": "/x"}, "/x"),
    ],
)
def test_where_it_is(
    monkeypatch: pytest.MonkeyPatch, user: int, environment: dict[str, str], expected: str
) -> None:
    for name in ("XDG_RUNTIME_DIR", "GUESTWIRE_RUNTIME_DIRECTORY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(os, "geteuid", lambda: user)
    monkeypatch.setattr(runtime.tempfile, "gettempdir", lambda: "/tmp")
    assert base_directory() == Path(expected)


def test_from_start_to_end(base: Path) -> None:
    assert live_directories() == []
    directory = RuntimeDirectory()
    assert directory.path == base / str(os.getpid())
    assert directory.path.stat().st_mode & 0o777 == 0o700
    assert live_directories() == [directory.path]
    directory.close()
    assert list(base.iterdir()) == []


@contextlib.contextmanager
def another_process(*command: str) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """A process with a runtime directory, which is killed at the end."""
    with subprocess.Popen(
        [*command, sys.executable, "-c", LIVE], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        try:
            assert process.stdout is not None
            yield process, Path(process.stdout.readline().decode().strip())
        finally:
            process.kill()


@pytest.fixture
def dead(base: Path) -> Path:
    """What a process has left that was killed."""
    with another_process() as (_, path):
        (path / "vm1.counters").write_text("")
        with socket.socket(socket.AF_UNIX) as control:
            control.bind(str(path / "control.sock"))
        assert live_directories() == [path]
    assert live_directories() == []
    return path


def test_what_a_killed_process_has_left_the_next_one_removes(dead: Path) -> None:
    assert dead.exists()  # whoever only looks changes nothing
    directory = RuntimeDirectory()
    try:
        assert list(dead.parent.iterdir()) == [directory.path]
    finally:
        directory.close()


def precious(path: Path) -> None:
    (path / "precious").write_text("precious")


def nested(path: Path) -> None:
    (path / "work").mkdir()
    precious(path / "work")


def no_mark(path: Path) -> None:
    (path / "lock").write_text("")  # as of a version that put nothing into it, or of another program
    precious(path)


def no_lock(path: Path) -> None:
    (path / "lock").unlink()


def linked_lock(path: Path) -> None:
    (path / "lock").rename(path.parent / "elsewhere")
    (path / "lock").symlink_to(path.parent / "elsewhere")


def linked(path: Path) -> None:
    path.rename(path.parent / "elsewhere")
    path.symlink_to(path.parent / "elsewhere")


def not_a_socket(path: Path) -> None:
    (path / "control.sock").unlink()
    (path / "control.sock").write_text("precious")


def of_another_user(path: Path) -> None:
    os.chown(path, 4711, -1)


@pytest.mark.parametrize(
    "change",
    [
        precious,
        nested,
        no_mark,
        no_lock,
        linked_lock,
        linked,
        not_a_socket,
        pytest.param(of_another_user, marks=pytest.mark.skipif(os.geteuid() != 0, reason="needs root")),
    ],
)
def test_what_is_not_provably_ours_stays(dead: Path, change: Callable[[Path], None]) -> None:
    change(dead)
    before = {path: path.is_file() and path.read_bytes() for path in dead.parent.rglob("*")}
    assert live_directories() == []
    RuntimeDirectory().close()
    assert {path: path.is_file() and path.read_bytes() for path in dead.parent.rglob("*")} == before


def test_other_names_and_other_contents_are_nobodys(base: Path) -> None:
    for name in ("notes", "2026", "0", "1.", str(os.getpid())):
        (base / name).mkdir(parents=True)
        precious(base / name)
    assert live_directories() == []
    directory = RuntimeDirectory()
    assert directory.path == base / f"{os.getpid()}.2"
    assert live_directories() == [directory.path]
    directory.close()
    assert sorted(path.parent.name for path in base.glob("*/precious")) == sorted(
        ("notes", "2026", "0", "1.", str(os.getpid()))
    )


@pytest.mark.skipif(os.geteuid() != 0, reason="making a PID namespace needs root")
def test_processes_with_one_number_leave_each_other_alone(base: Path) -> None:
    """As in containers: each is number 1 in a PID namespace of its own, and /run is the same."""
    alone = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc")
    with another_process(*alone) as (_, first), another_process(*alone) as (second, other):
        assert (first.name, other.name) == ("1", "1.2")
        assert process_number(other) == 1
        assert live_directories() == [first, other]
        second.kill()
        second.wait()
        wait_until(lambda: live_directories() == [first])
        RuntimeDirectory().close()
        assert list(base.iterdir()) == [first]


def test_the_lock_file_is_never_seen_without_its_lock(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = fcntl.flock
    seen = []

    def look_around(descriptor: int, operation: int) -> None:
        if operation == fcntl.LOCK_EX:
            seen.append([path.name for path in base.glob("*/*")])
        real(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", look_around)
    directory = RuntimeDirectory()
    try:
        assert seen == [["lock.new"]]
        assert live_directories() == [directory.path]
    finally:
        directory.close()


def test_what_an_earlier_process_of_the_same_number_left_is_replaced(dead: Path) -> None:
    own = dead.rename(dead.parent / str(os.getpid()))
    directory = RuntimeDirectory()
    try:
        assert directory.path == own
        assert [path.name for path in directory.path.iterdir()] == ["lock"]
    finally:
        directory.close()


def test_nothing_of_others_goes_with_it(base: Path) -> None:
    directory = RuntimeDirectory()
    precious(directory.path)
    directory.close()
    assert [path.name for path in directory.path.iterdir()] == ["precious"]


def test_a_place_that_cannot_be(base: Path) -> None:
    base.write_text("")
    with pytest.raises(HostError, match=f"cannot create the runtime directory {base}") as caught:
        RuntimeDirectory()
    assert "GUESTWIRE_RUNTIME_DIRECTORY=DIR" in str(caught.value.remedy)


def test_a_place_that_somebody_else_has_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GUESTWIRE_RUNTIME_DIRECTORY", raising=False)
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    monkeypatch.setattr(runtime.tempfile, "gettempdir", lambda: str(tmp_path))
    owner = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    (tmp_path / f"guestwire-{owner + 1}").mkdir()
    with pytest.raises(HostError, match=f"belongs to user {owner}, not to user {owner + 1}"):
        RuntimeDirectory()


@pytest.mark.skipif(os.geteuid() != 0, reason="giving a link away needs root")
def test_a_place_that_somebody_elses_link_leads_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GUESTWIRE_RUNTIME_DIRECTORY", raising=False)
    monkeypatch.setattr(runtime, "base_directory", lambda: tmp_path / "guestwire")
    (tmp_path / "mine").mkdir()
    (tmp_path / "guestwire").symlink_to(tmp_path / "mine")
    os.chown(tmp_path / "guestwire", 4711, -1, follow_symlinks=False)
    with pytest.raises(HostError, match="belongs to user 4711"):
        RuntimeDirectory()
    assert list((tmp_path / "mine").iterdir()) == []
