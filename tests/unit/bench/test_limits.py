"""What limits a figure, by the evidence."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from guestwire.bench import limits
from guestwire.bench.results import Placement
from unit.bench.figures import PLACEMENT, report, result, window


@pytest.mark.parametrize(
    ("seen", "what", "evidence"),
    [
        ({}, "backend", "the backend ran 100% of the time and the driver waited 40%"),
        ({"driver_waited": 0.02}, "driver", "waited 2% of the time and took 98 ns a frame"),
        ({"driver_queued": 0.3}, "shared CPU", "kept from its own for 30% of the time, the backend for 0%"),
        ({"backend_queued": 0.2}, "shared CPU", "the backend for 20%"),
        ({"backend_system": 0.7}, "port", "70% of the backend's time was in the kernel"),
        ({"frames_a_pass": 1.5}, "ring", "found 1.5 frames in a pass"),
        ({"backend_cpu": 0.5, "sleeps": 200}, "notifications", "slept 2,000 times a second"),
        ({"received": 0, "drops": {"too_long": 9}}, "port", "took no frame (too_long)"),
    ],
)
def test_each_limit_has_its_evidence(seen: dict[str, Any], what: str, evidence: str) -> None:
    limit = limits.limit_of(result(window(**seen)), PLACEMENT)
    assert limit.what == what
    assert evidence in limit.evidence


def test_workers_that_share_a_cpu() -> None:
    limit = limits.limit_of(result(window(backend_queued=2.4), queue_pairs=4), PLACEMENT)
    assert limit.what == "backend CPUs"
    assert "workers of 4 queue pairs had one CPU" in limit.evidence


def test_one_cpu_for_both() -> None:
    placement = Placement(backend_cpus=[3], driver_cpus=[3], same_core=True, round_trip_ns=[], slowdown=None)
    made = report(result(), placement=placement)
    assert made.results[0].limit == limits.Limit("shared CPU", "driver and backend have one CPU, 3")
    assert made.notes == ["Driver and backend shared CPU 3: a machine with two gives other figures."]


@pytest.mark.parametrize(("received", "what"), [(1_300_000, "ring"), (1_050_000, "backend")])
def test_a_larger_ring_shows_that_the_smaller_one_limits(received: int, what: str) -> None:
    made = report(result(), result(window(received=received), ring_size=1024))
    small, large = (r.limit for r in made.results)
    assert small is not None
    assert large is not None
    assert (small.what, large.what) == (what, "backend")
    assert ("a ring of 1024 gave 1.30 times as much" in small.evidence) == (what == "ring")


def test_rings_whose_windows_overlap_are_not_told_apart() -> None:
    made = report(result(), result(window(received=900_000), window(received=1_500_000), ring_size=1024))
    assert [r.limit.what for r in made.results if r.limit] == ["backend", "backend"]


def test_a_summary_names_each_limit_once() -> None:
    made = report(result(), result(frame_bytes=256), result(window(driver_waited=0.0), port="null"))
    echo, null = limits.summary(made)
    assert echo.startswith("echo, limited by backend in 2 of 2 cases, such as 64 bytes")
    assert null.startswith("null, limited by driver in 1 of 1 cases")


def test_placement_in_words() -> None:
    assert limits.notes(PLACEMENT) == ["A cache line took 70 to 92 ns from CPU 0 to CPU 1 and back."]
    shared = msgspec.structs.replace(PLACEMENT, same_core=True, slowdown=1.94, round_trip_ns=[51.0])
    assert limits.notes(shared) == [
        "CPUs 0 and 1 are threads of one core.",
        "CPUs 0 and 1 share a core: one multiplies 1.9 times slower while the other does so, too.",
        "A cache line took 51 ns from CPU 0 to CPU 1 and back.",
    ]
