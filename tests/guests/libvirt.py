"""libvirt's daemon in the foreground, and guests that it starts.

The daemon is the distribution's, in namespaces of its own: what it keeps in /run, /var and /etc/libvirt are
folders that vanish with it. There it finds the users that Debian's libvirt-daemon-system would have made.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from backend.process import wait_until
from guests.documented import code_blocks
from guestwire.testing import images
from guestwire.testing.channel import Channel
from guestwire.testing.guests import KERNEL_OPTIONS
from guestwire.testing.processes import spawn

PROGRAMS = ("libvirtd", "virsh", "qemu-system-x86_64", "nsenter", "unshare")
USER, NUMBER = "libvirt-qemu", 64055
MEMORY_MIB = 256
START_SECONDS = 60.0

# libvirt asks QEMU again and again what it can do where the access to /dev/kvm and what QEMU says differ.
ENTER = """
set -e
mount -t tmpfs none /run
mount -t tmpfs none /var
ln -s /run /var/run
mkdir -p /var/lib /var/cache /var/log/libvirt/qemu
mount --bind {folder}/etc /etc/libvirt
mount --bind {folder}/passwd /etc/passwd
mount --bind {folder}/group /etc/group
if [ -e /dev/kvm ]; then mount --bind {folder}/group /dev/kvm; mount -o remount,ro,bind /dev/kvm; fi
ip link set lo up
libvirtd &
wait
"""
DAEMON_SETTINGS = 'auth_unix_rw = "none"\nlog_outputs = "3:stderr"\n'
QEMU_SETTINGS = 'namespaces = []\nsecurity_driver = "none"\ncgroup_controllers = []\nstdio_handler = "file"\n'

DOMAIN = """
<domain type='qemu' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <name>{name}</name>
  <memory unit='MiB'>{memory}</memory>
  {shared_memory}
  <os>
    <type arch='x86_64' machine='q35'>hvm</type>
    <kernel>{folder}/kernel</kernel>
    <initrd>{folder}/initrd</initrd>
    <cmdline>console=ttyS0 {options}</cmdline>
  </os>
  <cpu mode='maximum'/>
  <devices>
    <serial type='null'/>
    <serial type='unix'><source mode='connect' path='{folder}/{name}.channel'/></serial>
    {interface}
    <controller type='usb' model='none'/>
    <memballoon model='none'/>
  </devices>
  {without_kvm}
</domain>
"""


class Libvirt:
    """The daemon; as a context it answers inside, and ends with all its guests.

    Attributes:
        folder: for sockets and files that QEMU, which runs as a user of its own, has to reach.
    """

    def __init__(self) -> None:
        # Not pytest's, which is for one user alone.
        self.folder = Path(tempfile.mkdtemp(prefix="guestwire-libvirt-"))
        self.folder.chmod(0o755)
        self._log = self.folder / "libvirtd.log"
        self.process: subprocess.Popen[bytes]

    @property
    def wrapper(self) -> list[str]:
        """The words that run a command where there is the group that QEMU's user is in."""
        script = f'mount --bind {self.folder}/group /etc/group && exec "$@"'
        return ["unshare", "--mount", "sh", "-c", script, "sh"]

    def virsh(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Give the daemon an order."""
        namespaces = f"/proc/{self.process.pid}/ns"
        enter = ["nsenter", f"--mount={namespaces}/mnt", f"--pid={namespaces}/pid_for_children"]
        command = [*enter, "virsh", "--connect", "qemu:///system", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=START_SECONDS, check=False)
        assert not check or done.returncode == 0, f"virsh {arguments}: {done.stderr}\n{self._log.read_text()}"
        return done

    def __enter__(self) -> Self:
        settings = self.folder / "etc"
        settings.mkdir()
        (settings / "libvirtd.conf").write_text(DAEMON_SETTINGS)
        (settings / "qemu.conf").write_text(QEMU_SETTINGS)
        for name, line in (
            ("passwd", f"{USER}:x:{NUMBER}:{NUMBER}::/:/bin/false"),
            ("group", f"{USER}:x:{NUMBER}:"),
        ):
            lines = [
                known for known in Path("/etc", name).read_text().splitlines() if not known.startswith(USER)
            ]
            (self.folder / name).write_text("\n".join([*lines, line, ""]))
        kernel = images.qemu_kernel()
        shutil.copy(kernel.image, self.folder / "kernel")
        shutil.copy(images.guest_initramfs(kernel, ("virtio_pci", "virtio_net")), self.folder / "initrd")
        for name in ("kernel", "initrd"):
            (self.folder / name).chmod(0o644)
        # Guests outlive their daemon, but not their process namespace.
        enter = [
            "unshare",
            "--mount",
            "--net",
            "--pid",
            "--mount-proc",
            "--fork",
            "--kill-child",
            "sh",
            "-c",
            ENTER.format(folder=self.folder),
        ]
        self.process = spawn(enter, self._log)
        try:
            wait_until(self._answers, START_SECONDS)
        except BaseException:
            self.close()
            raise
        return self

    def _answers(self) -> bool:
        assert self.process.poll() is None, self._log.read_text()
        return self.virsh("version", check=False).returncode == 0

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the daemon and its guests, and remove its files."""
        self.process.kill()
        self.process.wait()
        shutil.rmtree(self.folder)


class LibvirtGuest:
    """A guest that is started by ``virsh create``, with the elements of docs/libvirt.md.

    Args:
        libvirt: the daemon.
        name: of the guest.
        interface: the interface element.
    """

    def __init__(self, libvirt: Libvirt, name: str, interface: str) -> None:
        (shared_memory,) = code_blocks("docs/libvirt.md", containing="<memoryBacking>")
        (without_kvm,) = code_blocks("docs/libvirt.md", containing="<qemu:override>")
        self._libvirt, self._name = libvirt, name
        self._file = libvirt.folder / f"{name}.xml"
        self._file.write_text(
            DOMAIN.format(
                name=name,
                memory=MEMORY_MIB,
                shared_memory=shared_memory,
                folder=libvirt.folder,
                options=KERNEL_OPTIONS,
                interface=interface,
                without_kvm=without_kvm,
            )
        )
        self._channel: Channel

    def __enter__(self) -> Self:
        path = self._libvirt.folder / f"{self._name}.channel"
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listening:
            listening.bind(os.fspath(path))
            path.chmod(0o666)
            listening.listen(1)
            listening.settimeout(START_SECONDS)
            self._libvirt.virsh("create", os.fspath(self._file))
            self._channel = Channel(listening.accept()[0])
        try:
            self._channel.wait_ready(START_SECONDS)
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def check(self, script: str) -> str:
        """Run a shell script that must succeed."""
        done = self._channel.run(script, 30)
        assert done.status == 0, f"{script}: {done.output}"
        return done.output

    def wait_until(self, script: str, seconds: float = 30.0) -> None:
        """Run a shell script again and again until it succeeds."""
        end = time.monotonic() + seconds
        while (done := self._channel.run(script, 30)).status != 0:
            assert time.monotonic() < end, f"not within {seconds} s: {script}: {done.output}"

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._channel.close()
        self._libvirt.virsh("destroy", self._name)


def missing_programs() -> Sequence[str]:
    """What this machine lacks for libvirt."""
    return [program for program in PROGRAMS if shutil.which(program) is None]
