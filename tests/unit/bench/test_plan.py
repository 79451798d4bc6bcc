"""What is measured."""

from __future__ import annotations

from typing import Any

import pytest

from guestwire.bench.plan import LARGE_FRAME, LOOPBACK, RING_LAYOUTS, Plan, check, kind_of
from guestwire.errors import ConfigurationError


def test_every_combination_once() -> None:
    plan = Plan([kind_of("echo")], frame_bytes=(64, 1500), ring_sizes=(256, 1024), queue_pairs=(1, 2))
    cases = plan.cases(plan.kinds[0])
    swept = {(case.layout, case.frame_bytes, case.ring_size, case.queue_pairs) for case in cases}
    assert len(cases) == len(swept) == plan.count == 8 * len(RING_LAYOUTS)
    # Round trips do not change with the ring: once for each length of a frame.
    assert [case.frame_bytes for case in cases if case.with_trips] == [64, 1500] * len(RING_LAYOUTS)


def test_a_named_port_counts_what_arrives() -> None:
    kind = kind_of("xdp:veth0,mode=direct")
    assert (kind.port, kind.name, kind.returning) == ("xdp:veth0,mode=direct", "xdp:veth0", False)
    assert not any(case.with_trips for case in Plan([kind]).cases(kind))
    assert kind_of("echo") is LOOPBACK["echo"]


def test_which_frames_take_offloads() -> None:
    plan = Plan([kind_of("null")], frame_bytes=(1500, LARGE_FRAME), ring_sizes=(256,), queue_pairs=(1,))
    assert [case.is_large for case in plan.cases(plan.kinds[0])] == [False, True]


@pytest.mark.parametrize(
    ("asked", "error"),
    [
        ({"frame_bytes": (64, 65537)}, "--sizes: 65537"),
        ({"frame_bytes": (40,)}, "--sizes: 40"),
        ({"ring_sizes": (300,)}, "--rings: 300 is no power of two"),
        ({"ring_sizes": (65536,)}, "--rings: 65536"),
        ({"queue_pairs": (0,)}, "--queue-pairs: 0"),
    ],
)
def test_what_cannot_be_measured(asked: dict[str, Any], error: str) -> None:
    with pytest.raises(ConfigurationError, match=error):
        check(Plan([kind_of("echo")], **asked))
