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
import hugepages
import own_driver
import report
from backends import NotMeasured, Place, Program, dpdk_version, testpmd_memory_mib
from case import SCENARIOS, WORKS, Case, RingLayout, Sweep, cases
from machine import machine, numbers, two_cpus, versions
from measurement import Method, measure
from newest_dpdk import newest_testpmd
from placement import PingPong
from results import Results, Row
from rich.console import Console
from tables import sheets
from veth import over_veth

from guestwire.errors import GuestwireError, HostError
from peers import testpmd

LAYOUTS: tuple[RingLayout, ...] = ("split", "packed")
WIDTH = 180  # of a table in a file
REPORTS = Path(__file__).resolve().parent.parent / "docs" / "benchmarks"
DPDK = ("installed", "newest", "both", "none")

OPTIONS: dict[str, dict[str, Any]] = {
    "--scenarios": {
        "type": command.choice(SCENARIOS),
        "default": ",".join(SCENARIOS),
        "help": "what to measure",
    },
    "--rings": {"type": command.choice(LAYOUTS), "default": ",".join(LAYOUTS), "help": "layouts of rings"},
    "--sizes": {"type": numbers, "default": "64,1500", "help": "bytes of a frame"},
    "--mergeable": {"type": numbers, "default": "1,0", "help": "receive buffers of loop: 0, 1 or both"},
    "--dpdk": {"choices": DPDK, "default": "both", "help": "the installed one, Debian's newest, or both"},
    "--other": {"type": Path, "metavar": "GUESTWIRE", "help": "another build of guestwire to take part"},
    "--pairs": {"type": int, "default": 7, "help": "windows of each contender at one placement"},
    "--seconds": {"type": float, "default": 1.0, "help": "length of a window"},
    "--quick": {"action": "store_true", "help": "3 pairs of 0.5 s, 10 s of patience, nothing is kept"},
    "--patience": {"type": float, "default": 30.0, "help": "more seconds for disturbed windows, a row"},
    "--minutes": {"type": float, "default": 45.0, "help": "no row is begun later"},
    "--least-share": {"type": float, "default": 0.95, "help": "of its CPU that each side must get"},
    "--cpus": {"type": numbers, "help": "the backend's and the guest's; if not given the first two"},
    "--output": {"type": Path, "help": "if not given results/dpdk-DATE.json, with --quick nowhere"},
    "--picture": {"type": Path, "metavar": "FILE", "help": "write a picture, an SVG document"},
    "--report": {
        "type": Path,
        "metavar": "FOLDER",
        "help": "where the report goes, by default docs/benchmarks",
    },
    "--resume": {"action": "store_true", "help": "keep what --output has of other rows"},
    **command.SHOWING,
}


def parse() -> argparse.Namespace:
    parsed = command.parse("guestwire beside DPDK", OPTIONS)
    if parsed.quick:
        parsed.pairs, parsed.seconds, parsed.patience = 3, 0.5, 10.0
    elif parsed.output is None and parsed.show is None:
        parsed.output = command.results_file("dpdk")
        parsed.report = parsed.report or REPORTS
    return parsed


def programs(arguments: argparse.Namespace, console: Console, tell: Callable[[str], None]) -> list[Program]:
    """Return what is compared: guestwire, which is compared with each of the others."""
    found = [Program("guestwire", "guestwire")]
    if arguments.other is not None:
        found.append(Program("other", "guestwire", (str(arguments.other.absolute()),)))
    commands: list[tuple[str, ...]] = []
    if arguments.dpdk in {"installed", "both"}:
        commands.append((testpmd.BINARY,))
    if arguments.dpdk in {"newest", "both"}:
        try:
            commands.append(newest_testpmd(tell))
        except HostError as error:
            if arguments.dpdk == "newest":
                raise
            console.print(f"without a newer DPDK: {error}")
    found += [Program(f"DPDK {dpdk_version(command)}", "dpdk", command) for command in commands]
    return found


MAKERS = {
    **dict.fromkeys(WORKS, contenders.forwarding),
    **{name: over_veth for name, work in WORKS.items() if work.interface},
    "round trip": own_driver.round_trips,
    "idle": own_driver.idle,
    "large frames": own_driver.large_frames,
}
"""What puts a contender together, for each kind of work."""


