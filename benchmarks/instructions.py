#!/usr/bin/env python3
"""How many instructions guestwire executes for a frame, in each mode of the xdp port.

Valgrind counts those of the datapath alone: one pass of a queue pair's worker after the other, in the
steady state. The guest's driver, the kernel and the NIC are stood in for, and what they do is not counted.
The counts do not depend on the machine's speed or on what else it runs; they depend on the compiler and, in
a copy, on the C library's choice of instructions for this CPU.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent.parent / "tests"))

from rich.console import Console
from rich.table import Table

from unit.datapath.xdp_machine import MODES, Mode, XdpMachine, receive_address

DIRECTIONS = ("receive", "transmit")
RING = 256  # entries of the guest's rings
SOCKET_RING = 2048
BOUNCE_FRAMES = 2048
WARM_UP_PASSES = 24
# One pass of the worker: what is counted. The other is called once where counting begins anew.
COUNTED = "__pyx_f_9guestwire_8datapath_10queue_pair_queue_pair_pass"
BEGIN = "__pyx_pw_9guestwire_8datapath_10queue_pair_9QueuePair_*enable"


@dataclasses.dataclass(frozen=True, slots=True)
class Count:
    """Instructions executed by the datapath.

    Attributes:
        mode: of the port. direction: receive or transmit.
        frames: how many were moved. instructions: for all of them.
        functions: the part of each function, by name.
    """

    mode: str
    direction: str
    frames: int
    instructions: int
    functions: dict[str, int]

    @property
    def per_frame(self) -> float:
        return self.instructions / self.frames


def move_frames(mode: Mode, direction: str, passes: int, burst: int, length: int) -> None:
    """Run the datapath: what Valgrind watches. Every pass of the worker moves one burst of frames."""
    machine = XdpMachine(mode, piece=1 << 30, size=RING, socket_ring=SOCKET_RING, bounce_frames=BOUNCE_FRAMES)
    receiving = direction == "receive"
    frame = bytes(12) + b"\x02" * length
    for number in range(RING):
        if receiving:
            machine.offer_receive(number)
        else:
            machine.write(receive_address(number), frame)
    machine.run()
    number = 0
    for i in range(WARM_UP_PASSES + passes + 1):
        if i == WARM_UP_PASSES:
            machine.pair.enable(rx=True, tx=True)
            begun = moved(machine, direction)
        for _ in range(burst):
            if not receiving:
                machine.tx.offer((receive_address(number % RING), len(frame)))
            elif i:
                machine.offer_receive(number % RING)
            number += 1
        machine.socket.serve(receive=burst if receiving else 0, send=burst, length=length)
        machine.pair.step()
    assert moved(machine, direction) - begun == (passes + 1) * burst, f"not every frame went by {mode}"
    machine.close()


def moved(machine: XdpMachine, direction: str) -> int:
    """Return how many frames went the way of the mode: copies elsewhere are not what is measured."""
    counted = machine.counted()["rx" if direction == "receive" else "tx"]
    return {
        "zero-copy": counted["zero_copy_frames"],
        "direct": counted["direct_frames"],
        "bounce": counted["copied_frames"].get("bounce_mode", 0),
    }[machine.mode]


def count(mode: str, direction: str, arguments: argparse.Namespace) -> Count:
    """Run this program under Valgrind and read what it counted."""
    with tempfile.TemporaryDirectory() as folder:
        profile = Path(folder, "profile")
        own = [__file__, "--measure", mode, direction]
        own += [f"--{name}={getattr(arguments, name)}" for name in ("passes", "burst", "length")]
        callgrind = ["valgrind", "--tool=callgrind", "--collect-atstart=no", f"--toggle-collect={COUNTED}"]
        callgrind += [f"--zero-before={BEGIN}", f"--callgrind-out-file={profile}"]
        run([*callgrind, sys.executable, *own])
        listed = run(["callgrind_annotate", "--threshold=100", "--auto=no", str(profile)])
        if arguments.keep:
            shutil.copy(profile, Path(arguments.keep, f"callgrind.{mode}.{direction}"))
    total, functions = read_annotated(listed)
    return Count(mode, direction, (arguments.passes + 1) * arguments.burst, total, functions)


def read_annotated(listed: str) -> tuple[int, dict[str, int]]:
    """Return the instructions in all and in each function, from what callgrind_annotate prints."""
    found = re.search(r"^ *([\d,]+) +\(100\.0%\) +PROGRAM TOTALS", listed, re.MULTILINE)
    total = int(found[1].replace(",", "")) if found else 0
    functions: dict[str, int] = {}
    for figure, name in re.findall(r"^ *([\d,]+) +\(.*?%\) +\S*?:(\S+)", listed, re.MULTILINE):
        instructions = int(figure.replace(",", ""))
        # The callers, in which nothing was collected, are listed with the whole of what they called.
        if instructions != total:
            functions[short(name)] = functions.get(short(name), 0) + instructions
    # At its edges what is collected is not attributed to the instruction.
    if total == 0 or abs(sum(functions.values()) - total) > total / 100:
        raise SystemExit(
            f"{sum(functions.values())} of {total} instructions found: is the symbol {COUNTED} in "
            "the compiled queue_pair?"
        )
    return total, functions


def run(command: Sequence[str]) -> str:
    # Fixed hashes and one allocator: the same run each time.
    environment = {**os.environ, "PYTHONHASHSEED": "0", "PYTHONMALLOC": "malloc"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise SystemExit(f"{command[0]} failed:\n{done.stdout[-2000:]}{done.stderr[-4000:]}")
    return done.stdout


def short(name: str) -> str:
    """Return a compiled function's name without what Cython puts before it."""
    found = re.fullmatch(r"__pyx_f_9guestwire_8datapath_\d+(\w+?)(?:\.(?:part|constprop|isra)\S*)?", name)
    return found[1] if found else name


