"""The runtime directory of a process: its control socket and counter files, and how others find them.

Each process has ``guestwire/PID`` below /run (or $XDG_RUNTIME_DIR for users other than root); ``PID.2`` and
so on where that name is taken, since processes in containers can share the directory and have the same
number. It holds a lock on the file ``lock`` in it for as long as it lives: the kernel lets go of the lock
when the process dies, however it dies and wherever it ran; a number may be another process's by then.

What a killed process has left is removed by the next one that starts. It removes only what is provably ours
and dead: a real directory of such a name, of this user, whose ``lock`` file says what it is and is locked by
nobody, and which holds nothing but what a process puts there.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import re
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

from guestwire.errors import HostError, shortage_remedy

CONTROL_SOCKET = "control.sock"
COUNTERS_SUFFIX = ".counters"
_LOCK = "lock"
_LOCK_UNSEEN = "lock.new"
_MARK = b"A guestwire process lives as long as it holds a lock on this file.\n"
_NAME = re.compile(r"[1-9]\d*(\.[1-9]\d*)?")


def base_directory() -> Path:
    """Return where the processes of this user have their runtime directories."""
    if configured := os.environ.get("GUESTWIRE_RUNTIME_DIRECTORY"):
        return Path(configured)
    if os.geteuid() == 0:
        return Path("/run/guestwire")
    if user := os.environ.get("XDG_RUNTIME_DIR"):
        return Path(user) / "guestwire"
    return Path(tempfile.gettempdir()) / f"guestwire-{os.geteuid()}"


class RuntimeDirectory:
    """This process's runtime directory, created now; those of dead processes are removed.

    Raises:
        HostError: it cannot be created, or would not be ours alone.
    """

    def __init__(self) -> None:
        base = base_directory()
        try:
            _make(base)
            _require_own(base)
            for left in _directories(base):
                _remove_if_dead(left)
            self.path = _claim(base)
            try:
                self._lock = _lock(self.path)
            except BaseException:
                _remove(self.path)
                raise
        except OSError as error:
            raise HostError(
                f"cannot create the runtime directory {base}/{os.getpid()}: {error.strerror}",
                shortage_remedy(error, base)
                or "choose another place: GUESTWIRE_RUNTIME_DIRECTORY=DIR guestwire ...",
            ) from error

    def close(self) -> None:
        """Remove it."""
        os.close(self._lock)  # first, since looking takes a descriptor
        _remove(self.path)


def _make(base: Path) -> None:
    """Make the directory, if it is not there, so that frontends of other users reach sockets in it."""
    with contextlib.suppress(FileExistsError):
        base.mkdir(mode=0o755, parents=True)
        base.chmod(0o755)  # whatever the umask is


def _require_own(base: Path) -> None:
    """Refuse a directory that another user has put there: its owner could exchange our files."""
    if os.environ.get("GUESTWIRE_RUNTIME_DIRECTORY"):
        return
    for owner in (base.lstat().st_uid, base.stat().st_uid):
        if owner != os.geteuid():
            raise HostError(
                f"the directory {base} belongs to user {owner}, not to user {os.geteuid()}",
                "choose another place: GUESTWIRE_RUNTIME_DIRECTORY=DIR guestwire ...",
            )


def _claim(base: Path) -> Path:
    """Make a directory that nobody had before."""
    for number in itertools.count(1):
        path = base / (f"{os.getpid()}.{number}" if number > 1 else str(os.getpid()))
        with contextlib.suppress(FileExistsError):
            path.mkdir(mode=0o700)
            break
    return path


def _lock(directory: Path) -> int:
    """Lock a runtime directory; its lock file appears only when it is complete and locked."""
    unseen = directory / _LOCK_UNSEEN
    descriptor = os.open(unseen, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        os.write(descriptor, _MARK)
        unseen.rename(directory / _LOCK)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _directories(base: Path) -> list[Path]:
    """Return what looks by its name like a runtime directory."""
    with contextlib.suppress(FileNotFoundError):
        return sorted(path for path in base.iterdir() if _NAME.fullmatch(path.name))
    return []


@contextlib.contextmanager
def _open(path: str | Path, flags: int, directory: int | None = None) -> Iterator[int]:
    """Open what is there itself: no link is followed, and no pipe is waited for."""
    descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _is_locked(lock: int, kind: int) -> bool:
    try:
        fcntl.flock(lock, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    return False


def _is_live(path: Path) -> bool:
    """Tell whether the process of a runtime directory holds its lock."""
    try:
        with (
            _open(path, os.O_RDONLY | os.O_DIRECTORY) as directory,
            _open(_LOCK, os.O_RDONLY, directory) as lock,
        ):
            return _is_locked(lock, fcntl.LOCK_SH)
    except OSError:  # it is no runtime directory, or another user's, or just going
        return False


def live_directories() -> list[Path]:
    """Return the runtime directories of live processes, and change nothing."""
    return [path for path in _directories(base_directory()) if _is_live(path)]


def process_number(directory: Path) -> int:
    """Return the number of a runtime directory's process, as it was where that process was started."""
    return int(directory.name.partition(".")[0])


def _remove_if_dead(path: Path) -> None:
    """Remove a runtime directory that is provably ours and dead; leave any other as it is."""
    with (
        contextlib.suppress(OSError),
        _open(path, os.O_RDONLY | os.O_DIRECTORY) as directory,
        _open(_LOCK, os.O_RDWR, directory) as lock,
    ):
        ours = os.fstat(directory).st_uid == os.geteuid() and os.pread(lock, len(_MARK) + 1, 0) == _MARK
        if ours and all(_contents(directory).values()) and not _is_locked(lock, fcntl.LOCK_EX):
            _remove(path)


def _remove(path: Path) -> None:
    """Remove what a process has made in its runtime directory, the lock last, and it, if it is empty then."""
    with contextlib.suppress(OSError):
        made = [name for name, ours in _contents(path).items() if ours]
        for name in sorted(made, key=lambda name: name == _LOCK):
            (path / name).unlink()
    with contextlib.suppress(OSError):
        path.rmdir()


def _contents(directory: int | Path) -> dict[str, bool]:
    """Return the names of what lies in a directory, and whether a process puts such things there."""
    with os.scandir(directory) as entries:
        return {entry.name: _is_made_by_us(entry) for entry in entries}


def _is_made_by_us(entry: os.DirEntry[str]) -> bool:
    mode = entry.stat(follow_symlinks=False).st_mode
    if entry.name == CONTROL_SOCKET:
        return stat.S_ISSOCK(mode)
    named = entry.name in {_LOCK, _LOCK_UNSEEN} or entry.name.endswith(COUNTERS_SUFFIX)
    return named and stat.S_ISREG(mode)
