"""The newest QEMU with the newest Linux that Debian has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from guests.attached import Place, booted
from guests.networks import TapHost

pytestmark = [pytest.mark.root, pytest.mark.slow]


def test_a_guest_shares_its_memory_and_pings(newest: dict[str, Any], tmp_path: Path) -> None:
    with booted("qemu", {"tap": Place("tap:tap0", TapHost)}, tmp_path, **newest) as interfaces:
        interface = interfaces["tap"]
        guest, network = interface.guest, interface.network
        network.connect()
        with interface.configured():
            guest.wait_until(f"ping -c 1 -W 1 {network.peer_address}")
            assert guest.check("uname -r").strip() == newest["kernel"].version
            assert interface.backend.guest()["state"] == "running"
