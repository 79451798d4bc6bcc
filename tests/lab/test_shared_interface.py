"""Two guests in zero-copy mode on one NIC; what is checked: ``inside/test_shared_interface.py``."""

from __future__ import annotations

import pytest

from lab.machine import LabMachine, run_inside

pytestmark = [pytest.mark.root, pytest.mark.slow]


@pytest.mark.parametrize("machine", ["igb"], indirect=True)
def test_shared_interface(machine: LabMachine) -> None:
    print(run_inside(machine, "test_shared_interface.py", "-s", timeout=240))