def show(counts: Sequence[Count], console: Console, *, breakdown: bool) -> None:
    table = Table(
        "mode", *[f"{d}, instructions a frame" for d in DIRECTIONS], *[f"{d} / bounce" for d in DIRECTIONS]
    )
    found = {(one.mode, one.direction): one for one in counts}
    for mode in MODES:
        figures = [found[mode, direction].per_frame for direction in DIRECTIONS]
        ratios = [found[mode, d].per_frame / found["bounce", d].per_frame for d in DIRECTIONS]
        table.add_row(mode, *[f"{f:.1f}" for f in figures], *[f"{r:.2f}" for r in ratios])
    console.print(table)
    if breakdown:
        for one in counts:
            console.print(f"\n{one.mode}, {one.direction}: instructions a frame by function")
            for name, instructions in sorted(one.functions.items(), key=lambda f: -f[1]):
                if instructions >= one.frames / 10:
                    console.print(f"  {instructions / one.frames:8.1f}  {name}", highlight=False)


def as_json(counts: Sequence[Count], arguments: argparse.Namespace) -> str:
    rows = [{**dataclasses.asdict(one), "instructions_per_frame": round(one.per_frame, 2)} for one in counts]
    setting = {name: getattr(arguments, name) for name in ("burst", "length")}
    return json.dumps({**setting, "counts": rows}, indent=2)


def parse(command_line: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--passes", type=int, default=200, help="passes of the worker to count (default: 200)"
    )
    parser.add_argument("--burst", type=int, default=32, help="frames a pass, up to 64 (default: 32)")
    parser.add_argument("--length", type=int, default=1500, help="bytes of a frame (default: 1500)")
    parser.add_argument("--breakdown", action="store_true", help="show each function's part")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the counts to a file")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="keep callgrind's profiles there")
    parser.add_argument("--measure", nargs=2, metavar=("MODE", "DIRECTION"), help=argparse.SUPPRESS)
    arguments = parser.parse_args(command_line)
    if not 1 <= arguments.burst <= 64:
        parser.error("a pass moves 1 to 64 frames")
    return arguments


def main() -> None:
    arguments = parse()
    if arguments.measure:
        mode, direction = arguments.measure
        move_frames(mode, direction, arguments.passes, arguments.burst, arguments.length)
        return
    if not shutil.which("valgrind"):
        raise SystemExit("valgrind is missing: apt-get install valgrind")
    counts = [count(mode, direction, arguments) for direction in DIRECTIONS for mode in MODES]
    show(counts, Console(), breakdown=arguments.breakdown)
    if arguments.json:
        arguments.json.write_text(as_json(counts, arguments) + "\n")


if __name__ == "__main__":
    main()
