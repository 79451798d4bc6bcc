"""Frames cross in zero copy and nothing else is touched; what is checked: ``inside/test_traffic.py``."""

from __future__ import annotations

import pytest

from lab.machine import LabMachine, run_inside

pytestmark = [pytest.mark.root, pytest.mark.slow]


def test_traffic(machine: LabMachine) -> None:
    # -s: shares, reasons and seconds are part of what is to be seen.
    print(run_inside(machine, "test_traffic.py", "-s", timeout=240))
