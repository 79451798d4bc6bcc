"""Who may connect to a guest's socket: the group that was asked for, and nobody else, at every start."""

from __future__ import annotations

import grp
import os
import socket
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from backend.process import Backend
from guestwire.vhost_user.endpoint import Listener
from guestwire.vhost_user.socket_file import SocketAccess

pytestmark = pytest.mark.root

GROUP = "users"  # a member of which nobody else is
NOBODY = 65534


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that every user reaches, unlike pytest's."""
    with tempfile.TemporaryDirectory(prefix="guestwire-access-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


def as_somebody(group: int, act: Callable[[], object]) -> str:
    """Let another user, in one group only, do something; return the error that came of it, if any."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setgid(group)
            os.setuid(NOBODY)
            act()
        except Exception as error:
            os.write(writing, str(error).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        said = pipe.read().decode()
    os.waitpid(child, 0)
    return said


def may_connect(path: Path, group: int) -> bool:
    """Whether a process of another user can, as a member of a group."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        error = as_somebody(group, lambda: client.connect(os.fspath(path)))
    assert not error or "Permission denied" in error
    return not error


@pytest.mark.parametrize("named", ["by name", "by number", "in a file"])
def test_a_group_may_connect_at_every_start(folder: Path, named: str) -> None:
    number = grp.getgrnam(GROUP).gr_gid
    path = folder / "guest.sock"
    group = str(number) if named == "by number" else GROUP
    arguments = ["--socket-path", str(path), "--port", "null", "--socket-group", group]
    if named == "in a file":
        file = folder / "guests.toml"
        lines = ["[[guest]]", f'socket_path = "{path}"', f'socket_group = "{GROUP}"', 'port = "null"']
        file.write_text("\n".join(lines))
        arguments = [str(file)]
    for visit in ("first", "after a kill", "after an end"):
        log = folder / visit
        log.mkdir()
        with Backend(log, None, arguments, wrapper=["sh", "-c", 'umask 077; exec "$@"', "sh"]) as backend:
            status = path.stat()
            assert (stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid) == (
                0o660,
                os.geteuid(),
                number,
            )
            if visit == "first":
                backend.process.kill()
                backend.process.wait()


def test_other_users_may_not(folder: Path) -> None:
    number = grp.getgrnam(GROUP).gr_gid
    with Backend(folder, "null", ["--socket-group", GROUP]) as backend:
        assert may_connect(backend.socket, number)
        assert not may_connect(backend.socket, NOBODY)


def test_a_mode_alone(folder: Path) -> None:
    with Backend(folder, "null", ["--socket-mode", "0777"]) as backend:
        assert stat.S_IMODE(backend.socket.stat().st_mode) == 0o777


def test_a_user_gives_a_socket_to_groups_of_his_only(folder: Path) -> None:
    os.chown(folder, NOBODY, NOBODY)
    path = folder / "guest.sock"
    number = grp.getgrnam(GROUP).gr_gid
    error = as_somebody(NOBODY, lambda: Listener(path, SocketAccess(group=number)))
    assert f"cannot give socket {path} to group {number}" in error
    assert not path.exists()
    assert as_somebody(number, lambda: Listener(path, SocketAccess(group=number))) == ""
    assert path.stat().st_gid == number


def test_the_runtime_directory_lets_everybody_through(folder: Path) -> None:
    with Backend(folder, "null", wrapper=["sh", "-c", 'umask 077; exec "$@"', "sh"]) as backend:
        run = folder / "run"
        assert stat.S_IMODE(run.stat().st_mode) == 0o755
        assert stat.S_IMODE((run / str(backend.pid)).stat().st_mode) == 0o700
