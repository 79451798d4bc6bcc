"""Builds the initial RAM file system of a test guest: busybox, kernel modules, an init script, programs.

Nothing but Python is needed: the archive format ("newc") is written here, and the order of the
modules comes from the modules themselves.  See the kernel's
Documentation/driver-api/early-userspace/buffer-format.rst.
"""

from __future__ import annotations

import hashlib
import lzma
import os
import re
import stat
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from guestwire.errors import HostError

CHANNEL_DEVICE = "/dev/ttyS1"


def answer_commands(runner: str) -> str:
    """The end of an init script: the guest obeys commands (see ``channel.py`` for the exchange).

    They come by its second serial port.  The first one belongs to the kernel's messages, which may
    come at any time.

    Args:
        runner: the words that run the shell script ``/run/command`` for at most ``$seconds``.
    """
    # Process 1 inherits other processes' children, such as the guard that busybox' timeout leaves
    # behind.  When one of them ends while ash reads a line, ash forgets what it has read of it: so
    # process 1 waits, and a child reads.
    return f"""\
exec 3<>{CHANNEL_DEVICE}
stty raw -echo <&3
echo ready >&3
while read -r serial seconds script <&3; do
    echo "$script" | base64 -d >/run/command
    {runner} </dev/null >/run/output 2>&1 3<&-
    echo "$serial $?" >&3
    base64 /run/output >&3
    echo . >&3
done &
wait $!
"""


INIT = """\
#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin HOME=/
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mount -t tmpfs -o size=90% tmp /tmp
for module in /modules/*.ko; do
    insmod "$module" || echo "cannot load $module"
done
ip link set lo up
""" + answer_commands('timeout -s KILL "$seconds" sh /run/command')


@dataclass(frozen=True)
class Kernel:
    """A kernel that can be booted, and the modules that belong to it.

    Attributes:
        image: the bzImage, or for User-Mode Linux the program.
        modules: the folder that holds ``modules.builtin`` and ``kernel/``.
    """

    image: Path
    modules: Path

    @property
    def version(self) -> str:
        """The kernel release, as ``uname -r`` in the guest tells it."""
        return self.modules.name


def build(
    kernel: Kernel,
    busybox: Path,
    modules: Sequence[str],
    folder: Path,
    *,
    init: str = INIT,
    programs: Sequence[Path] = (),
) -> Path:
    """Make an initial RAM file system, or find the one made earlier from the same parts.

    Args:
        kernel: the kernel to take the modules from.
        busybox: a statically linked busybox.
        modules: modules to load at boot; what they depend on is added and loaded before them.
        folder: where archives are kept, named by a hash of their content.
        init: the script that is process 1; it finds the modules in the order of their file names.
        programs: more programs of this machine, which the guest gets with the libraries that they need.
    """
    archive = _archive(kernel, busybox, modules, init, programs)
    path = folder / f"initramfs-{hashlib.sha256(archive).hexdigest()[:16]}.cpio"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, delete=False) as file:
            file.write(archive)
        Path(file.name).replace(path)  # atomic: a parallel run sees all of it or nothing
    return path


def _archive(
    kernel: Kernel, busybox: Path, modules: Sequence[str], init: str, programs: Sequence[Path]
) -> bytes:
    libraries = sorted({library for program in programs for library in shared_libraries(program)})
    folders = {"bin", "dev", "modules", "proc", "run", "sys", "tmp"}
    for library in libraries:
        folders |= {str(parent.relative_to("/")) for parent in library.parents[:-1]}
    # Sorted, a folder comes before what is in it.
    entries: list[tuple[str, int, bytes]] = [(name, stat.S_IFDIR | 0o755, b"") for name in sorted(folders)]
    entries.append(("init", stat.S_IFREG | 0o755, init.encode()))
    entries.append(("bin/busybox", stat.S_IFREG | 0o755, busybox.read_bytes()))
    for position, (name, content) in enumerate(load_order(kernel, modules)):
        entries.append((f"modules/{position:02}-{name}.ko", stat.S_IFREG | 0o644, content))
    for program in programs:
        entries.append((f"bin/{program.name}", stat.S_IFREG | 0o755, program.read_bytes()))
    for library in libraries:
        entries.append((str(library.relative_to("/")), stat.S_IFREG | 0o755, library.read_bytes()))
    return cpio_newc(entries)


def shared_libraries(program: Path) -> list[Path]:
    """The files that a program needs besides itself: its loader and its libraries, none if it is static.

    The loader says where it finds them here; there they lie in the guest, too.
    """
    done = subprocess.run(["ldd", program], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=False)
    return [Path(path) for path in re.findall(r"(/\S+) \(0x", done.stdout.decode())]


def load_order(kernel: Kernel, names: Iterable[str]) -> list[tuple[str, bytes]]:
    """Resolve modules to (name, content), dependencies first; built-in ones are left out.

    Raises:
        HostError: a module is neither built in nor among the kernel's files.
    """
    builtin = {
        module_name(Path(line)) for line in (kernel.modules / "modules.builtin").read_text().splitlines()
    }
    files = {module_name(path): path for path in kernel.modules.glob("kernel/**/*.ko*")}
    order: dict[str, bytes] = {}

    def add(name: str) -> None:
        if name in builtin or name in order:
            return
        if name not in files:
            raise HostError(
                f"kernel {kernel.version} has no module {name}: looked in {kernel.modules}",
                "use a kernel that has it",
            )
        content = _decompressed(files[name])
        for dependency in module_dependencies(content):
            add(dependency)
        order[name] = content

    for name in names:
        add(name.replace("-", "_"))
    return list(order.items())


def module_dependencies(content: bytes) -> list[str]:
    """Names of the modules that a module needs, from its ``.modinfo`` section."""
    found = re.search(rb"\0depends=([^\0]*)\0", content)
    names = found[1].decode().split(",") if found else []
    return [name.replace("-", "_") for name in names if name]


def cpio_newc(entries: Iterable[tuple[str, int, bytes]]) -> bytes:
    """Write a "newc" archive of (name, mode, content); equal entries give equal bytes."""
    parts: list[bytes] = []

    def add(inode: int, name: str, mode: int, content: bytes) -> None:
        links = 1
        fields = (inode, mode, 0, 0, links, 0, len(content), 0, 0, 0, 0, len(name) + 1, 0)
        header = b"070701" + b"".join(b"%08X" % field for field in fields)
        for part in (header + name.encode() + b"\0", content):
            parts.extend((part, bytes(-len(part) % 4)))

    count = 0
    for count, (name, mode, content) in enumerate(entries, 1):
        add(count, name, mode, content)
    add(count + 1, "TRAILER!!!", 0, b"")
    return b"".join(parts)


def module_name(path: Path) -> str:
    """The name of the module in a file, as the kernel spells it."""
    return path.name.split(".ko")[0].replace("-", "_")


def _decompressed(path: Path) -> bytes:
    match path.suffix:
        case ".ko":
            return path.read_bytes()
        case ".xz":
            return lzma.decompress(path.read_bytes())
        case ".zst":
            # The Python versions that we support have no zstd; setup.sh installs the program.
            return subprocess.run(
                ["zstd", "-dcq", os.fspath(path)], check=True, stdout=subprocess.PIPE
            ).stdout
    raise HostError(f"{path}: a module compressed in a way that is not known here")
