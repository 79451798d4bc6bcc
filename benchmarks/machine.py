"""What a measurement says about where it was taken."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

import guestwire

HERE = Path(__file__).resolve().parent


def machine() -> dict[str, Any]:
    """Describe the machine."""
    model = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return {
        "cpu": model[1] if model else platform.machine(),
        "cpus": os.cpu_count(),
        "kernel": platform.release(),
        "distribution": platform.freedesktop_os_release()["PRETTY_NAME"],
    }


def versions() -> dict[str, str | None]:
    """Name guestwire's version, and the commit it was taken from if there is one."""
    commit = subprocess.run(
        ["git", "-C", HERE, "describe", "--always", "--dirty"], capture_output=True, text=True, check=False
    )
    return {"guestwire": guestwire.__version__, "commit": commit.stdout.strip() or None}


def two_cpus(wanted: tuple[int, ...] | None) -> tuple[int, int]:
    """Return the CPUs to use: those that are wanted, else the first two."""
    cpus = sorted(os.sched_getaffinity(0)) if wanted is None else wanted
    if len(cpus) < 2 or cpus[0] == cpus[1]:
        raise SystemExit("two CPUs are needed, one for the guest and one for the backend: --cpus 0,1")
    return cpus[0], cpus[1]


def numbers(text: str) -> tuple[int, ...]:
    """Read an option that is a list of numbers."""
    return tuple(int(number) for number in text.split(","))
