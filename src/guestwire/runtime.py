"""The runtime directory of a process: its control socket and counter files, and how others find them.

Each process has ``guestwire/PID`` below /run (or $XDG_RUNTIME_DIR for users other than root) and holds a
lock on a file in it for as long as it lives. What a killed process left behind is known by its lock being
free, and is removed by the next one that looks.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from pathlib import Path

from guestwire.errors import HostError

CONTROL_SOCKET = "control.sock"
_LOCK = "lock"


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
    """This process's runtime directory, created now.

    Raises:
        HostError: it cannot be created, or would not be ours alone.
    """

    def __init__(self) -> None:
        self.path = base_directory() / str(os.getpid())
        try:
            base_directory().mkdir(mode=0o755, parents=True, exist_ok=True)
            _require_own(base_directory())
            live_directories()
            shutil.rmtree(self.path, ignore_errors=True)
            self.path.mkdir(mode=0o700)
            self._lock = _lock(self.path)
        except OSError as error:
            raise HostError(
                f"cannot create the runtime directory {self.path}: {error.strerror}",
                "choose another place: GUESTWIRE_RUNTIME_DIRECTORY=DIR guestwire ...",
            ) from error

    def close(self) -> None:
        """Remove it."""
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock)


def _require_own(base: Path) -> None:
    """Refuse a directory that another user has put there: its owner could exchange our files."""
    if not os.environ.get("GUESTWIRE_RUNTIME_DIRECTORY") and base.stat().st_uid != os.geteuid():
        raise HostError(
            f"the directory {base} belongs to user {base.stat().st_uid}, not to user {os.geteuid()}",
            "choose another place: GUESTWIRE_RUNTIME_DIRECTORY=DIR guestwire ...",
        )


def _lock(directory: Path) -> int:
    """Lock a runtime directory; its lock file appears only when it is locked."""
    unseen = directory / f"{_LOCK}.new"
    descriptor = os.open(unseen, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        unseen.rename(directory / _LOCK)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _is_live(directory: Path) -> bool:
    """Tell whether the process of a runtime directory still holds its lock."""
    try:
        lock = os.open(directory / _LOCK, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        # Before it has its lock a process is starting; it is gone if its number is.
        return Path(f"/proc/{directory.name}").exists()
    except PermissionError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    else:
        return False
    finally:
        os.close(lock)


def live_directories() -> list[Path]:
    """Return the runtime directories of live processes, and remove those of dead ones."""
    with contextlib.suppress(FileNotFoundError):
        found = sorted(p for p in base_directory().iterdir() if p.name.isdigit())
        live = [p for p in found if _is_live(p)]
        for dead in set(found) - set(live):
            shutil.rmtree(dead, ignore_errors=True)
        return live
    return []
