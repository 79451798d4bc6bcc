"""Counter files, read without asking the process that writes them."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TypedDict

from guestwire.datapath.counters import (
    COPY_REASONS,
    DROP_REASONS,
    HEADER_BYTES,
    MAGIC,
    PAIR_BYTES,
    WORKER_COUNTERS,
)

_REASONS = 16
_DIRECTION = struct.Struct(f"<8Q{_REASONS}Q{_REASONS}Q")  # struct direction_counters of datapath/counters.pxd
_WORKER = struct.Struct(f"<{len(WORKER_COUNTERS)}Q")


class DirectionCounters(TypedDict):
    """What went one way; `guestwire.control.Direction` says what each means."""

    frames: int
    bytes: int
    zero_copy_frames: int
    direct_frames: int
    copied_bytes: int
    gso_frames: int
    segments: int
    checksums: int
    copied_frames: dict[str, int]
    drops: dict[str, int]


class PairCounters(TypedDict):
    """The counters of one queue pair."""

    rx: DirectionCounters
    tx: DirectionCounters
    worker: dict[str, int]


def _direction(data: bytes, offset: int) -> DirectionCounters:
    values = _DIRECTION.unpack_from(data, offset)
    frames, octets, zero_copy, direct, copied, gso_frames, segments, checksums, *reasons = values
    return DirectionCounters(
        frames=frames,
        bytes=octets,
        zero_copy_frames=zero_copy,
        direct_frames=direct,
        copied_bytes=copied,
        gso_frames=gso_frames,
        segments=segments,
        checksums=checksums,
        copied_frames={n: v for n, v in zip(COPY_REASONS, reasons[:_REASONS], strict=False) if v},
        drops={n: v for n, v in zip(DROP_REASONS, reasons[_REASONS:], strict=False) if v},
    )


def decode(data: bytes) -> list[PairCounters]:
    """Turn the bytes of a counter file into one entry a queue pair.

    Raises:
        ValueError: these are not the bytes of a counter file of this version.
    """
    if len(data) < HEADER_BYTES or data[: len(MAGIC)] != MAGIC:
        raise ValueError("not a guestwire counter file of this version")
    pairs, size = struct.unpack_from("<II", data, len(MAGIC))
    if size != PAIR_BYTES or len(data) < HEADER_BYTES + pairs * size:
        raise ValueError("a guestwire counter file of another version, or a truncated one")
    return [
        PairCounters(
            rx=_direction(data, at),
            tx=_direction(data, at + _DIRECTION.size),
            worker=dict(
                zip(
                    WORKER_COUNTERS,
                    _WORKER.unpack_from(data, at + 2 * _DIRECTION.size),
                    strict=True,
                )
            ),
        )
        for at in range(HEADER_BYTES, HEADER_BYTES + pairs * size, size)
    ]


def read_counters(path: Path) -> list[PairCounters]:
    """Return the counters in a guest's counter file, one entry a queue pair.

    Raises:
        OSError: it cannot be read.
        ValueError: it is of another version.
    """
    return decode(path.read_bytes())


def _add(into: dict[str, int], what: dict[str, int]) -> None:
    for key, value in what.items():
        into[key] = into.get(key, 0) + value


def lost_in_kernel(kernel: Mapping[str, int]) -> dict[str, int]:
    """Return how many frames for a guest its sockets lost, by the kernel's names, each frame once.

    In copy mode XDP_STATISTICS has one that finds no buffer in ``rx_fill_ring_empty`` and in ``rx_dropped``.
    """
    empty = kernel.get("rx_fill_ring_empty", 0)
    lost = {
        "rx_fill_ring_empty": empty,
        "rx_dropped": max(0, kernel.get("rx_dropped", 0) - empty),
        "rx_ring_full": kernel.get("rx_ring_full", 0),
    }
    return {name: count for name, count in lost.items() if count}


def total(directions: Iterable[DirectionCounters]) -> DirectionCounters:
    """Add up the counters of several queue pairs."""
    result = DirectionCounters(
        frames=0,
        bytes=0,
        zero_copy_frames=0,
        direct_frames=0,
        copied_bytes=0,
        gso_frames=0,
        segments=0,
        checksums=0,
        copied_frames={},
        drops={},
    )
    for one in directions:
        for key, value in one.items():
            if isinstance(value, int):
                result[key] += value  # type: ignore[literal-required]
        _add(result["copied_frames"], one["copied_frames"])
        _add(result["drops"], one["drops"])
    return result
