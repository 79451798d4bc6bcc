"""Finds out whether KVM can run a Linux guest here.

That ``/dev/kvm`` exists and opens does not say so: inside a virtual machine it may create guests
that then never run, or that abort the emulator.  So a guest is booted, once, and the answer kept
until the machine is booted again.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Literal

from guestwire.testing import images, packages

Accelerator = Literal["kvm", "tcg"]

# A guest under KVM is up within two seconds, even on a busy machine within five.
PROBE_SECONDS = 10.0
QEMU = "qemu-system-x86_64"


def usable_accelerator() -> Accelerator:
    """The fastest accelerator that boots Linux on this machine."""
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return "tcg"
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    known = packages.cache_directory() / f"kvm-{boot_id}"
    kernel = images.qemu_kernel()
    with packages.locked(packages.cache_directory()):
        if not known.exists():
            known.write_text("usable" if boots(kernel.image, "kvm") else "unusable")
    return "kvm" if known.read_text() == "usable" else "tcg"


def boots(image: Path, accelerator: Accelerator) -> bool:
    """Whether a kernel gets as far as looking for a root file system, which there is not."""
    command = [QEMU, "-accel", accelerator, "-cpu", "max", "-m", "256", "-no-reboot"]
    command += ["-nodefaults", "-no-user-config", "-display", "none", "-serial", "stdio"]
    # The panic that follows ends QEMU.
    command += ["-kernel", os.fspath(image), "-append", "console=ttyS0 panic=-1"]
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=PROBE_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return False
    return b"Unable to mount root fs" in done.stdout