class Run:
    """A run of the benchmark.

    Args:
        arguments: the command's.
        programs: what is compared, the first with each of the others.
        results: what it goes into.
        tell: is told what is going on.
    """

    def __init__(
        self,
        arguments: argparse.Namespace,
        programs: Sequence[Program],
        results: Results,
        tell: Callable[[str], None],
    ) -> None:
        self._programs, self._results, self._tell = list(programs), results, tell
        self._driver = Program("driver", "dpdk", (testpmd.BINARY,))
        self._cpus = two_cpus(arguments.cpus)
        self._ping = PingPong(self._cpus)
        self._method = Method(arguments.pairs, arguments.seconds, arguments.patience, arguments.least_share)
        self._end = time.monotonic() + 60 * arguments.minutes

    def all(self, groups: Sequence[Sequence[Case]]) -> None:
        """Measure all cases; those of a group have their contenders in common."""
        for group in groups:
            rows = [Row(case, [program.name for program in self._taking_part(case)]) for case in group]
            self._results.rows += rows
            try:
                if self._may_begin(*rows):
                    self._group(rows)
            except (AssertionError, GuestwireError, NotMeasured, TimeoutError) as error:
                # What cannot be measured, or not by this build, is no reason to lose the rest.
                print(f"{group[0].scenario}, {group[0].described()}: {error}", file=sys.stderr)
                for row in rows:
                    row.skipped = row.skipped or str(error).strip().partition("\n")[0]

    def _taking_part(self, case: Case) -> list[Program]:
        if case.work != "large frames":
            return self._programs
        # testpmd's frames are shorter; memcpy is the measure there.
        return [*(p for p in self._programs if p.kind == "guestwire"), Program("memcpy", "memcpy", ())]

    def _group(self, rows: Sequence[Row]) -> None:
        case = rows[0].case
        self._tell(f"{case.scenario}, {case.described()}: starting")
        programs = self._taking_part(case)
        memory = 2 * len(programs) * testpmd_memory_mib(case)
        with contextlib.ExitStack() as stack:
            huge = stack.enter_context(hugepages.reserved(memory))
            about = self._results.about["machine"]
            about["hugepages"] = huge and about.get("hugepages", True)
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="guestwire-")))
            taking_part = []
            for number, program in enumerate(programs):
                place = Place(folder / str(number), *self._cpus, huge)
                place.folder.mkdir()
                contender = MAKERS[case.work](program, self._driver, case, place)
                taking_part.append(stack.enter_context(contender))
            for row in rows:
                if self._may_begin(row):
                    measure(row, taking_part, self._ping, self._method, self._tell)

    def _may_begin(self, *rows: Row) -> bool:
        """Return whether there is time left for rows, which are told if there is none."""
        late = time.monotonic() > self._end
        for row in rows if late else ():
            row.skipped = "the time was over"
        return not late


def describe(arguments: argparse.Namespace) -> dict[str, Any]:
    """Say what is measured where."""
    backend_cpu, guest_cpu = two_cpus(arguments.cpus)
    return {
        "benchmark": "guestwire beside DPDK",
        "date": datetime.date.today().isoformat(),
        "machine": machine(),
        "versions": versions() | {"driver": f"DPDK {dpdk_version([testpmd.BINARY])}"},
        "method": {
            "backend_cpu": backend_cpu,
            "guest_cpu": guest_cpu,
            **{name: getattr(arguments, name) for name in ("pairs", "seconds", "patience", "least_share")},
        },
    }


def measured(arguments: argparse.Namespace, console: Console) -> Results:
    """Measure, and keep the results; those so far if we are interrupted."""
    if shutil.which(testpmd.BINARY) is None:
        raise SystemExit(f"{testpmd.BINARY} is not installed: apt-get install dpdk-dev")
    command.end_well()
    sweep = Sweep(arguments.sizes, arguments.rings, [bool(each) for each in arguments.mergeable])
    results = Results(describe(arguments))
    with console.status("starting") as status:
        compared = programs(arguments, console, status.update)
        try:
            Run(arguments, compared, results, status.update).all(cases(arguments.scenarios, sweep))
        except KeyboardInterrupt:
            console.print("interrupted: what was measured so far follows, and goes into no report")
            arguments.report = None
    if arguments.resume and arguments.output.exists():
        results.complete(Results.load(arguments.output))
    if arguments.output is not None:
        results.save(arguments.output)
        console.print(f"saved {arguments.output}")
    return results


def main() -> None:
    arguments = parse()
    console = Console(width=None if sys.stdout.isatty() else WIDTH)
    results = Results.load(arguments.show) if arguments.show is not None else measured(arguments, console)
    if arguments.report is not None:
        console.print(f"saved {report.write(results, arguments.report)}")
    if arguments.picture is not None:
        arguments.picture.write_text(report.picture(results), encoding="utf-8")
    command.show(sheets(results), console, markdown=arguments.markdown)


if __name__ == "__main__":
    command.run(main)
