"""Child processes that never outlive us, not even when we are killed."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path


def spawn(
    command: Sequence[str | Path],
    log: Path,
    *,
    namespace: str | None = None,
    pass_fds: Collection[int] = (),
    environment: Mapping[str, str] | None = None,
) -> subprocess.Popen[bytes]:
    """Start a command whose end is tied to ours.

    The kernel kills the command when the *thread* that called this ends (PR_SET_PDEATHSIG,
    prctl(2)): call it from a thread that lives as long as the command should.

    Args:
        command: the program and its arguments.
        log: where its standard output and standard error are appended.
        namespace: the network namespace to run it in, by name; ours when None.
        pass_fds: file descriptors that it inherits.
        environment: variables set in addition to ours.
    """
    # Every wrapper execs the next, so that the process we get is the command itself.
    wrapper = ["setpriv", "--pdeathsig", "KILL", "--"]
    if namespace is not None:
        wrapper += ["ip", "netns", "exec", namespace]
    with log.open("ab") as output:
        return subprocess.Popen(
            [*wrapper, *map(str, command)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            pass_fds=tuple(pass_fds),
            env={**os.environ, **(environment or {})},
        )


def stop(process: subprocess.Popen[bytes], grace: float = 5.0) -> int:
    """End a process: SIGTERM, then SIGKILL after ``grace`` seconds; the exit status is returned."""
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        return process.wait(grace)
    process.kill()
    return process.wait()


def cpu_seconds(pid: int) -> float:
    """CPU time, user and system, that all threads of a process have used so far."""
    stat = Path(f"/proc/{pid}/stat").read_text()
    # proc(5): the command name may hold spaces and brackets; utime and stime are fields 14 and 15.
    fields = stat[stat.rindex(")") + 2 :].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
