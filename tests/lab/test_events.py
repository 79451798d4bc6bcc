"""What can happen to an interface and a guest under traffic; what is checked: ``inside/test_events.py``."""

from __future__ import annotations

import pytest

from lab.machine import LabMachine, run_inside

pytestmark = [pytest.mark.root, pytest.mark.slow]


def test_events(machine: LabMachine) -> None:
    print(run_inside(machine, "test_events.py", "-s", timeout=400))
