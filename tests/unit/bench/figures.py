"""Reports that nobody measured."""

from __future__ import annotations

from typing import Any

from guestwire.bench import limits
from guestwire.bench.results import Placement, Report, Result, RoundTrips, Window

PLACEMENT = Placement(
    backend_cpus=[0], driver_cpus=[1], same_core=False, round_trip_ns=[70.0, 92.0], slowdown=1.0
)
IDEAL: dict[str, Any] = {
    "seconds": 0.1,
    "sent": 1_000_000,
    "received": 1_000_000,
    "received_bytes": 64_000_000,
    "drops": {},
    "driver_cpu": 1.0,
    "driver_waited": 0.4,
    "driver_queued": 0.0,
    "backend_cpu": 1.0,
    "backend_queued": 0.0,
    "backend_system": 0.0,
    "backend_cpu_seconds": 0.1,
    "frames_a_pass": 30.0,
    "sleeps": 0,
}


def window(**changes: Any) -> Window:
    return Window(**(IDEAL | changes))


def result(*windows: Window, **changes: Any) -> Result:
    settings: dict[str, Any] = {
        "port": "echo",
        "ring_layout": "split",
        "frame_bytes": 64,
        "ring_size": 256,
        "queue_pairs": 1,
        "returning": True,
    }
    made = Result(**(settings | {"windows": list(windows or [window()])} | changes))
    made.conclude()
    return made


def report(*results: Result, placement: Placement = PLACEMENT) -> Report:
    machine = {
        "cpu": "Processor <1> & more",
        "cpus": "2",
        "kind": "machine",
        "kernel": "Linux 6.18",
        "distribution": "Debian",
    }
    made = Report(
        guestwire="1.2.3",
        date="2026-11-22T12:00:00+00:00",
        machine=machine,
        seconds=12.0,
        window_seconds=0.1,
        placement=placement,
        results=list(results),
    )
    limits.explain(made)
    return made


TRIPS = RoundTrips(what="until the frame is back", count=1000, p50=480.0, p99=1250.0)
