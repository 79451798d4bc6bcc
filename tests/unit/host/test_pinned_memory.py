"""What registering memory costs; tests/net asks the kernel the same."""

from __future__ import annotations

import dataclasses

import pytest

from guestwire.host.pinned_memory import (
    LARGEST_ARRAY_BYTES,
    largest_window,
    locked_memory_limit,
    registration_cost,
)
from guestwire.host.privileges import Capability
from unit.host.test_checks import HOST

MIB, GIB = 1 << 20, 1 << 30


@pytest.mark.parametrize(
    ("size", "chunk", "zero_copy", "pinned", "registration", "queue"),
    [
        (GIB, 4096, False, GIB, 4 * MIB, 34 * MIB),
        (GIB, 2048, False, GIB, 4 * MIB, 68 * MIB),
        (GIB, 4096, True, GIB, 4 * MIB, 38 * MIB),
        (8 * GIB, 4096, False, 8 * GIB, 32 * MIB, 272 * MIB),
        # A page that is begun is pinned; a chunk that is begun is none.
        (4097, 4096, True, 8192, 32, 136 + 32),
    ],
)
def test_cost(size: int, chunk: int, zero_copy: bool, pinned: int, registration: int, queue: int) -> None:
    cost = registration_cost(size, chunk, zero_copy=zero_copy)
    assert (cost.pinned_bytes, cost.registration_bytes, cost.queue_bytes) == (pinned, registration, queue)
    assert cost.kernel_bytes == registration + queue


@pytest.mark.parametrize("chunk", [4096, 2304, 2048])
def test_the_largest_array(chunk: int) -> None:
    most = largest_window(chunk)
    assert most % 4096 == 0
    fits, too_large = (registration_cost(size, chunk, zero_copy=False) for size in (most, most + 4096))
    assert fits.array_fits
    assert fits.largest_array_bytes <= LARGEST_ARRAY_BYTES
    assert not too_large.array_fits


@pytest.mark.parametrize(
    ("changes", "limit"),
    [
        ({}, None),
        ({"initial_user_namespace": False}, 8 * MIB),
        ({"capabilities": frozenset(Capability) - {Capability.CAP_IPC_LOCK}}, 8 * MIB),
        ({"capabilities": frozenset(), "memory_lock_bytes": None}, None),
    ],
)
def test_the_limit_on_locked_memory(changes: dict[str, object], limit: int | None) -> None:
    assert locked_memory_limit(dataclasses.replace(HOST, **changes)) == limit  # type: ignore[arg-type]
