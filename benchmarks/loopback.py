#!/usr/bin/env python3
"""How many frames per second go around between a guest and a backend: guestwire beside DPDK.

The guest is DPDK's testpmd with the virtio-user driver, the backends are ``guestwire run --port echo``
and testpmd with net_vhost. README.md tells the method.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parent.parent / "tests"))

import contenders
import hugepages
from contenders import MEMORY_MIB, Contender, Setup
from machine import machine, numbers, two_cpus, versions
from placement import PingPong, label
from results import Results, Row, Window
from rich.console import Console
from rich.status import Status

from peers import testpmd

HERE = Path(__file__).resolve().parent
SETTLE_SECONDS = 0.3
TESTPMDS = 3
DECIMALS = 3


class Measurement:
    """The windows of one configuration, until there are enough of them.

    Args:
        arguments: the command's.
        pair: what is compared.
        ping: measures the placement.
        row: what the windows are for, and go into.
        status: says what is going on.
    """

    def __init__(
        self,
        arguments: argparse.Namespace,
        pair: Sequence[Contender],
        ping: PingPong,
        row: Row,
        status: Status,
    ) -> None:
        self._arguments, self._pair, self._ping, self._row = arguments, pair, ping, row
        self._status = status

    def run(self) -> None:
        """Take pairs of windows, in turns which comes first."""
        wanted = self._arguments.pairs
        window_seconds = self._arguments.seconds + SETTLE_SECONDS + 1
        end = time.monotonic() + 2 * wanted * window_seconds + self._arguments.patience
        for number in itertools.count():
            have = max(len(self._row.ratios(placement)) for placement in ("near", "far"))
            if have >= wanted or time.monotonic() > end:
                return
            order = self._pair if number % 2 == 0 else self._pair[::-1]
            for contender in order:
                self._status.update(
                    f"{self._row.size} bytes, mergeable {'on' if self._row.mergeable else 'off'}: "
                    f"{have} of {wanted} pairs, {self._row.disturbed} disturbed; {contender.name}"
                )
                self._window(contender, number, end)

    def _window(self, contender: Contender, number: int, end: float) -> None:
        """Take one clean window; give up when the time is over."""
        while time.monotonic() < end:
            window = self._measure(contender, number)
            if min(window.backend_share, window.guest_share) >= self._arguments.least_share:
                self._row.windows.append(window)
                return
            self._row.disturbed += 1

    def _measure(self, contender: Contender, number: int) -> Window:
        contender.start(self._row.size)
        time.sleep(SETTLE_SECONDS)
        ping_before = self._ping.round_trip_ns()
        before = contender.sample()
        time.sleep(self._arguments.seconds)
        after = contender.sample()
        ping_after = self._ping.round_trip_ns()
        circulating = contender.stop()
        seconds, frames = after.seconds - before.seconds, max(1, after.frames - before.frames)
        share = (after.backend_cpu_seconds - before.backend_cpu_seconds) / seconds
        if before.backend_cycles is None or after.backend_cycles is None:
            backend_cycles = contender.tsc_mhz * 1e6 * share * seconds / frames
        else:
            backend_cycles = (after.backend_cycles - before.backend_cycles) / frames
        return Window(
            pair=number,
            backend=contender.name,
            placement=label(ping_before, ping_after),
            round_trip_ns=(ping_before, ping_after),
            circulating=circulating,
            frames_per_second=round(frames / seconds),
            backend_share=round(share, DECIMALS),
            guest_share=round((after.guest_cpu_seconds - before.guest_cpu_seconds) / seconds, DECIMALS),
            backend_cycles=round(backend_cycles, 1),
            guest_cycles=round((after.guest_cycles - before.guest_cycles) / frames, 1),
        )


OPTIONS: dict[str, dict[str, Any]] = {
    "--quick": {"action": "store_true", "help": "3 pairs of 0.5 s, mergeable buffers only"},
    "--pairs": {"type": int, "default": 5, "help": "how many pairs of windows at one placement"},
    "--seconds": {"type": float, "default": 2.0, "help": "length of a window"},
    "--sizes": {"type": numbers, "default": "64,1500", "help": "bytes of a frame"},
    "--mergeable": {"type": numbers, "default": "0,1", "help": "receive buffers: 0, 1 or both"},
    "--cpus": {"type": numbers, "help": "the backend's and the guest's; if not given the first two"},
    "--circulating": {"type": int, "default": 192, "help": "frames on their way, in bursts of 32"},
    "--least-share": {"type": float, "default": 0.95, "help": "of its CPU that each side must get"},
    "--patience": {"type": float, "default": 60.0, "help": "more seconds for disturbed windows, a row"},
    "--output": {"type": Path, "help": "if not given results/loopback-DATE.json, with --quick nowhere"},
    "--show": {"type": Path, "metavar": "RESULTS", "help": "measure nothing, show older results"},
    "--markdown": {"action": "store_true", "help": "show the table as README.md has it"},
}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="vhost-user loopback speed: guestwire beside DPDK",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    for name, option in OPTIONS.items():
        parser.add_argument(name, **option)
    parsed = parser.parse_args()
    if parsed.quick:
        parsed.pairs, parsed.seconds, parsed.mergeable = 3, 0.5, (1,)
    elif parsed.output is None:
        parsed.output = HERE / "results" / f"loopback-{datetime.date.today().isoformat()}.json"
    return parsed


def describe(arguments: argparse.Namespace, cpus: tuple[int, int], huge: bool) -> dict[str, Any]:
    """Say what was measured where."""
    return {
        "benchmark": "vhost-user loopback",
        "date": datetime.date.today().isoformat(),
        "machine": {**machine(), "hugepages": huge},
        "versions": versions(),
        "method": {
            "backend_cpu": cpus[0],
            "guest_cpu": cpus[1],
            "ring": "split",
            "queue_size": Setup.queue_size,
            "circulating": arguments.circulating,
            "mbufs": Setup.mbufs,
            "seconds": arguments.seconds,
            "least_share": arguments.least_share,
        },
    }


def measure(arguments: argparse.Namespace, console: Console) -> Results:
    cpus = two_cpus(arguments.cpus)
    ping = PingPong(cpus)
    with (
        hugepages.reserved(TESTPMDS * MEMORY_MIB) as huge,
        console.status("starting") as status,
        tempfile.TemporaryDirectory(prefix="guestwire-") as folder,
    ):
        results = Results(describe(arguments, cpus, huge))
        for mergeable in map(bool, arguments.mergeable):
            place = Path(folder) / f"mergeable-{mergeable}"
            place.mkdir()
            setup = Setup(mergeable, *cpus, huge, arguments.circulating)
            with contenders.guestwire(place, setup) as ours, contenders.dpdk(place, setup) as theirs:
                results.about["versions"]["dpdk"] = theirs.dpdk_version
                for size in arguments.sizes:
                    row = Row(size, mergeable)
                    results.rows.append(row)
                    Measurement(arguments, (ours, theirs), ping, row, status).run()
                    results.about["machine"]["tsc_mhz"] = ours.tsc_mhz
    return results


def main() -> None:
    arguments = parse()
    console = Console()
    if arguments.show is not None:
        results = Results.load(arguments.show)
    else:
        if shutil.which(testpmd.BINARY) is None:
            raise SystemExit(f"{testpmd.BINARY} is not installed: apt-get install dpdk-dev")
        # Ended by a signal, we still give back the hugepages and end what we have started.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
        results = measure(arguments, console)
        if arguments.output is not None:
            results.save(arguments.output)
            console.print(f"saved {arguments.output}")
    if arguments.markdown:
        print(results.markdown())
    else:
        console.print(results.table())


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
