"""A newer testpmd than the machine's, from another suite of Debian, unpacked beside the system."""

from __future__ import annotations

from pathlib import Path

from guestwire.testing.packages import LIBRARY, Apt, Progress, own_loader, quiet, unpacked

SUITE = "sid"
PACKAGE = "dpdk-dev"


def newest_testpmd(progress: Progress = quiet) -> tuple[str, ...]:
    """Return the command that starts it: the words before its own arguments.

    Raises:
        HostError: it cannot be had.
    """
    root = unpacked("dpdk", _packages, progress, suite=SUITE, prune=_remove_excess)
    (drivers,) = root.glob("usr/lib/*/dpdk/pmds-*")
    # DPDK looks for its drivers where it would be installed, unless told otherwise.
    return (*own_loader(root), str(root / "usr/bin/dpdk-testpmd"), "-d", str(drivers))


def _packages(apt: Apt) -> list[str]:
    needed = (f"{PACKAGE}=", "ibverbs-providers=")
    return [each for each in apt.additions(PACKAGE, SUITE) if each.startswith(needed) or LIBRARY.match(each)]


def _remove_excess(root: Path) -> None:
    for path in (root / "usr/bin").iterdir():
        if path.name != "dpdk-testpmd":
            path.unlink()
