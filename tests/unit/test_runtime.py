"""Runtime directories: how a process is found while it lives, and no longer."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest

from guestwire import runtime
from guestwire.errors import HostError
from guestwire.runtime import RuntimeDirectory, base_directory, live_directories

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


def test_a_process_that_was_killed_leaves_nothing(base: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", LIVE], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        try:
            assert process.stdout is not None
            path = Path(process.stdout.readline().decode().strip())
            (path / "vm1.counters").write_text("")
            assert live_directories() == [path]
        finally:
            process.kill()
    assert path.exists()
    assert live_directories() == []
    assert not path.exists()


def test_a_process_that_is_starting_is_left_alone(base: Path) -> None:
    # It has no lock yet. Process 1 lives whenever we do, and no process has number 0.
    (base / "1").mkdir(parents=True)
    (base / "0").mkdir()
    assert live_directories() == [base / "1"]
    assert not (base / "0").exists()


def test_the_lock_file_is_never_seen_without_its_lock(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = fcntl.flock
    seen = []

    def look_around(descriptor: int, operation: int) -> None:
        if operation == fcntl.LOCK_EX:
            seen.append(live_directories())
        real(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", look_around)
    directory = RuntimeDirectory()
    try:
        assert seen == [[directory.path]]
    finally:
        directory.close()


def test_what_an_earlier_process_of_the_same_number_left_is_replaced(base: Path) -> None:
    stale = base / str(os.getpid())
    stale.mkdir(parents=True)
    (stale / "control.sock").write_text("")
    directory = RuntimeDirectory()
    try:
        assert [path.name for path in directory.path.iterdir()] == ["lock"]
    finally:
        directory.close()


def test_other_names_are_nobodys(base: Path) -> None:
    (base / "notes").mkdir(parents=True)
    assert live_directories() == []
    assert (base / "notes").exists()


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
