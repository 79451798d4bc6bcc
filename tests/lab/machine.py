"""The zero-copy lab: a QEMU machine with an interface whose Linux driver has AF_XDP zero copy.

    with LabMachine("igb") as machine:
        machine.check("ip -n peer address add 192.0.2.1/24 dev peer0")
        print(run_inside(machine, "test_smoke.py"))

Inside is a newer kernel than this machine's, and otherwise the same system: the root file system is
this machine's, by 9p, with everything that is written there kept in memory and forgotten.  The
repository, its virtual environment and the test's own interpreter are where they are outside.  Only
/proc, /sys, /dev and /run are the machine's own; ``LabMachine.results`` is /run/out inside.

The interface under test is ``nic0``.  The other end of its cable is ``peer0``, an igb, in the network
namespace ``peer``, which hears frames for any address.  Both are up and have a carrier, no IP
address, and no IPv6.

What runs inside is pytest files in ``tests/lab/inside`` (``run_inside``).  There the environment
variable GUESTWIRE_LAB holds the kind of ``nic0``.
"""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import Literal

from guestwire.testing import images, initramfs
from guestwire.testing.channel import Completed
from guestwire.testing.emulator import emulator_with
from guestwire.testing.guests import QemuGuest
from guestwire.testing.packages import cache_directory

Kind = Literal["igb", "virtio_net"]

NIC = "nic0"
PEER = "peer0"
NAMESPACE = "peer"
KIND_VARIABLE = "GUESTWIRE_LAB"
FORK_SERVER = "/run/fork_server"

# The folder that pytest would choose is shown by this machine, and cleaned up by pytest at its start.
PYTEST_ARGUMENTS = ("-q", "-p", "no:cacheprovider", "--basetemp=/run/tests", "-p", "pytest_timeout")

PASSED_ON = ("PYTHONPATH", "GUESTWIRE_LAB_NESTED")

REPOSITORY = Path(__file__).parents[2]
INSIDE = Path(__file__).parent / "inside"

NIC_ADDRESS = "52:54:00:00:00:01"
PEER_ADDRESS = "52:54:00:00:00:02"
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

# coreutils' timeout ends the children of the script as well.
RUNNER = (
    f"chroot $root /usr/bin/env -i HOME=/root PATH={SYSTEM_PATH} LANG=C.UTF-8"
    ' /usr/bin/timeout -s KILL "$seconds" /bin/sh /run/command'
)

NAME_INTERFACES = f"""\
set -e
ip netns add {NAMESPACE}
ip -n {NAMESPACE} link set lo up
for link in /sys/class/net/*; do
    name=$(basename $link)
    case $(cat $link/address) in
        {NIC_ADDRESS}) ip link set $name name {NIC} ;;
        {PEER_ADDRESS}) ip link set $name name {PEER} netns {NAMESPACE} ;;
    esac
done
"""

HAS_CARRIER = f"""\
grep -q 1 /sys/class/net/{NIC}/carrier &&
ip netns exec {NAMESPACE} grep -q 1 /sys/class/net/{PEER}/carrier
"""


