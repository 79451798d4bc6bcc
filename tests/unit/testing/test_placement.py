"""How two CPUs lie to each other."""

from __future__ import annotations

import os

import pytest

from guestwire.testing.placement import On, cache_line_round_trip_ns, slowdown

CPUS = sorted(os.sched_getaffinity(0))
two = pytest.mark.skipif(len(CPUS) < 2, reason="one CPU")


def test_a_thread_goes_back_to_where_it_may_run() -> None:
    with On(CPUS[-1]):
        assert os.sched_getaffinity(0) == {CPUS[-1]}
    assert sorted(os.sched_getaffinity(0)) == CPUS
    with pytest.raises(OSError, match="Invalid argument"), On(1 << 12):
        pass


@two
def test_a_cache_line_takes_its_time() -> None:
    took = cache_line_round_trip_ns(*CPUS[:2])
    # None: something else had one of the two CPUs.
    assert took is None or 1 < took < 1e6
    assert sorted(os.sched_getaffinity(0)) == CPUS


@two
def test_work_is_not_faster_beside_other_work() -> None:
    assert 0.5 < slowdown(*CPUS[:2]) < 20
