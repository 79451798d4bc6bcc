"""Whose frames reach a queue: what the lab's driver with several queues says of it, and where frames land."""

from __future__ import annotations

import pytest

from lab.machine import LabMachine, run_inside

pytestmark = [pytest.mark.root, pytest.mark.slow]


@pytest.mark.parametrize("machine", ["igb"], indirect=True)
def test_steering(machine: LabMachine) -> None:
    run_inside(machine, "test_steering.py", timeout=240)
