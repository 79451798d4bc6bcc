"""Kernels and tools for test guests, taken from the distribution's packages (see ``packages``)."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from guestwire.errors import HostError
from guestwire.testing import initramfs
from guestwire.testing.initramfs import Kernel
from guestwire.testing.packages import Apt, Progress, cache_directory, quiet, unpacked

# The first one that the machine's sources offer: Debian's kernel for virtual machines, then
# Ubuntu's names for the same thing, then whatever boots.
KERNEL_PACKAGES = (
    "linux-image-cloud-amd64",
    "linux-image-virtual",
    "linux-image-kvm",
    "linux-image-generic",
    "linux-image-amd64",
)
# A kernel package may leave its files to these (Ubuntu; Debian from release 14 on).
KERNEL_PART = re.compile(r"linux-(base|binary|image|image-unsigned|modules)-\d\S*")

# Where the newest kernel and the newest QEMU come from.
NEWEST_SUITE = "sid"
# What the zero-copy lab's kernel must be able to do: share folders, overlay them, and drive the
# emulated interfaces that have AF_XDP zero copy, with an interface to test the tests with.
ZERO_COPY_MODULES = ("virtio_pci", "9pnet_virtio", "9p", "overlay", "igb", "virtio_net", "veth")
# What else guests may want of the newest kernel: to give memory back.
MEMORY_MODULES = ("virtio_balloon", "virtio_mem")


def qemu_kernel(progress: Progress = quiet) -> Kernel:
    """The kernel that QEMU guests boot.

    Raises:
        HostError: the machine is not an x86-64 one, or its package sources offer no kernel.
    """
    require_x86_64()
    return _kernel(unpacked("kernel", lambda apt: _offered_kernel(apt, KERNEL_PACKAGES), progress))


def kernel_at_hand() -> Path | None:
    """The image of a kernel that QEMU can boot without anything being fetched; None if there is none."""
    if platform.machine() != "x86_64":
        return None
    release = platform.release()
    with contextlib.suppress(HostError):
        if (fetched := cache_directory() / "kernel").is_dir():
            return _kernel(fetched).image
    installed_images = (Path(f"/boot/vmlinuz-{release}"), Path(f"/usr/lib/modules/{release}/vmlinuz"))
    return next((path for path in installed_images if os.access(path, os.R_OK)), None)


def uml_kernel(progress: Progress = quiet) -> Kernel:
    """User-Mode Linux: a Linux kernel that runs as a process.

    Raises:
        HostError: the machine's package sources do not offer it.
    """
    root = unpacked("user-mode-linux", lambda _: ["user-mode-linux"], progress)
    return Kernel(_the_one(root, [root / "usr/bin/linux.uml"]), _modules_folder(root))


def busybox(progress: Progress = quiet) -> Path:
    """A statically linked busybox.

    Not the installed one: that may be linked dynamically, and the package with the static one
    would replace it.
    """
    root = unpacked("busybox", lambda _: ["busybox-static"], progress)
    return _the_one(root, [root / "bin/busybox", root / "usr/bin/busybox"])


def newest_kernel(progress: Progress = quiet) -> Kernel:
    """The newest kernel that Debian has; its igb and virtio_net drivers have AF_XDP zero copy.

    Debian's stable releases have older ones: igb and virtio_net of Linux 6.12 lack zero copy, those of
    7.2 have it.  Of its modules, ``ZERO_COPY_MODULES``, ``MEMORY_MODULES`` and what they need are kept.

    Raises:
        HostError: this is no Debian on x86-64, or its archive cannot be read.
    """
    require_x86_64()
    root = unpacked(
        "newest-kernel",
        lambda apt: _offered_kernel(apt, ("linux-image-amd64",)),
        progress,
        suite=NEWEST_SUITE,
        prune=_keep_needed_modules,
    )
    return _kernel(root)


def _keep_needed_modules(root: Path) -> None:
    kernel = _kernel(root)
    order = initramfs.load_order(kernel, (*ZERO_COPY_MODULES, *MEMORY_MODULES))
    needed = {name for name, _ in order}
    for path in kernel.modules.glob("kernel/**/*.ko*"):
        if initramfs.module_name(path) not in needed:
            path.unlink()


def guest_initramfs(
    kernel: Kernel,
    modules: Sequence[str],
    progress: Progress = quiet,
    *,
    init: str = initramfs.INIT,
    programs: Sequence[str] = (),
) -> Path:
    """The initial RAM file system for a kernel, with the named modules for its init script to load.

    Raises:
        HostError: one of ``programs``, which the guest shall have besides busybox, is not installed here.
    """
    found = [installed(name) for name in programs]
    return initramfs.build(kernel, busybox(progress), modules, cache_directory(), init=init, programs=found)


def installed(program: str) -> Path:
    """Where an installed program is.

    Raises:
        HostError: it is not installed.
    """
    # An ordinary user may have no way to where ethtool is.
    path = shutil.which(program, path=os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/sbin")))
    if path is None:
        raise HostError(f"{program} is not installed", f"apt-get install {program}")
    return Path(path)


def require_x86_64() -> None:
    """Make sure that QEMU guests can be of this machine's kind.

    Raises:
        HostError: they cannot.
    """
    if platform.machine() != "x86_64":
        raise HostError(f"QEMU test guests are x86-64 machines, this one is {platform.machine()}")


def _kernel(root: Path) -> Kernel:
    images = [*root.glob("boot/vmlinuz-*"), *root.glob("usr/lib/modules/*/vmlinuz")]
    return Kernel(_the_one(root, images), _modules_folder(root))


def _the_one(root: Path, candidates: Sequence[Path]) -> Path:
    """The one candidate that exists in an unpacked package."""
    for path in candidates:
        if path.is_file():
            return path
    raise HostError(
        f"{root} holds none of the files looked for: {', '.join(map(str, candidates))}",
        f"move it away, so that it is fetched again: mv {root} {root}.old",
    )


def _modules_folder(root: Path) -> Path:
    found = _the_one(root, sorted(root.glob("**/modules.builtin")))
    return found.parent


def _offered_kernel(apt: Apt, candidates: Sequence[str]) -> list[str]:
    """The packages of the first kernel that is offered."""
    for name in candidates:
        parts = _kernel_parts(apt, name)
        if parts:
            return parts
    raise HostError(
        f"the package sources offer no kernel: none of {', '.join(candidates)}",
        "update the package lists: apt-get update",
    )


def _kernel_parts(apt: Apt, package: str) -> list[str]:
    """The packages that hold the files of a kernel, following dependencies from ``package``."""
    parts: list[str] = []
    waiting = [package]
    while waiting:
        name = waiting.pop()
        record = apt.record(name)
        depends = re.search(r"^Depends: (.*)$", record, re.MULTILINE)
        needed = re.split(r"[,|]", depends[1]) if depends else []
        new = [match[0] for item in needed if (match := KERNEL_PART.match(item.strip()))]
        waiting += [item for item in new if item not in parts]
        if record and KERNEL_PART.fullmatch(name) and name not in parts:
            parts.append(name)
    return parts
