"""256 MiB each way over a zero-copy port; what is checked: ``inside/test_files.py``."""

from __future__ import annotations

import os

import pytest

from guestwire.testing import images
from guestwire.testing.guests import UmlGuest
from lab.machine import LabMachine, run_inside

pytestmark = [
    pytest.mark.root,
    pytest.mark.slow,
    pytest.mark.timeout(4000),
    pytest.mark.skipif("GUESTWIRE_SOAK" not in os.environ, reason="takes many minutes: make soak-files"),
]


def test_files_in_zero_copy(lab: None) -> None:
    # Fetched and built here, where what is written stays.
    images.guest_initramfs(images.uml_kernel(), UmlGuest(modules=["ipv6"]).modules)
    with LabMachine("virtio_net", memory_mib=4096, kernel_options="ipv6.disable=0") as machine:
        print(run_inside(machine, "test_files.py", "-s", timeout=3600))
