"""A newer testpmd than the machine's, from another suite of Debian, unpacked beside the system."""

from __future__ import annotations

import re
from pathlib import Path

from guestwire.errors import HostError
from guestwire.testing.packages import Apt, Progress, quiet, unpacked

SUITE = "sid"
PACKAGE = "dpdk-dev"
# Of what an installation would add or replace: DPDK, the C library, and the libraries that both need.
NEEDED = re.compile(r"(dpdk-dev|ibverbs-providers|lib(?!.*-(dev|data|bin|l10n|extra|dbg|devtools)=).*)=")


def newest_testpmd(progress: Progress = quiet) -> tuple[str, ...]:
    """Return the command that starts it: the words before its own arguments.

    It runs by the dynamic loader and the C library that it was built for, which are newer than the machine's,
    with whatever else it needs from the machine.

    Raises:
        HostError: it cannot be had.
    """
    root = unpacked("dpdk", _packages, progress, suite=SUITE, prune=_remove_excess)
    libraries = {path.parent for path in root.glob("usr/lib/*/ld-linux-*.so.*")}
    if len(libraries) != 1:
        raise HostError(f"the packages of {SUITE} have no dynamic loader", f"rm -r {root}")
    (folder,) = libraries
    (loader,) = folder.glob("ld-linux-*.so.*")
    (drivers,) = folder.glob("dpdk/pmds-*")
    system = Path("/") / folder.relative_to(root)
    # DPDK looks for its drivers where it would be installed, unless told otherwise.
    return (
        *(str(loader), "--library-path", f"{folder}:{system}"),
        *(str(root / "usr/bin/dpdk-testpmd"), "-d", str(drivers)),
    )


def _packages(apt: Apt) -> list[str]:
    return [name for name in apt.additions(PACKAGE, SUITE) if NEEDED.match(name)]


def _remove_excess(root: Path) -> None:
    for path in (root / "usr/bin").iterdir():
        if path.name != "dpdk-testpmd":
            path.unlink()
