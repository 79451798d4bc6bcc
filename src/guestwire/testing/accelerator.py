"""Finds out whether KVM can run a Linux guest here: for guests of ours, and for ``guestwire doctor``.

That ``/dev/kvm`` exists and makes machines does not say so: inside a virtual machine it may create guests
that then never run, or that abort the emulator.  So a guest is booted, once, and the answer kept
until the machine is booted again.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from guestwire.host import capabilities
from guestwire.host.capabilities import Kvm
from guestwire.testing import images, packages

Accelerator = Literal["kvm", "tcg"]

# A guest under KVM is up within two seconds, even on a busy machine within five.
PROBE_SECONDS = 10.0
QEMU = "qemu-system-x86_64"

_END = "\n"  # of an answer that was written whole
_NOT_TRIED = "/dev/kvm makes virtual machines, but there is no {} at hand to try a guest with"


def usable_accelerator() -> Accelerator:
    """The fastest accelerator that boots Linux on this machine."""
    return "kvm" if tried_kvm(lambda: images.qemu_kernel().image).usable else "tcg"


def tried_kvm(find_kernel: Callable[[], Path | None] = images.kernel_at_hand) -> Kvm:
    """Whether KVM boots Linux on this machine.

    Args:
        find_kernel: names the kernel to try with, if it was not tried since the machine was booted. By
            default nothing is fetched for it.
    """
    found = capabilities.kvm()
    if not found.usable:
        return found
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    answer = packages.cache_directory() / f"kvm-{boot_id}.answer"
    reason = _read(answer)
    if reason is None:
        kernel = find_kernel()
        if kernel is None or shutil.which(QEMU) is None:
            return Kvm(None, _NOT_TRIED.format("kernel" if kernel is None else QEMU))
        reason = _try_once(kernel, answer)
    return Kvm(not reason, reason)


def _read(answer: Path) -> str | None:
    """What was found out before; None if nothing was."""
    try:
        text = answer.read_text()
    except OSError:
        return None
    return text.removesuffix(_END) if text.endswith(_END) else None


def _try_once(kernel: Path, answer: Path) -> str:
    try:
        with packages.locked(answer.parent):
            reason = _read(answer)
            if reason is None:  # else a parallel run has tried it while we waited
                reason = why_it_does_not_boot(kernel, "kvm")
                answer.write_text(reason + _END)
    except OSError:  # it cannot be kept
        return why_it_does_not_boot(kernel, "kvm")
    return reason


def why_it_does_not_boot(image: Path, accelerator: Accelerator) -> str:
    """Say why a kernel does not get as far as looking for a root file system; empty if it does."""
    command = [QEMU, "-accel", accelerator, "-cpu", "max", "-m", "256", "-no-reboot"]
    command += ["-nodefaults", "-no-user-config", "-display", "none", "-serial", "stdio"]
    # There is no root file system: the panic that follows ends QEMU.
    command += ["-kernel", os.fspath(image), "-append", "console=ttyS0 panic=-1"]
    tried = f"a guest was tried with -accel {accelerator}"
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=PROBE_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"{tried}, and did not boot within {PROBE_SECONDS:g} s"
    if b"Unable to mount root fs" in done.stdout:
        return ""
    said = done.stderr.decode(errors="replace").strip().partition("\n")[0]
    return f"{tried}, and did not boot: {said or f'QEMU ended with status {done.returncode}'}"
