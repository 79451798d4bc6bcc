"""Hugepages for DPDK, for as long as a benchmark runs."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

from peers import testpmd

NUMBER = Path("/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages")
FOLDER = Path("/dev/hugepages")
SPARE_MIB = 512  # what must remain free for everybody else


@contextlib.contextmanager
def reserved(mib: int) -> Iterator[bool]:
    """Reserve hugepages where too few are free, and give them back at the end.

    Args:
        mib: how much memory is wanted, in MiB.

    Yields:
        Whether there is so much: no, where the machine has too little memory to spare, or we are not root.
    """
    missing = mib // testpmd.HUGE_PAGE_MIB - testpmd.free_hugepages()
    with contextlib.ExitStack() as undo:
        if os.geteuid() == 0 and NUMBER.exists():
            if not testpmd.hugepage_folders():
                FOLDER.mkdir(exist_ok=True)
                subprocess.run(["mount", "-t", "hugetlbfs", "nodev", FOLDER], check=True)
                undo.callback(_umount)
            if missing > 0 and available_mib() >= missing * testpmd.HUGE_PAGE_MIB + SPARE_MIB:
                undo.callback(_add, -_add(missing))
        yield testpmd.has_hugepages(mib)


def _add(pages: int) -> int:
    """Have the kernel reserve more or fewer, as far as it finds them; return how many more there are.

    Others may do the same meanwhile.
    """
    before = int(NUMBER.read_text())
    NUMBER.write_text(f"{max(0, before + pages)}\n")
    return int(NUMBER.read_text()) - before


def available_mib() -> int:
    """Return how much memory can be had without swapping, in MiB."""
    found = re.search(r"^MemAvailable: *(\d+) kB$", Path("/proc/meminfo").read_text(), re.MULTILINE)
    return int(found[1]) // 1024 if found else 0


def _umount() -> None:
    subprocess.run(["umount", FOLDER], check=False)
