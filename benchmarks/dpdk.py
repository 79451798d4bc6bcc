#!/usr/bin/env python3
"""guestwire beside DPDK's vhost library, and beside another build of itself.

The guests are DPDK's testpmd with the virtio-user driver, the backends ``guestwire run`` and testpmd with
net_vhost. README.md tells the method.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parent.parent / "tests"))

import command
import contenders
import frames
import hugepages
from backends import MEMORY_MIB, NotMeasured, Place, Program, dpdk_version
from case import SCENARIOS, Case, RingLayout, Sweep, cases
from machine import machine, numbers, two_cpus, versions
from measurement import Method, measure
from placement import PingPong
from results import Results, Row
from rich.console import Console
from tables import sheets

from guestwire.errors import GuestwireError
from peers import testpmd

LAYOUTS: tuple[RingLayout, ...] = ("split", "packed")
DPDK = ("22.11", "none")

OPTIONS: dict[str, dict[str, Any]] = {
    "--scenarios": {
        "type": command.choice(SCENARIOS),
        "default": ",".join(SCENARIOS),
        "help": "what to measure",
    },
    "--rings": {"type": command.choice(LAYOUTS), "default": ",".join(LAYOUTS), "help": "layouts of rings"},
    "--sizes": {"type": numbers, "default": "64,1500", "help": "bytes of a frame"},
    "--mergeable": {"type": numbers, "default": "1,0", "help": "receive buffers of loop: 0, 1 or both"},
    "--dpdk": {"choices": DPDK, "default": "22.11", "help": "which DPDK"},
    "--other": {"type": Path, "metavar": "GUESTWIRE", "help": "another build of guestwire to take part"},
    "--pairs": {"type": int, "default": 7, "help": "windows of each contender at one placement"},
    "--seconds": {"type": float, "default": 1.0, "help": "length of a window"},
    "--quick": {"action": "store_true", "help": "3 pairs of 0.5 s, 10 s of patience, nothing is kept"},
    "--patience": {"type": float, "default": 30.0, "help": "more seconds for disturbed windows, a row"},
    "--minutes": {"type": float, "default": 45.0, "help": "no row is begun later"},
    "--least-share": {"type": float, "default": 0.95, "help": "of its CPU that each side must get"},
    "--cpus": {"type": numbers, "help": "the backend's and the guest's; if not given the first two"},
    "--output": {"type": Path, "help": "if not given results/dpdk-DATE.json, with --quick nowhere"},
    **command.SHOWING,
}


def parse() -> argparse.Namespace:
    parsed = command.parse("guestwire beside DPDK", OPTIONS)
    if parsed.quick:
        parsed.pairs, parsed.seconds, parsed.patience = 3, 0.5, 10.0
    elif parsed.output is None:
        parsed.output = command.results_file("dpdk")
    return parsed


def programs(arguments: argparse.Namespace) -> list[Program]:
    """Return what is compared: guestwire, which is compared with each of the others."""
    found = [Program("guestwire", "guestwire")]
    if arguments.other is not None:
        found.append(Program("other", "guestwire", (str(arguments.other.absolute()),)))
    if arguments.dpdk != "none":
        found.append(Program("DPDK", "dpdk", (testpmd.BINARY,)))
    return found


class Run:
    """A run of the benchmark.

    Args:
        arguments: the command's.
        results: what it goes into.
        tell: is told what is going on.
    """

    def __init__(self, arguments: argparse.Namespace, results: Results, tell: Callable[[str], None]) -> None:
        self._arguments, self._results, self._tell = arguments, results, tell
        self._programs = programs(arguments)
        self._driver = Program("driver", "dpdk", (testpmd.BINARY,))
        self._cpus = two_cpus(arguments.cpus)
        self._ping = PingPong(self._cpus)
        self._method = Method(arguments.pairs, arguments.seconds, arguments.patience, arguments.least_share)
        self._end = time.monotonic() + 60 * arguments.minutes

    def all(self, groups: Sequence[Sequence[Case]]) -> None:
        """Measure all cases; those of a group have their contenders in common."""
        for group in groups:
            rows = [Row(case, [program.name for program in self._programs]) for case in group]
            self._results.rows += rows
            if time.monotonic() > self._end:
                for row in rows:
                    row.skipped = "the time was over"
                continue
            try:
                self._group(rows)
            except (AssertionError, GuestwireError, NotMeasured, TimeoutError) as error:
                # What cannot be measured, or not by this build, is no reason to lose the rest.
                for row in rows:
                    row.skipped = row.skipped or str(error).strip().partition("\n")[0]

    def _group(self, rows: Sequence[Row]) -> None:
        case = rows[0].case
        self._tell(f"{case.scenario}, {case.described()}: starting")
        memory = sum(2 if program.kind == "dpdk" else 1 for program in self._programs) * MEMORY_MIB
        with contextlib.ExitStack() as stack:
            huge = stack.enter_context(hugepages.reserved(memory))
            self._results.about["machine"]["hugepages"] = huge
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="guestwire-")))
            ports = {"capture": str(frames.capture(folder, case.size))}
            taking_part = []
            for number, program in enumerate(self._programs):
                place = Place(folder / str(number), *self._cpus, huge)
                place.folder.mkdir()
                contender = contenders.forwarding(program, self._driver, case, place, ports)
                taking_part.append(stack.enter_context(contender))
            for row in rows:
                measure(row, taking_part, self._ping, self._method, self._tell)


def describe(arguments: argparse.Namespace) -> dict[str, Any]:
    """Say what is measured where."""
    backend_cpu, guest_cpu = two_cpus(arguments.cpus)
    return {
        "benchmark": "guestwire beside DPDK",
        "date": datetime.date.today().isoformat(),
        "machine": machine(),
        "versions": versions() | {"dpdk": dpdk_version([testpmd.BINARY])},
        "method": {
            "backend_cpu": backend_cpu,
            "guest_cpu": guest_cpu,
            **{name: getattr(arguments, name) for name in ("pairs", "seconds", "patience", "least_share")},
        },
    }


def main() -> None:
    arguments = parse()
    console = Console(width=None if sys.stdout.isatty() else 150)
    if arguments.show is not None:
        results = Results.load(arguments.show)
    else:
        if shutil.which(testpmd.BINARY) is None:
            raise SystemExit(f"{testpmd.BINARY} is not installed: apt-get install dpdk-dev")
        command.end_well()
        results = Results(describe(arguments))
        sweep = Sweep(arguments.sizes, arguments.rings, [bool(each) for each in arguments.mergeable])
        with console.status("starting") as status:
            Run(arguments, results, status.update).all(cases(arguments.scenarios, sweep))
        if arguments.output is not None:
            results.save(arguments.output)
            console.print(f"saved {arguments.output}")
    for sheet in sheets(results):
        if arguments.markdown:
            print(f"{sheet.title}\n\n{sheet.markdown()}\n")
        else:
            console.print(sheet.terminal())


if __name__ == "__main__":
    command.run(main)
