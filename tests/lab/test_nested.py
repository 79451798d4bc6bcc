"""A real Linux guest on a zero-copy port: a machine in the lab's machine, minutes of work without KVM."""

from __future__ import annotations

import os

import pytest

from guestwire.testing import images
from guestwire.testing.guests import QemuGuest
from lab.machine import LabMachine, run_inside

pytestmark = [
    pytest.mark.root,
    pytest.mark.slow,
    pytest.mark.timeout(1000),
    pytest.mark.skipif("GUESTWIRE_LAB_NESTED" not in os.environ, reason="takes minutes: make lab-nested"),
]


def test_nested_guest_moves_files_in_zero_copy(lab: None) -> None:
    # Fetched and built here, where what is written stays.
    kernel = images.qemu_kernel()
    images.guest_initramfs(kernel, QemuGuest().modules)
    with LabMachine("igb", hugepages=192) as machine:
        print(run_inside(machine, "test_nested.py", "-s", timeout=900))
