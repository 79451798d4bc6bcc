"""The newest QEMU and Linux that Debian has, for tests that ask for them."""

from __future__ import annotations

import platform
from typing import Any

import pytest

from guestwire.testing import images
from guestwire.testing.emulator import newest_emulator


@pytest.fixture(scope="session")
def newest() -> dict[str, Any]:
    """What makes a `QemuGuest` one of the newest QEMU and the newest Linux; skip where there is no Debian."""
    if platform.freedesktop_os_release()["ID"] != "debian" or platform.machine() != "x86_64":
        pytest.skip("the newest QEMU and Linux come from Debian's archive, on x86-64 Debian only")
    return {"emulator": newest_emulator(), "kernel": images.newest_kernel()}
