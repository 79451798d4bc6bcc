"""How guests are shown."""

from __future__ import annotations

import pytest

from guestwire.cli import status
from guestwire.control import Memory

MIB = 1 << 20


@pytest.mark.parametrize(
    ("guest", "pinned", "budget", "lines"),
    [
        (0, 0, None, ["0 bytes"]),
        (512 * MIB, 0, None, ["512 MiB"]),
        (512 * MIB, 518 * MIB, None, ["512 MiB", "518 MiB pinned"]),
        (512 * MIB, 518 * MIB, 1024 * MIB, ["512 MiB", "518 MiB of 1 GiB pinned"]),
        (512 * MIB, 0, 256 * MIB, ["512 MiB", "0 bytes of 256 MiB pinned"]),
    ],
)
def test_memory(guest: int, pinned: int, budget: int | None, lines: list[str]) -> None:
    memory = Memory(guest_bytes=guest, pinned_bytes=pinned, budget_bytes=budget)
    assert status._memory(memory).splitlines() == lines
