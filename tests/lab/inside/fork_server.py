"""Runs guestwire commands in the lab's machine without paying for Python's start each time.

On an emulated processor, guestwire's imports take ten seconds, and more on a busy machine.  So one
process has them done when the machine boots, and each command is a fork of a fork of that process.

usage: fork_server.py SOCKET
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import traceback
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Listener
from pathlib import Path
from typing import NoReturn

from guestwire.cli.main import app, main
from guestwire.errors import GuestwireError

PR_SET_PDEATHSIG = 1  # linux/prctl.h
_libc = ctypes.CDLL(None)


def serve(path: str) -> NoReturn:
    """Listen for connections; a process for each answers what is asked."""
    # The command line's machinery imports more when it is first used.
    with contextlib.suppress(GuestwireError):
        app(["status"], standalone_mode=False)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for these processes
    with Listener(f"{path}.new") as listener:
        Path(f"{path}.new").rename(path)  # whoever finds it can connect
        while True:
            connection = listener.accept()
            if os.fork() == 0:
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                with contextlib.suppress(EOFError):
                    while True:
                        connection.send(_answer(*connection.recv()))
                os._exit(0)  # and its commands with it
            connection.close()


def _answer(request: str, *details: object) -> object:
    match request, *details:
        case "start", [*arguments], str(log), dict(environment):
            pid = os.fork()
            if pid == 0:
                _become(arguments, log, environment)
            return pid
        case "poll", int(pid):
            ended, status = os.waitpid(pid, os.WNOHANG)
            return os.waitstatus_to_exitcode(status) if ended else None
    raise ValueError(f"no such request: {request} {details}")


def _become(arguments: Sequence[str], log: str, environment: Mapping[str, str]) -> NoReturn:
    """Be a guestwire command with its output in a file, and end."""
    status = 1
    try:
        _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.closerange(3, os.sysconf("SC_OPEN_MAX"))
        os.environ.update(environment)
        sys.argv = ["guestwire", *arguments]
        main()
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(status)


if __name__ == "__main__":
    serve(sys.argv[1])
