"""A guest of libvirt's, whose QEMU runs as another user than guestwire, keeps its network over restarts."""

from __future__ import annotations

import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from backend.process import Backend
from guests.documented import code_blocks
from guests.libvirt import NUMBER, USER, Libvirt, LibvirtGuest, missing_programs
from guestwire.testing import Wire

pytestmark = [pytest.mark.root, pytest.mark.slow]


@pytest.fixture(scope="module")
def libvirt() -> Iterator[Libvirt]:
    if missing := missing_programs():
        pytest.skip(f"not installed: {', '.join(missing)}")
    with Libvirt() as daemon:
        yield daemon


def interface(mode: str, socket: Path) -> str:
    """The interface element of docs/libvirt.md for a mode, with a socket of ours."""
    (shown,) = code_blocks("docs/libvirt.md", containing=f"mode='{mode}'")
    (command,) = [
        block
        for block in code_blocks("docs/libvirt.md", containing="guestwire run")
        if ("--connect" in block) is (mode == "server")
    ]
    documented = command[command.index("--socket-path ") :].split()[1]
    assert documented in shown
    return shown.replace(documented, str(socket))


@pytest.mark.parametrize("mode", ["client", "server"])
def test_a_network_outlives_guestwire(libvirt: Libvirt, tmp_path: Path, mode: str) -> None:
    folder = libvirt.folder / mode
    folder.mkdir(mode=0o755)
    socket = folder / "guest.sock"
    if mode == "server":
        shutil.chown(folder, NUMBER, NUMBER)
    role = ["--connect"] if mode == "server" else ["--socket-group", USER]
    with Wire() as wire:
        arguments = [*role, "--socket-path", str(socket), "--port", f"xdp:{wire.interface}"]

        def serving(visit: int) -> Backend:
            log = tmp_path / str(visit)  # short: a socket's path has 107 bytes
            log.mkdir()
            return Backend(log, None, arguments, namespace=wire.near.name, wrapper=libvirt.wrapper)

        def check(guest: LibvirtGuest) -> None:
            if mode == "client":
                status = socket.stat()
                assert (stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid) == (0o660, 0, NUMBER)
            guest.wait_until(f"ping -c 1 -W 1 {wire.peer_address}")

        with serving(1) as killed, LibvirtGuest(libvirt, mode, interface(mode, socket)) as guest:
            guest.check(
                f"ip addr add {wire.guest_address}/{wire.prefix_length} dev eth0; ip link set eth0 up"
            )
            check(guest)
            killed.process.kill()
            killed.process.wait()
            with serving(2):
                check(guest)
            with serving(3):
                check(guest)
