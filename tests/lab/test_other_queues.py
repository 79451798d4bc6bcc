"""A guest that uses one queue pair of two on a NIC in zero-copy mode; see ``inside/test_other_queues.py``."""

from __future__ import annotations

import pytest

from lab.machine import LabMachine, run_inside

pytestmark = [pytest.mark.root, pytest.mark.slow]


@pytest.mark.parametrize("machine", ["igb"], indirect=True)
def test_other_queues(machine: LabMachine) -> None:
    run_inside(machine, "test_other_queues.py", timeout=240)
