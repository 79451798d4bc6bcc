"""A real Linux guest, its memory on huge pages, moves a file each way over a zero-copy port."""

from __future__ import annotations

import functools
import json
import os
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

from guestwire.testing import transfer
from guestwire.testing.guests import QemuGuest, VhostUserDevice
from guestwire.testing.namespaces import call_inside
from lab.inside.commands import LabBackend
from lab.inside.peer import ADDRESS, GUEST_ADDRESS, PREFIX_LENGTH
from lab.machine import NAMESPACE, NIC, PEER

pytestmark = [
    pytest.mark.timeout(900),
    pytest.mark.skipif("GUESTWIRE_LAB_NESTED" not in os.environ, reason="takes minutes: make lab-nested"),
]

MIB = 1 << 20
SIZE = 4 * MIB
# What a transfer needs to know of a wire.
CABLE = SimpleNamespace(
    peer_address=ADDRESS, far=SimpleNamespace(call=functools.partial(call_inside, NAMESPACE))
)


def test_a_file_each_way(tmp_path: Path) -> None:
    subprocess.run(
        ["ip", "-n", NAMESPACE, "address", "add", f"{ADDRESS}/{PREFIX_LENGTH}", "dev", PEER], check=True
    )
    # Linux posts receive buffers of 1,536 bytes, and an igb could write 2,048.  Here it never does: the
    # only sender on this cable has an MTU of 1,500.  Without that promise every frame would be copied.
    port = f"xdp:{NIC},mode=zero-copy,trust-mtu=yes"
    with LabBackend(tmp_path, port) as backend:
        # The driver of an igb must always have more buffers than a ring of QEMU's usual size holds.
        device = VhostUserDevice(backend.socket, options={"rx_queue_size": "1024"})
        with QemuGuest([device], memory_mib=256, hugepages=True, boot_seconds=600) as guest:
            guest.check(f"ip addr add {GUEST_ADDRESS}/{PREFIX_LENGTH} dev eth0 && ip link set eth0 up")
            guest.wait_until(f"ping -c 1 -W 5 {ADDRESS}", 120)
            for move in (transfer.to_guest, transfer.from_guest):
                moved = move(CABLE, guest, SIZE)
                assert moved.intact
                print(f"\n{move.__name__}: {moved.size} bytes in {moved.seconds:.1f} s, checksums equal")
            state = backend.guest()
    assert state["port"]["mode"] == "zero-copy", state["port"]
    for direction in ("rx", "tx"):
        counted = state["counters"][direction]
        share = counted["zero_copy_frames"] / counted["frames"]
        print(f"{direction}: {counted['frames']} frames, {share:.1%} zero-copy; {json.dumps(counted)}")
        assert counted["bytes"] > SIZE, state
        assert counted["zero_copy_frames"] > 0, f"{state}\n{backend.text()}"
