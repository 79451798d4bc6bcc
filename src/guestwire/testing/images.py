"""Kernels and tools for test guests, taken from the machine's own package sources.

Packages are downloaded with ``apt-get download`` and unpacked into a folder of ours: nothing is
installed, so no boot loader runs, and no installed package is replaced.  What was fetched once
stays: ``$GUESTWIRE_CACHE``, else ``$XDG_CACHE_HOME/guestwire``, else ``~/.cache/guestwire``.
"""

from __future__ import annotations

import fcntl
import os
import platform
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from guestwire.errors import HostError
from guestwire.testing import initramfs
from guestwire.testing.initramfs import Kernel

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
KERNEL_PART = re.compile(r"linux-(image|image-unsigned|binary|modules)-\d\S*")

Progress = Callable[[str], None]


def quiet(message: str) -> None:
    """Discard a progress message."""


def cache_directory() -> Path:
    """The folder that keeps what was fetched and built for guests of this distribution."""
    root = os.environ.get("GUESTWIRE_CACHE")
    if root is None:
        user_cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        root = str(Path(user_cache) / "guestwire")
    release = platform.freedesktop_os_release()
    name = f"{release['ID']}-{release.get('VERSION_CODENAME', 'rolling')}-{platform.machine()}"
    return Path(root).absolute() / name


def qemu_kernel(progress: Progress = quiet) -> Kernel:
    """The kernel that QEMU guests boot.

    Raises:
        HostError: the machine is not an x86-64 one, or its package sources offer no kernel.
    """
    if platform.machine() != "x86_64":
        raise HostError(f"QEMU test guests are x86-64 machines, this one is {platform.machine()}")
    root = _unpacked("kernel", _kernel_packages, progress)
    images = [*root.glob("boot/vmlinuz-*"), *root.glob("usr/lib/modules/*/vmlinuz")]
    return Kernel(_the_one(root, images), _modules_folder(root))


def uml_kernel(progress: Progress = quiet) -> Kernel:
    """User-Mode Linux: a Linux kernel that runs as a process.

    Raises:
        HostError: the machine's package sources do not offer it.
    """
    root = _unpacked("user-mode-linux", lambda: ["user-mode-linux"], progress)
    return Kernel(_the_one(root, [root / "usr/bin/linux.uml"]), _modules_folder(root))


def busybox(progress: Progress = quiet) -> Path:
    """A statically linked busybox.

    Not the installed one: that may be linked dynamically, and the package with the static one
    would replace it.
    """
    root = _unpacked("busybox", lambda: ["busybox-static"], progress)
    return _the_one(root, [root / "bin/busybox", root / "usr/bin/busybox"])


def guest_initramfs(kernel: Kernel, modules: Sequence[str], progress: Progress = quiet) -> Path:
    """The initial RAM file system for a kernel, with the named modules loaded at boot."""
    return initramfs.build(kernel, busybox(progress), modules, cache_directory())


def _the_one(root: Path, candidates: Sequence[Path]) -> Path:
    """The one candidate that exists in an unpacked package."""
    for path in candidates:
        if path.is_file():
            return path
    raise HostError(
        f"{root} holds none of the files looked for: {', '.join(map(str, candidates))}",
        f"remove it so that it is fetched again: rm -r {root}",
    )


def _modules_folder(root: Path) -> Path:
    found = _the_one(root, sorted(root.glob("**/modules.builtin")))
    return found.parent


def _kernel_packages() -> list[str]:
    for name in KERNEL_PACKAGES:
        parts = _kernel_parts(name)
        if parts:
            return parts
    raise HostError(
        f"the package sources offer no kernel: none of {', '.join(KERNEL_PACKAGES)}",
        "update the package lists: apt-get update",
    )


def _kernel_parts(package: str) -> list[str]:
    """The packages that hold the files of a kernel, following dependencies from ``package``."""
    parts: list[str] = []
    waiting = [package]
    while waiting:
        name = waiting.pop()
        record = _output(["apt-cache", "show", "--no-all-versions", name])
        depends = re.search(r"^Depends: (.*)$", record, re.MULTILINE)
        needed = re.split(r"[,|]", depends[1]) if depends else []
        new = [match[0] for item in needed if (match := KERNEL_PART.match(item.strip()))]
        waiting += [item for item in new if item not in parts]
        if record and KERNEL_PART.fullmatch(name):
            parts.append(name)
    return parts


def _unpacked(name: str, packages: Callable[[], Sequence[str]], progress: Progress) -> Path:
    """The folder that packages were unpacked into, now or earlier."""
    cache = cache_directory()
    target = cache / name
    if target.is_dir():
        return target
    if shutil.which("apt-get") is None:
        raise HostError(
            "this machine has no apt-get: guests are made from Debian's or Ubuntu's packages",
            f"unpack a kernel, its modules and busybox by hand into {cache}, see images.py",
        )
    with locked(cache), tempfile.TemporaryDirectory(dir=cache) as scratch:
        if not target.is_dir():  # a parallel run may have made it while we waited
            files = Path(scratch) / "files"
            for archive in _downloaded(packages, Path(scratch), progress):
                _run(["dpkg-deb", "--extract", str(archive), str(files)])
            files.replace(target)
    return target


def _downloaded(packages: Callable[[], Sequence[str]], folder: Path, progress: Progress) -> list[Path]:
    # The sandbox user has no access to a private cache folder; apt would only warn and go on.
    download = ["apt-get", "-q", "-o", "APT::Sandbox::User=root", "download"]
    try:
        names = packages()
        progress(f"downloading {', '.join(names)}")
        _run([*download, *names], folder)
    except HostError:
        # Lists that are missing or older than what the mirror keeps are cured by a new look.
        if os.geteuid() != 0:
            raise
        progress("updating the package lists")
        _run(["apt-get", "-q", "update"])
        names = packages()
        progress(f"downloading {', '.join(names)}")
        _run([*download, *names], folder)
    return sorted(folder.glob("*.deb"))


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes that use this cache folder out, for as long as the block runs."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _output(command: Sequence[str]) -> str:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=False)
    return done.stdout.decode(errors="replace")


def _run(command: Sequence[str], folder: Path | None = None) -> None:
    done = subprocess.run(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, check=False)
    if done.returncode != 0:
        reason = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        raise HostError(
            f"{' '.join(command)} failed: {reason or f'exit status {done.returncode}'}",
            "check the machine's package sources: apt-get update",
        )
