#!/usr/bin/env python3
"""TCP between a real guest and a host: guestwire beside the emulators' own TAP drivers, and xdp alone.

The guests are QEMU without KVM and User-Mode Linux; the tool is iperf3. README.md tells the method.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parent.parent / "tests"))

import command
from machine import machine, numbers, two_cpus, versions
from placement import PingPong, label
from rich.console import Console
from rich.status import Status
from tcp_contenders import Contender, Guestwire, Kind, OwnTap, Setup
from tcp_results import DIRECTIONS, Results, Row

from guestwire.testing import images

NAMES = {"qemu": "QEMU (TCG)", "uml": "User-Mode Linux"}
XDP = "xdp:{},mode=direct,offloads="
COMPARED = {
    "xdp": (("xdp, segmentation on", f"{XDP}yes"), ("xdp, segmentation off", f"{XDP}no")),
    "gro": (("xdp, merging on", f"{XDP}yes,gro=yes"), ("xdp, merging off", f"{XDP}yes")),
}
ROWS = tuple(f"{guest}-{what}" for what in ("tap", *COMPARED) for guest in NAMES)


def contenders(row: str, setup: Setup) -> Sequence[Contender]:
    """Return what a row compares; the last one is what the others are compared with."""
    guest, what = row.split("-")
    kind: Kind = "uml" if guest == "uml" else "qemu"
    if what == "tap":
        own = OwnTap("QEMU tap" if kind == "qemu" else "UML tap", kind, setup)
        return Guestwire("guestwire tap", kind, setup, "tap:{}"), own
    return [Guestwire(name, kind, setup, port) for name, port in COMPARED[what]]


def measure_row(name: str, setup: Setup, rounds: int, ping: PingPong, status: Status) -> Row:
    """Let the contenders of a row take turns."""
    status.update(f"{name}: booting")
    compared = contenders(name, setup)
    row = Row(NAMES[compared[0].kind], tuple(contender.name for contender in compared))
    with contextlib.ExitStack() as stack:
        for contender in compared:
            stack.enter_context(contender.running())
            row.features[contender.name] = contender.features()
        for number in range(rounds):
            # Who comes first alternates.
            for contender in compared if number % 2 == 0 else compared[::-1]:
                for direction in DIRECTIONS:
                    status.update(f"{name}: round {number + 1} of {rounds}, {contender.name}, {direction}")
                    before = ping.round_trip_ns()
                    window = contender.measure(number, direction)
                    placement = label(before, ping.round_trip_ns())
                    row.windows.append(replace(window, placement=placement))
    return row


OPTIONS: dict[str, dict[str, Any]] = {
    "--quick": {"action": "store_true", "help": "2 rounds of 2 s"},
    "--rounds": {"type": int, "default": 5, "help": "windows of each contender in each direction"},
    "--seconds": {"type": float, "default": 4.0, "help": "length of a window"},
    "--rows": {"type": command.choice(ROWS), "default": ",".join(ROWS), "help": "what to compare"},
    "--cpus": {"type": numbers, "help": "the host side's and the guest's; if not given the first two"},
    "--output": {"type": Path, "help": "if not given results/tcp-DATE.json, with --quick nowhere"},
    **command.SHOWING,
}


def parse() -> argparse.Namespace:
    parsed = command.parse("TCP of real guests: guestwire beside the emulators' own TAP drivers", OPTIONS)
    if parsed.quick:
        parsed.rounds, parsed.seconds = 2, 2.0
    elif parsed.output is None:
        parsed.output = command.results_file("tcp")
    return parsed


def measure(arguments: argparse.Namespace, console: Console) -> Results:
    host_cpu, guest_cpu = two_cpus(arguments.cpus)
    about = {
        "benchmark": "TCP of real guests",
        "date": datetime.date.today().isoformat(),
        "machine": machine(),
        "versions": versions(),
        "method": {
            "host_cpu": host_cpu,
            "guest_cpu": guest_cpu,
            "rounds": arguments.rounds,
            "seconds": arguments.seconds,
        },
    }
    results = Results(about)
    ping = PingPong((host_cpu, guest_cpu))
    with console.status("starting") as status, tempfile.TemporaryDirectory(prefix="guestwire-") as folder:
        setup = Setup(Path(folder), guest_cpu, host_cpu, arguments.seconds)
        for name in arguments.rows:
            results.rows.append(measure_row(name, setup, arguments.rounds, ping, status))
    return results


def main() -> None:
    arguments = parse()
    console = Console()
    if arguments.show is not None:
        results = Results.load(arguments.show)
    else:
        images.installed("iperf3")
        command.end_well()
        results = measure(arguments, console)
        if arguments.output is not None:
            results.save(arguments.output)
            console.print(f"saved {arguments.output}")
    command.show([results.sheet()], console, markdown=arguments.markdown)


if __name__ == "__main__":
    command.run(main)
