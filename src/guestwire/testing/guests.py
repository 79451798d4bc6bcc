"""Boots real Linux guests on vhost-user sockets, and drives them.

A guest is busybox in an initial RAM file system on a kernel of the distribution's, with Linux' own
virtio-net driver.  ``QemuGuest`` is a QEMU machine; ``UmlGuest`` is User-Mode Linux, whose
``virtio_uml`` driver is a vhost-user frontend itself: no emulation, and no KVM needed.

    with QemuGuest([VhostUserDevice("/run/guest.sock")]) as guest:
        guest.check("ip addr add 192.0.2.2/24 dev eth0 && ip link set eth0 up")
        print(guest.check("ping -c 1 192.0.2.1"))

A guest dies with the process, in fact with the thread, that started it.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from guestwire.errors import HostError
from guestwire.testing import images
from guestwire.testing.accelerator import QEMU, Accelerator, usable_accelerator
from guestwire.testing.channel import Channel, ChannelError, Completed
from guestwire.testing.initramfs import Kernel
from guestwire.testing.processes import spawn

# No IPv6: a guest that is to be idle must not send router solicitations.
KERNEL_OPTIONS = "quiet panic=-1 net.ifnames=0 ipv6.disable=1 mitigations=off random.trust_cpu=on"
CONSOLE = "console"
CONSOLE_EXCERPT_LINES = 40


@dataclass(frozen=True)
class VhostUserDevice:
    """A virtio-net device whose backend is at the other end of a vhost-user socket.

    Attributes:
        socket_path: the Unix socket.
        listen: the frontend listens on the socket and the backend connects (QEMU only).
        mac: the address of the guest's interface (QEMU only: User-Mode Linux takes it from the
            backend's configuration space, or makes one up).
        queue_pairs: more than one turns on multiqueue (QEMU only).
        options: more properties of QEMU's virtio-net-pci, such as ``{"mrg_rxbuf": "off"}``.
        reconnect_ms: how often the frontend tries to connect anew when the backend is gone, in
            milliseconds (QEMU 9.2 and newer); None for not at all.
    """

    socket_path: str | Path
    listen: bool = False
    mac: str = "52:54:00:00:00:02"
    queue_pairs: int = 1
    options: Mapping[str, str] = field(default_factory=dict)
    reconnect_ms: int | None = None


class Guest(ABC):
    """A guest that runs busybox and obeys commands.  As a context it is booted, then killed.

    Args:
        devices: its network devices; the first is eth0.
        memory_mib: the size of its memory, in MiB.
        modules: kernel modules loaded at boot besides those that the devices need.
        kernel_options: more words for the kernel's command line.
        boot_seconds: how long to wait for it to come up.
        programs: installed programs of this machine that it has besides busybox, by name.
        namespace: the network namespace that its process runs in, by name; ours when None.
    """

    def __init__(
        self,
        devices: Sequence[VhostUserDevice] = (),
        *,
        memory_mib: int = 512,
        modules: Sequence[str] = (),
        kernel_options: str = "",
        boot_seconds: float = 120.0,
        programs: Sequence[str] = (),
        namespace: str | None = None,
    ) -> None:
        self.devices = tuple(devices)
        self.memory_mib = memory_mib
        self.modules = tuple(modules)
        self.kernel_options = kernel_options
        self.boot_seconds = boot_seconds
        self.programs = tuple(programs)
        self.namespace = namespace
        self._channel: Channel | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._folder: Path | None = None

    @property
    @abstractmethod
    def description(self) -> str:
        """What runs the guest, in a few words for people."""

    @abstractmethod
    def _command(self, channel_fd: int, folder: Path) -> list[str]:
        """The program that is the guest.

        Args:
            channel_fd: what its second serial port is connected to.
            folder: for files of its own.
        """

    def start(self) -> None:
        """Start the guest, and don't wait for it."""
        if self._process is not None:
            raise RuntimeError("a guest is started once")
        self._folder = Path(tempfile.mkdtemp(prefix="guestwire-guest-"))
        self._channel = Channel()
        fd = self._channel.guest_end.fileno()
        self._process = spawn(
            self._command(fd, self._folder),
            self._folder / CONSOLE,
            namespace=self.namespace,
            pass_fds=[fd],
            # User-Mode Linux keeps its memory in a file there: it must be shareable, and fast.
            environment={"TMPDIR": "/dev/shm"},  # noqa: S108
        )
        self._channel.release_guest_end()

    def wait_ready(self) -> None:
        """Wait until the guest obeys commands.

        Raises:
            ChannelError: it did not come up; the message ends with what its console said.
        """
        try:
            self._running_channel().wait_ready(self.boot_seconds)
        except ChannelError as error:
            raise self._explained(error) from error

    def run(self, script: str, timeout: float = 60.0) -> Completed:
        """Run a shell script in the guest, and wait for it at most ``timeout`` seconds.

        Raises:
            ChannelError: the guest is gone or does not answer.
        """
        try:
            return self._running_channel().run(script, timeout)
        except ChannelError as error:
            raise self._explained(error) from error

    def check(self, script: str, timeout: float = 60.0) -> str:
        """Run a shell script that must succeed, and return its output.

        Raises:
            ChannelError: it failed, or the guest is gone or does not answer.
        """
        done = self.run(script, timeout)
        if done.status != 0:
            raise ChannelError(
                f"in the guest, exit status {done.status} from: {script}\n{done.output}".rstrip()
            )
        return done.output

    def wait_until(self, script: str, timeout: float = 30.0) -> None:
        """Run a shell script again and again until it succeeds.

        Raises:
            ChannelError: it still fails after ``timeout`` seconds.
        """
        deadline = time.monotonic() + timeout
        while (done := self.run(script)).status != 0:
            if time.monotonic() > deadline:
                raise ChannelError(f"in the guest, not within {timeout} s: {script}\n{done.output}")
            time.sleep(0.05)

    @property
    def pid(self) -> int:
        """The process that is the guest (for User-Mode Linux: its process namespace)."""
        if self._process is None:
            raise RuntimeError("the guest was not started")
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether its process is still there."""
        return self._process is not None and self._process.poll() is None

    @property
    def console(self) -> str:
        """All that the kernel, and the emulator, said so far."""
        if self._folder is None or not (self._folder / CONSOLE).exists():
            return ""
        return (self._folder / CONSOLE).read_text(errors="replace").replace("\r", "")

    def power_off(self, timeout: float = 30.0) -> None:
        """Shut the guest down the way its owner would, and wait for its process to end.

        Raises:
            ChannelError: it is still there after ``timeout`` seconds.
        """
        if self._process is None:
            raise RuntimeError("the guest was not started")
        # Detached, since the power goes before the command could be answered for.
        self.run("(sleep 0.1; poweroff -f) >/dev/null 2>&1 &")
        try:
            self._process.wait(timeout)
        except subprocess.TimeoutExpired as error:
            raise self._explained(ChannelError("the guest did not power off")) from error

    def kill(self) -> None:
        """Kill the guest's process, as ``kill -9`` does."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def close(self) -> None:
        """Kill the guest if it still runs, and remove its files."""
        self.kill()
        if self._channel is not None:
            self._channel.close()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def __enter__(self) -> Self:
        try:
            self.start()
            self.wait_ready()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _running_channel(self) -> Channel:
        if self._channel is None:
            raise RuntimeError("the guest was not started")
        return self._channel

    def _explained(self, error: ChannelError) -> ChannelError:
        status = None
        if self._process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                status = self._process.wait(1)  # it may be about to end, and that explains more
        state = "its process runs" if status is None else f"its process ended with status {status}"
        last_lines = self.console.strip().splitlines()[-CONSOLE_EXCERPT_LINES:]
        return ChannelError("\n  ".join([f"{error}; {state}; its console says:", *last_lines]))