class LabMachine(QemuGuest):
    """A machine with an interface to test and one to test it with.

    Args:
        nic: the driver of the interface under test.
        queues: of the interface under test; virtio_net has one.
        mtu: of both interfaces.
        memory_mib: the size of its memory, in MiB.
        hugepages: how many hugepages of 2 MiB it sets apart in that memory when it boots.
        kernel_options: more words for the kernel's command line.
        cpus: the number of virtual processors.

    Raises:
        HostError: there is no such machine to be had here.
    """

    def __init__(
        self,
        nic: Kind,
        *,
        queues: int = 1,
        mtu: int = 1500,
        memory_mib: int = 3072,
        hugepages: int = 64,
        kernel_options: str = "",
        cpus: int = 2,
    ) -> None:
        super().__init__(
            memory_mib=memory_mib,
            kernel_options=f"hugepages={hugepages} {kernel_options}",
            cpus=cpus,
            arguments=_interfaces(nic),
        )
        self.nic = nic
        self.queues = queues
        self.mtu = mtu

    @property
    def results(self) -> Path:
        """The folder that is /run/out inside; it goes with the machine."""
        if self._folder is None:
            raise RuntimeError("the machine was not started")
        return self._folder / "results"

    def wait_ready(self) -> None:
        """Wait until the machine obeys commands and its interfaces have a carrier."""
        super().wait_ready()
        # It gets ready while we go on; whoever needs it waits for its socket.
        server = python_command(self, str(INSIDE / "fork_server.py"), FORK_SERVER)
        self.check(f"({server}) >{FORK_SERVER}.log 2>&1 &")
        self.check(NAME_INTERFACES)
        if self.nic == "igb":  # virtio_net has one queue here, and refuses to hear so
            self.check(f"ethtool -L {NIC} combined {self.queues}")
        # With several queues, frames from one sender overtake each other when it changes processors.
        self.check(f"ip netns exec {NAMESPACE} ethtool -L {PEER} combined 1")
        self.check(f"ip link set {NIC} mtu {self.mtu} up")
        self.check(f"ip -n {NAMESPACE} link set {PEER} mtu {self.mtu} promisc on up")
        self.wait_until(HAS_CARRIER)

    def _emulator(self) -> list[str]:
        return emulator_with("igb")

    def _boot_files(self) -> tuple[Path, Path]:
        kernel = images.newest_kernel()
        init = (Path(__file__).parent / "init.sh").read_text() + initramfs.answer_commands(RUNNER)
        return kernel.image, images.guest_initramfs(kernel, images.ZERO_COPY_MODULES, init=init)

    def _command(self, channel_fd: int, folder: Path) -> list[str]:
        self.results.mkdir()
        command = super()._command(channel_fd, folder)
        # Files of several of our file systems may have the same number.
        command += ["-virtfs", "local,path=/,mount_tag=root,security_model=none,readonly=on,multidevs=remap"]
        return [*command, "-virtfs", f"local,path={self.results},mount_tag=out,security_model=none"]


def _interfaces(nic: Kind) -> list[str]:
    """QEMU's arguments for the interface under test and its peer, on one cable."""
    # An igb needs a slot of its own, for the virtual functions that it could have.
    arguments = []
    for slot in (1, 2):
        arguments += ["-device", f"pcie-root-port,id=port{slot},chassis={slot},slot={slot}"]
        arguments += ["-netdev", f"hubport,id=cable{slot},hubid=0"]
    # Zero copy needs a device that does DMA like any other, not virtio's own way around it.
    tested = "igb" if nic == "igb" else "virtio-net-pci,disable-legacy=on,iommu_platform=on"
    for slot, device, address in ((1, tested, NIC_ADDRESS), (2, "igb", PEER_ADDRESS)):
        place = f"netdev=cable{slot},bus=port{slot},mac={address},romfile="
        arguments += ["-device", f"{device},{place}"]
    return arguments


def python_command(machine: LabMachine, *arguments: str) -> str:
    """Shell words that run this Python in the machine, in the repository, with our import path."""
    environment = {
        KIND_VARIABLE: machine.nic,
        "GUESTWIRE_CACHE": str(cache_directory().parent),
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",  # on an emulated processor, start-up counts
    }
    environment |= {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    words = ["env", *(f"{name}={value}" for name, value in environment.items()), sys.executable, *arguments]
    return f"cd {shlex.quote(str(REPOSITORY))} && {shlex.join(words)}"


def run_python(machine: LabMachine, *arguments: str, timeout: float = 240.0) -> Completed:
    """Run this Python in the machine, and wait for it at most ``timeout`` seconds."""
    return machine.run(python_command(machine, *arguments), timeout)


def run_inside(machine: LabMachine, file: str, *arguments: str, timeout: float = 240.0) -> str:
    """Run a file of ``tests/lab/inside`` with pytest in the machine, and return pytest's output.

    Args:
        machine: where.
        file: its name; ``test_x.py::test_y`` works as well.
        arguments: more for pytest, such as ``-k`` and what to choose.
        timeout: of all its tests together, in seconds.

    Raises:
        AssertionError: a test failed, none was there, or they took too long; with the output.
    """
    pytest = ["-m", "pytest", *PYTEST_ARGUMENTS, f"{INSIDE}/{file}", *arguments]
    done = run_python(machine, *pytest, timeout=timeout)
    why = "ran out of time" if done.status == 137 else f"exit status {done.status}"
    assert done.status == 0, f"{file} in the machine with {machine.nic}: {why}\n{done.output}"
    return done.output
