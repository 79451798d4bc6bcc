"""Where the hypervisor runs our virtual CPUs: on one physical core or on two.

It changes by itself, every some seconds to minutes, and moves vhost-user figures by a factor of two to
three. A benchmark that does not look compares placements, not programs.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from pathlib import Path
from typing import Literal

from guestwire.testing.packages import cache_directory

SOURCE = Path(__file__).with_name("pingpong.c")
NEAR_NS = 150.0
"""A cache line's round trip is about 50 ns within a physical core, and 200 to 500 ns between two."""

Placement = Literal["near", "far", "mixed"]


class PingPong:
    """Measures a cache line's round trip between two CPUs, also while both are busy.

    Args:
        cpus: the two.
    """

    def __init__(self, cpus: tuple[int, int]) -> None:
        self._command = [str(_compiled()), *map(str, cpus)]

    def round_trip_ns(self) -> float | None:
        """Return nanoseconds; None if the two could not be had at the same time for long enough."""
        run = subprocess.run(self._command, capture_output=True, text=True, timeout=10, check=False)
        return float(run.stdout) if run.returncode == 0 else None


def label(before: float | None, after: float | None) -> Placement:
    """Name the placement of a window by the round trips before and after it."""
    if before is None or after is None or (before < NEAR_NS) != (after < NEAR_NS):
        return "mixed"
    return "near" if before < NEAR_NS else "far"


def _compiled() -> Path:
    """The helper, compiled once for each version of its source."""
    version = hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:16]
    program = cache_directory() / f"pingpong-{version}"
    if not program.exists():
        if shutil.which("gcc") is None:
            raise SystemExit("the benchmark compiles a small helper and needs gcc: apt-get install gcc")
        program.parent.mkdir(parents=True, exist_ok=True)
        unfinished = program.with_suffix(".unfinished")
        subprocess.run(["gcc", "-O2", "-pthread", "-o", unfinished, SOURCE], check=True)
        unfinished.replace(program)
    return program
