"""What stands against pinning, if that is certain beforehand."""

from __future__ import annotations

from typing import Any

import pytest

from guestwire.ports.pinning import pinning_obstacle, window_bytes

MIB, GIB = 1 << 20, 1 << 30


def test_window() -> None:
    assert window_bytes(4 * GIB, 512) == 4 * GIB + 4 * MIB
    assert window_bytes(1, 0) == 2 * MIB + 4096


@pytest.mark.parametrize(
    ("size", "circumstances", "why", "remedy"),
    [
        (64 * GIB, {}, "at most 65,536 MiB in chunks of 4,096 bytes, not 64 GiB", "a smaller guest"),
        (32 * GIB, {"chunk": 2048}, "in chunks of 2,048 bytes, not 32 GiB", "a smaller guest"),
        (5 * GIB, {"machine_bytes": 4 * GIB}, "5 GiB cannot be pinned on a machine of 4 GiB", "mode=bounce"),
        (8 * MIB + 1, {"locked_limit": 8 * MIB}, "(RLIMIT_MEMLOCK) is 8 MiB", "CAP_IPC_LOCK"),
        (
            4 * MIB,
            {"registrations": 3, "locked_limit": 8 * MIB},
            "12 MiB would have to be pinned for 3 queue pairs",
            "ulimit -l unlimited",
        ),
        (3 * GIB, {"budget": 2 * GIB}, "max_pinned is 2 GiB", "set max_pinned to 3072M or more"),
        (GIB, {"registrations": 3, "budget": 2 * GIB}, "3 GiB would have to be pinned for 3", "3072M"),
    ],
)
def test_obstacle(size: int, circumstances: dict[str, Any], why: str, remedy: str) -> None:
    obstacle = pinning_obstacle(size, **{"chunk": 4096, "machine_bytes": 128 * GIB, **circumstances})
    assert obstacle is not None
    assert why in obstacle.why
    assert remedy in obstacle.remedy


@pytest.mark.parametrize(
    ("size", "circumstances"),
    [
        (64 * GIB - 4096, {}),
        (4 * GIB, {"machine_bytes": 4 * GIB}),
        (8 * MIB, {"locked_limit": 8 * MIB}),
        (4 * MIB, {"registrations": 2, "locked_limit": 8 * MIB, "budget": 8 * MIB}),
    ],
)
def test_what_just_fits(size: int, circumstances: dict[str, Any]) -> None:
    assert pinning_obstacle(size, **{"chunk": 4096, "machine_bytes": 128 * GIB, **circumstances}) is None
