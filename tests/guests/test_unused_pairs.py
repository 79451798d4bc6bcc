"""Guests that use fewer queue pairs than they have, where the interface spreads frames over all queues."""

from __future__ import annotations

import contextlib
import errno
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from backend.process import Backend, wait_until
from guestwire.testing import images
from guestwire.testing.accelerator import QEMU, usable_accelerator
from guestwire.testing.guests import QemuGuest, VhostUserDevice
from guestwire.testing.processes import spawn, stop
from guestwire.testing.wire import Wire
from net.test_multiqueue import send_by_queue
from net.test_other_queues import covered, moved

pytestmark = [pytest.mark.root, pytest.mark.slow]

PAIRS = 2
FLOWS = 64
PORT = 9  # nobody listens: each connection is refused, by an answer that crosses, too


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[Wire, Backend]]:
    """A veth pair with as many queues as the guest has queue pairs."""
    with (
        Wire(queues=PAIRS) as wire,
        Backend(
            tmp_path,
            f"xdp:{wire.interface},mode=direct",
            ["--queue-pairs", str(PAIRS)],
            namespace=wire.near.name,
        ) as backend,
    ):
        yield wire, backend


@contextlib.contextmanager
def running(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """End a process in the end."""
    try:
        yield
    finally:
        stop(process)


def dhcp_server(wire: Wire, folder: Path) -> subprocess.Popen[bytes]:
    """Give the guest its address when it asks."""
    (folder / "leases").touch()
    settings = {
        "interface": wire.peer_interface,
        "start": wire.guest_address,
        "end": wire.guest_address,
        "lease_file": folder / "leases",
        "pidfile": folder / "pid",
        "option subnet": "255.255.255.0",
    }
    (folder / "udhcpd.conf").write_text("".join(f"{name} {value}\n" for name, value in settings.items()))
    command = [images.busybox(), "udhcpd", "-f", folder / "udhcpd.conf"]
    return wire.far.spawn(command, folder / "udhcpd.log")


def firmware(socket_path: Path, console: Path) -> subprocess.Popen[bytes]:
    """Start a machine that has nothing but a network card to boot from, with QEMU's own iPXE on it."""
    memory, pairs = "128M", str(PAIRS)
    return spawn(
        [
            *[QEMU, "-nodefaults", "-no-user-config", "-display", "none", "-boot", "n", "-m", memory],
            *["-accel", usable_accelerator(), "-machine", "q35,memory-backend=memory,graphics=off"],
            *["-object", f"memory-backend-memfd,id=memory,size={memory},share=on", "-serial", "stdio"],
            *["-chardev", f"socket,id=c,path={socket_path}"],
            *["-netdev", f"vhost-user,id=n,chardev=c,queues={pairs}"],
            *["-device", "virtio-net-pci,netdev=n,mq=on,vectors=0"],
        ],
        console,
    )


def test_firmware_gets_its_address(served: tuple[Wire, Backend], tmp_path: Path) -> None:
    """IPXE uses one pair of two; what it is sent comes in on the other's queue."""
    if shutil.which(QEMU) is None:
        pytest.skip(f"{QEMU} is not installed")
    wire, backend = served
    console, log = tmp_path / "console", tmp_path / "udhcpd.log"
    send_by_queue(wire, 1, PAIRS)
    with running(dhcp_server(wire, tmp_path)), running(firmware(Path(backend.socket), console)):
        wait_until(lambda: "sending ACK" in log.read_text(), 120)
        wait_until(lambda: f"{wire.guest_address}/" in console.read_text(errors="replace"), 60)
        assert moved(backend)[0] >= 2  # the offer and the acknowledgement
        assert covered(backend) == {1}
    # The machine is gone, and so is whatever it had.
    wait_until(lambda: backend.guest()["memory"]["pinned_bytes"] == 0)


def test_a_guest_with_fewer_processors_than_pairs_loses_no_flow(served: tuple[Wire, Backend]) -> None:
    wire, backend = served
    device = VhostUserDevice(backend.socket, queue_pairs=PAIRS)
    with QemuGuest([device], memory_mib=256, cpus=1) as guest:
        guest.check(f"ip addr add {wire.guest_address}/{wire.prefix_length} dev eth0; ip link set eth0 up")
        wait_until(lambda: covered(backend) == {1})
        guest.wait_until(f"ping -c 1 -W 1 {wire.peer_address}")

        def connect() -> list[int]:
            results = []
            for _ in range(FLOWS):
                with socket.socket() as flow:
                    flow.settimeout(20)
                    results.append(flow.connect_ex((wire.guest_address, PORT)))
            return results

        assert wire.far.call(connect) == [errno.ECONNREFUSED] * FLOWS
        assert 0 < moved(backend)[0] < backend.guest()["counters"]["rx"]["frames"]
        assert backend.guest()["counters"]["rx"]["drops"] == {}
