"""Finds a QEMU that emulates a device, installed or from the distribution's backports."""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
from pathlib import Path

from guestwire.errors import HostError
from guestwire.testing.accelerator import QEMU
from guestwire.testing.packages import Apt, Progress, quiet, unpacked

PACKAGE = "qemu-system-x86"
# Parts of QEMU that an installation would replace because they are installed, not because the
# emulator needs them: it runs without its own graphics, block drivers and tools.
NOT_NEEDED = re.compile(r"qemu-(?!system-(x86|common|data)=)")


def emulator_with(device: str, progress: Progress = quiet) -> list[str]:
    """The command that starts a QEMU which has a device: the words before its own arguments.

    Where the installed one lacks it, a newer one from the release's backports is unpacked, with the
    libraries that this machine lacks, and run from there.

    Raises:
        HostError: there is none to be had.
    """
    installed = shutil.which(QEMU)
    if installed is None:
        raise HostError(f"{QEMU} is not installed", f"apt-get install {PACKAGE}")
    if _has([installed], device):
        return [installed]
    suite = f"{platform.freedesktop_os_release().get('VERSION_CODENAME', 'stable')}-backports"
    root = unpacked("qemu", lambda apt: _packages(apt, suite), progress, suite=suite, prune=_remove_excess)
    command = _command(root)
    if not _has(command, device):
        raise HostError(
            f"no QEMU here has the device {device}: neither {installed} nor the one in {suite}",
            f"install a newer QEMU; if backports have one by now: rm -r {root}",
        )
    return command


def _has(command: list[str], device: str) -> bool:
    done = subprocess.run(
        [*command, "-device", f"{device},help"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        check=False,
    )
    return done.stdout.startswith(f"{device} options:".encode())


def _packages(apt: Apt, suite: str) -> list[str]:
    return [name for name in apt.additions(PACKAGE, suite) if not NOT_NEEDED.match(name)]


def _remove_excess(root: Path) -> None:
    """Remove what is large and not for a machine without a screen."""
    for path in (root / "usr/share").iterdir():
        if path.name not in {"qemu", "seabios"}:
            shutil.rmtree(path)
    for path in (root / "usr/bin").iterdir():
        if path.name != QEMU:
            path.unlink()


def _command(root: Path) -> list[str]:
    libraries = sorted({str(path.parent) for path in root.glob("usr/lib/*/lib*.so*")})
    command = ["env", f"LD_LIBRARY_PATH={':'.join(libraries)}"] if libraries else []
    command.append(str(root / "usr/bin" / QEMU))
    for firmware in ("qemu", "seabios"):
        command += ["-L", str(root / "usr/share" / firmware)]
    return command
