"""The lab's machines: booted once for all tests of a run that need one, one at a time.

Tests outside take the fixture ``machine``, which runs them with each kind of interface; a test for
one kind says ``@pytest.mark.parametrize("machine", ["igb"], indirect=True)``.  What runs inside is
in ``inside``, see ``lab.machine.run_inside``.
"""

from __future__ import annotations

import os
import platform
import typing
from collections.abc import Iterator

import pytest

from guestwire.errors import HostError
from guestwire.testing import images
from guestwire.testing.emulator import emulator_with
from lab.machine import KIND_VARIABLE, Kind, LabMachine

collect_ignore = [] if KIND_VARIABLE in os.environ else ["inside"]


@pytest.fixture(scope="session")
def lab() -> None:
    """Whatever boots a lab machine needs this: it skips where there can be none."""
    if platform.machine() != "x86_64":
        pytest.skip(f"the lab is an x86-64 machine, this one is {platform.machine()}")
    if os.geteuid() != 0:
        pytest.skip("the lab's machine shows all files of this one to its root: that needs root here")
    try:
        images.newest_kernel()
        emulator_with("igb")
    except HostError as error:
        pytest.skip(f"no lab here: {error}")


@pytest.fixture(scope="session", params=typing.get_args(Kind))
def machine(request: pytest.FixtureRequest, lab: None) -> Iterator[LabMachine]:
    """A machine whose nic0 is of each kind in turn."""
    with LabMachine(request.param) as booted:
        yield booted
