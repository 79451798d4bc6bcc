"""Statistics."""

from __future__ import annotations

import pytest

from guestwire.bench.results import Figure, percentile
from unit.bench.figures import result, window


def test_a_figure_is_the_median_of_its_windows() -> None:
    made = result(window(received=100_000), window(received=300_000), window(received=200_000))
    assert made.frames_per_second == Figure(2e6, 1e6, 3e6)
    assert made.bits_per_second == Figure(2e6 * 512, 1e6 * 512, 3e6 * 512)
    assert made.backend_ns == Figure(500.0, pytest.approx(1000 / 3), 1000.0)
    # The driver ran all the time, and had nothing to do for 0.4 of it.
    assert made.driver_ns == Figure(pytest.approx(300.0), pytest.approx(200.0), pytest.approx(600.0))
    assert made.backend_cpu_seconds == pytest.approx(0.3)
    assert made.arrived_per_second is None


def test_what_a_port_does_not_return_counts_when_it_is_sent() -> None:
    made = result(window(sent=50_000, received=7, drops={"too_long": 3}), window(), returning=False)
    assert made.frames_per_second == Figure(5.25e6, 0.5e6, 10e6)
    assert made.arrived_per_second is not None
    assert made.arrived_per_second.least == pytest.approx(70)
    assert made.drops == {"too_long": 3}


def test_a_window_without_frames_costs_nothing_a_frame() -> None:
    made = result(window(received=0))
    assert made.frames_per_second == Figure(0, 0, 0)
    assert (made.driver_ns, made.backend_ns) == (None, None)


@pytest.mark.parametrize(("share", "value"), [(0.5, 50), (0.99, 99), (1.0, 100), (0.001, 1)])
def test_percentiles_by_nearest_rank(share: float, value: int) -> None:
    assert percentile(range(1, 101), share) == value
    assert percentile([7], share) == 7
