"""The command lines of README.md, run as they stand there."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from backend.process import Backend
from guests.documented import code_blocks
from guestwire.testing import Wire
from guestwire.testing.guests import KERNEL_OPTIONS, QemuGuest

pytestmark = [pytest.mark.root, pytest.mark.slow]

DEVICE = "virtio-net-pci,netdev=net0"
SOCKET = "/run/vm1.sock"
MEMORY = "4G"


def documented_line(accelerator: str) -> list[str]:
    """QEMU's command line, with what README.md says to change where there is no KVM."""
    (block,) = code_blocks("README.md", containing="qemu-system-x86_64 ...")
    words = shlex.split(block.replace("\\\n", " "))
    assert words[words.index("-accel") + 1] == "kvm"
    assert words.count(DEVICE) == 1
    if accelerator == "tcg":
        (other,) = code_blocks("README.md", containing=f"  -device {DEVICE},")
        changed = {"kvm": "tcg", DEVICE: shlex.split(other)[1]}
        words = [changed.get(word, word) for word in words]
    return words


class DocumentedGuest(QemuGuest):
    """A guest that QEMU runs by the line in README.md, with what stands for ``...`` in it."""

    def __init__(self, socket: Path) -> None:
        super().__init__()
        self._socket_path = socket

    def _command(self, channel_fd: int, folder: Path) -> list[str]:
        image, initramfs = self._boot_files()
        rest = [
            "-cpu",
            "max",
            "-display",
            "none",
            "-no-reboot",
            "-kernel",
            str(image),
            "-initrd",
            str(initramfs),
        ]
        rest += ["-chardev", "stdio,id=console", "-serial", "chardev:console"]
        rest += ["-chardev", f"socket,id=channel,fd={channel_fd}", "-serial", "chardev:channel"]
        rest += ["-append", f"console=ttyS0 {KERNEL_OPTIONS}"]
        words = documented_line(self.accelerator)
        place = words.index("...")
        line = [*words[:place], *rest, *words[place + 1 :]]
        # What differs from machine to machine: where the socket is, and how much memory there is.
        return [
            word.replace(SOCKET, str(self._socket_path)).replace(MEMORY, f"{self.memory_mib}M")
            for word in line
        ]


def test_the_line_for_qemu_boots_a_guest_with_a_network(tmp_path: Path) -> None:
    with (
        Wire() as wire,
        Backend(tmp_path, f"xdp:{wire.interface}", namespace=wire.near.name) as backend,
        DocumentedGuest(backend.socket) as guest,
    ):
        guest.check(f"ip addr add {wire.guest_address}/{wire.prefix_length} dev eth0 && ip link set eth0 up")
        guest.wait_until(f"ping -c 1 -W 1 {wire.peer_address}")
        backend.process.kill()
        backend.process.wait()
        with Backend(tmp_path, f"xdp:{wire.interface}", namespace=wire.near.name):
            guest.wait_until(f"ping -c 1 -W 1 {wire.peer_address}")
