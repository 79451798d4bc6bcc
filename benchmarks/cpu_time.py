"""CPU time of the parts of a guest: the threads of an emulator, the processes of User-Mode Linux."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")


def threads_cpu_seconds(pid: int) -> list[tuple[str, float]]:
    """Return the name of each thread of a process, and the CPU time, user and system, that it has used."""
    return [
        ((thread / "comm").read_text().strip(), sum(_times(thread / "stat")[:2]))
        for thread in Path(f"/proc/{pid}/task").iterdir()
    ]


def tree(pid: int) -> list[int]:
    """Return a process and all its descendants."""
    found = [pid]
    for parent in found:  # grows while we go
        with contextlib.suppress(FileNotFoundError):
            for thread in Path(f"/proc/{parent}/task").iterdir():
                found += map(int, (thread / "children").read_text().split())
    return found


def tree_cpu_seconds(pid: int) -> float:
    """Return the CPU time of a process and its descendants, those included that have ended."""
    seconds = 0.0
    for each in tree(pid):
        with contextlib.suppress(FileNotFoundError):
            seconds += sum(_times(Path(f"/proc/{each}/stat")))
    return seconds


def _times(stat: Path) -> list[float]:
    """Utime, stime, and both of waited-for children, in seconds: fields 14 to 17 of proc(5)."""
    text = stat.read_text()
    # The command name may hold spaces and brackets.
    return [int(field) / TICKS for field in text[text.rindex(")") + 2 :].split()[11:15]]
