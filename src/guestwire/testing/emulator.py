"""Finds a QEMU that emulates a device, installed or from the distribution's backports; and the newest."""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
from pathlib import Path

from guestwire.errors import HostError
from guestwire.testing import images
from guestwire.testing.accelerator import QEMU
from guestwire.testing.packages import LIBRARY, Apt, Progress, own_loader, quiet, unpacked

PACKAGE = "qemu-system-x86"
# What the emulator of another suite is, besides libraries; installed ones may be as new.
ALL_PARTS = ("libc6", PACKAGE, "qemu-system-common", "qemu-system-data", "seabios", "ipxe-qemu")
# Parts of QEMU that an installation would replace because they are installed, not because the
# emulator needs them: it runs without its own graphics, block drivers and tools.
NOT_NEEDED = re.compile(r"qemu-(?!system-(x86|common|data)=)")

# The folders of data that a QEMU looks into.
FIRMWARE = ("qemu", "seabios")


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
            f"install a newer QEMU; if backports have one by now: mv {root} {root}.old",
        )
    return command


def newest_emulator(progress: Progress = quiet) -> list[str]:
    """The command that starts the newest QEMU that Debian has: the words before its own arguments.

    It is unpacked with all libraries that it is linked with, the C library too.

    Raises:
        HostError: this is no Debian on x86-64, or its archive cannot be read.
    """
    images.require_x86_64()
    root = unpacked(
        "newest-qemu", _newest_packages, progress, suite=images.NEWEST_SUITE, prune=_remove_excess
    )
    (modules,) = root.glob("usr/lib/*/qemu")
    # It looks for its modules beside its executable, which is the loader.
    return ["env", f"QEMU_MODULE_DIR={modules}", *own_loader(root), *_program(root)]


def _newest_packages(apt: Apt) -> list[str]:
    suite = images.NEWEST_SUITE
    libraries = [each for each in apt.additions(PACKAGE, suite) if LIBRARY.match(each)]
    others = [each for each in libraries if not each.startswith("libc6=")]
    return [*(f"{name}/{suite}" for name in ALL_PARTS), *others]


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
        if path.name not in FIRMWARE:
            shutil.rmtree(path)
    for path in (root / "usr/bin").iterdir():
        if path.name != QEMU:
            path.unlink()


def _command(root: Path) -> list[str]:
    libraries = sorted({str(path.parent) for path in root.glob("usr/lib/*/lib*.so*")})
    command = ["env", f"LD_LIBRARY_PATH={':'.join(libraries)}"] if libraries else []
    return [*command, *_program(root)]


def _program(root: Path) -> list[str]:
    folders = [str(path) for name in FIRMWARE if (path := root / "usr/share" / name).is_dir()]
    return [str(root / "usr/bin" / QEMU), *(word for folder in folders for word in ("-L", folder))]