class QemuGuest(Guest):
    """A QEMU machine (q35) whose memory is shared with its vhost-user backends.

    Args:
        devices: see ``Guest``.
        memory_mib: see ``Guest``.
        modules: see ``Guest``.
        kernel_options: see ``Guest``.
        boot_seconds: see ``Guest``.
        programs: see ``Guest``.
        namespace: see ``Guest``.
        accelerator: None for the fastest one that works here.
        emulator: the words that start QEMU, before its arguments; the installed one when None.
        kernel: what it boots; the distribution's when None.
        cpus: the number of virtual processors.
        hugepages: keep the guest's memory in hugepages (hugetlbfs).
        arguments: more arguments for QEMU.
    """

    def __init__(
        self,
        devices: Sequence[VhostUserDevice] = (),
        *,
        memory_mib: int = 512,
        modules: Sequence[str] = (),
        kernel_options: str = "",
        boot_seconds: float = 120.0,
        programs: Sequence[str] = (),
        namespace: str | None = None,
        accelerator: Accelerator | None = None,
        emulator: Sequence[str] | None = None,
        kernel: Kernel | None = None,
        cpus: int = 1,
        hugepages: bool = False,
        arguments: Sequence[str] = (),
    ) -> None:
        super().__init__(
            devices,
            memory_mib=memory_mib,
            modules=("virtio_pci", "virtio_net", *modules),
            kernel_options=kernel_options,
            boot_seconds=boot_seconds,
            programs=programs,
            namespace=namespace,
        )
        self.accelerator = accelerator or usable_accelerator()
        self.emulator = emulator
        self.kernel = kernel
        self.cpus = cpus
        self.hugepages = hugepages
        self.arguments = tuple(arguments)

    @property
    def description(self) -> str:
        """QEMU and its accelerator."""
        return f"QEMU with {'KVM' if self.accelerator == 'kvm' else 'no KVM (TCG)'}"

    def _emulator(self) -> list[str]:
        """The words that start QEMU, before its arguments."""
        if self.emulator is not None:
            return list(self.emulator)
        if shutil.which(QEMU) is None:
            raise HostError(f"{QEMU} is not installed", "apt-get install qemu-system-x86")
        return [QEMU]

    def _boot_files(self) -> tuple[Path, Path]:
        """The kernel's image and the initial RAM file system."""
        kernel = self.kernel or images.qemu_kernel()
        return kernel.image, images.guest_initramfs(kernel, self.modules, programs=self.programs)

    def _command(self, channel_fd: int, folder: Path) -> list[str]:
        image, initramfs = self._boot_files()
        memory = f"memory-backend-memfd,id=memory,size={self.memory_mib}M,share=on"
        if self.hugepages:
            memory += ",hugetlb=on"
        command = [*self._emulator(), "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]
        command += ["-machine", "q35,memory-backend=memory", "-accel", self.accelerator]
        command += ["-cpu", "max", "-smp", str(self.cpus), "-m", f"{self.memory_mib}M"]
        command += ["-object", memory]
        command += ["-chardev", "stdio,id=console", "-serial", "chardev:console"]
        command += ["-chardev", f"socket,id=channel,fd={channel_fd}", "-serial", "chardev:channel"]
        command += ["-kernel", str(image), "-initrd", str(initramfs)]
        command += ["-append", f"console=ttyS0 {KERNEL_OPTIONS} {self.kernel_options}"]
        # The installed QEMU may be 7.2 (7.2.22, Debian 12), which without KVM dies of a null pointer
        # when vhost-user rings with vectors of their own start.  For a backend, it is no difference.
        one_line = self.accelerator == "tcg" and self.emulator is None
        for index, device in enumerate(self.devices):
            command += _qemu_device(index, device, one_line=one_line)
        return [*command, *self.arguments]


def _qemu_device(index: int, device: VhostUserDevice, *, one_line: bool) -> list[str]:
    """QEMU's arguments for a device, which has one interrupt line for all or vectors of its own."""
    socket = f"socket,id=vhost{index},path={device.socket_path}"
    if device.listen:
        socket += ",server=on"
    if device.reconnect_ms is not None:
        socket += f",reconnect-ms={device.reconnect_ms}"
    network = f"vhost-user,id=net{index},chardev=vhost{index},queues={device.queue_pairs}"
    # No boot ROM: nothing is booted from the network, and a ROM is one more file to install.
    properties = {"netdev": f"net{index}", "mac": device.mac, "romfile": ""}
    if device.queue_pairs > 1:
        # An interrupt for each ring, one for the control queue, one for configuration changes.
        properties |= {"mq": "on", "vectors": str(2 * device.queue_pairs + 2)}
    if one_line:
        properties["vectors"] = "0"
    properties |= device.options
    listed = ",".join(f"{name}={value}" for name, value in properties.items())
    arguments = ["-chardev", socket, "-netdev", network]
    return [*arguments, "-device", f"virtio-net-pci,{listed}"]


class UmlGuest(Guest):
    """User-Mode Linux: Linux as a process, near native speed, one processor, needs root here.

    Args:
        devices: see ``Guest``.
        memory_mib: see ``Guest``.
        modules: see ``Guest``.
        kernel_options: see ``Guest``.
        boot_seconds: see ``Guest``.
        programs: see ``Guest``.
        namespace: see ``Guest``.
    """

    def __init__(
        self,
        devices: Sequence[VhostUserDevice] = (),
        *,
        memory_mib: int = 512,
        modules: Sequence[str] = (),
        kernel_options: str = "",
        boot_seconds: float = 120.0,
        programs: Sequence[str] = (),
        namespace: str | None = None,
    ) -> None:
        super().__init__(
            devices,
            memory_mib=memory_mib,
            modules=("virtio_net", *modules),
            kernel_options=kernel_options,
            boot_seconds=boot_seconds,
            programs=programs,
            namespace=namespace,
        )

    @property
    def description(self) -> str:
        """User-Mode Linux."""
        return "User-Mode Linux"

    def _command(self, channel_fd: int, folder: Path) -> list[str]:
        kernel = images.uml_kernel()
        # Its helper processes survive it, and keep the vhost-user socket open.  In a process
        # namespace of its own they go with it.  The shell is there to be process 1 of that: which
        # cannot end itself by a signal, as Linux does here when it panics.
        command = ["unshare", "--pid", "--fork", "--kill-child=KILL", "--"]
        command += ["sh", "-c", '"$@"; exit $?', "sh", str(kernel.image)]
        command += [f"mem={self.memory_mib}M", f"uml_dir={folder}"]
        initramfs = images.guest_initramfs(kernel, self.modules, programs=self.programs)
        command += [f"initrd={initramfs}"]
        command += ["con=null", "con0=null,fd:1", "ssl=null", f"ssl1=fd:{channel_fd}"]
        command += [f"virtio_uml.device={device.socket_path}:1" for device in self.devices]
        return [*command, *KERNEL_OPTIONS.split(), *self.kernel_options.split()]
