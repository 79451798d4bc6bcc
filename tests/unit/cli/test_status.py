"""How guests are shown."""

from __future__ import annotations

import pytest

from guestwire.cli import status
from guestwire.control import Direction, Memory
from guestwire.metrics import lost_in_kernel

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


def test_what_the_kernel_lost_is_shown_once() -> None:
    """In copy mode a frame without a buffer is in both counts."""
    kernel = {"rx_dropped": 12, "rx_fill_ring_empty": 10, "rx_ring_full": 3, "tx_invalid_descriptors": 7}
    lost = lost_in_kernel(kernel)
    assert lost == {"rx_fill_ring_empty": 10, "rx_dropped": 2, "rx_ring_full": 3}
    nothing = dict.fromkeys(Direction.__struct_fields__, 0) | {"copied_frames": {}, "drops": {"too_long": 1}}
    assert status._direction(Direction(**nothing), lost).splitlines()[1:] == [
        "1 dropped (too_long)",
        "10 dropped by the kernel (rx_fill_ring_empty)",
        "2 dropped by the kernel (rx_dropped)",
        "3 dropped by the kernel (rx_ring_full)",
    ]
    # In zero-copy mode only the first counts.
    assert lost_in_kernel({"rx_dropped": 0, "rx_fill_ring_empty": 4}) == {"rx_fill_ring_empty": 4}
