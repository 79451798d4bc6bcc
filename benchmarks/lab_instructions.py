#!/usr/bin/env python3
"""How many instructions the guestwire process costs for a 1500-byte frame on a real zero-copy driver.

In the zero-copy lab (tests/lab), with QEMU counting instructions (-icount shift=0): the machine's clock
advances one nanosecond with each instruction, so that the CPU time of a process, which the kernel keeps, is
the number of instructions that it executed, its system calls included, on whatever machine this runs.
What the NIC's interrupts do is charged to whoever they interrupt, as everywhere.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent.parent / "tests"))

from guestwire.testing import BufferLayout, FakeGuest, FrameStream, PacketSocket, PageKind, SharedMemory
from guestwire.testing.namespaces import call_inside
from lab.machine import NAMESPACE, NIC, PEER, LabMachine, run_python

MODES = ("zero-copy", "bounce")
DIRECTIONS = ("receive", "transmit")
BURST = 32
LENGTH = 1500
MIB = 1 << 20


class CountingMachine(LabMachine):
    """A lab machine whose clock is its instruction counter."""

    def _command(self, channel_fd: int, folder: Path) -> list[str]:
        command = super()._command(channel_fd, folder)
        place = command.index("-accel") + 1
        command[place] = "tcg,thread=single"
        return [*command, "-icount", "shift=0,sleep=on"]


def cpu_nanoseconds(pid: int) -> int:
    """CPU time of all threads of a process (clock_getcpuclockid(3))."""
    return time.clock_gettime_ns(~pid << 3 | 2)


def measure(mode: str, frames: int) -> dict[str, float]:
    """Inside the machine: return instructions a frame of each direction."""
    # Only there is a server for its commands.
    from lab.inside.commands import LabBackend  # noqa: PLC0415
    from lab.inside.peer import wait_for_carrier  # noqa: PLC0415

    class Backend(LabBackend):
        """One that sleeps at once when there is nothing to do, so that waiting costs nothing."""

        def __init__(self, folder: Path) -> None:
            super().__init__(folder, f"xdp:{NIC},mode={mode}")
            self._arguments += ["--poll-us", "0"]

    layout = BufferLayout(12 + 2048)
    found = {}
    with (
        tempfile.TemporaryDirectory() as folder,
        call_inside(NAMESPACE, lambda: PacketSocket(PEER)) as peer,
        SharedMemory(16 * MIB, 16 * MIB, pages=PageKind.HUGETLB) as memory,
        Backend(Path(folder)) as backend,
    ):
        memory.allocate(8192, region=-1)
        options = {"receive_layout": layout, "transmit_layout": layout, "queue_size": 1024, "timeout": 60}
        with FakeGuest(backend.socket, memory=memory, **options) as guest:
            guest.frontend.get_features()
            wait_for_carrier()
            for direction in DIRECTIONS:
                stream = FrameStream(LENGTH)
                for count in (8 * BURST, frames):  # the first to warm up
                    before = cpu_nanoseconds(backend.pid)
                    for _ in range(0, count, BURST):
                        if direction == "receive":
                            peer.send_stream(stream, BURST)
                            guest.pair.receive_stream(stream, BURST, timeout=60)
                        else:
                            guest.pair.send_stream(stream, BURST, drain=False)
                            peer.receive_stream(stream, BURST, timeout=60)
                            guest.pair.drain(timeout=60)
                    found[direction] = (cpu_nanoseconds(backend.pid) - before) / count
            counters = backend.guest()["counters"]
            way = "zero_copy_frames" if mode == "zero-copy" else "copied_frames"
            for one in ("rx", "tx"):
                gone = counters[one][way]
                gone = sum(gone.values()) if isinstance(gone, dict) else gone
                if gone < frames:
                    raise SystemExit(f"{mode}: frames did not go that way: {counters[one]}")
    return found


def main() -> None:
    """Boot the machine, or inside it measure one mode."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, default=6400, help="frames a measurement (default: 6400)")
    parser.add_argument("--nic", choices=["igb", "virtio_net"], default="igb")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the counts to a file")
    parser.add_argument("--inside", metavar="MODE", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.inside:
        print(json.dumps(measure(arguments.inside, arguments.frames)))
        return
    results: dict[str, dict[str, float]] = {}
    with CountingMachine(arguments.nic, cpus=1) as machine:
        for mode in MODES:
            words = (str(Path(__file__).resolve()), "--inside", mode, "--frames", str(arguments.frames))
            done = run_python(machine, *words, timeout=600)
            if done.status != 0:
                raise SystemExit(done.output)
            results[mode] = json.loads(done.output.splitlines()[-1])
    for direction in DIRECTIONS:
        zero_copy, bounce = (results[mode][direction] for mode in MODES)
        print(
            f"{arguments.nic}, {direction}: zero-copy {zero_copy:,.0f}, bounce {bounce:,.0f} instructions a "
            f"frame of {LENGTH} bytes, ratio {zero_copy / bounce:.2f}"
        )
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2) + os.linesep)


if __name__ == "__main__":
    main()
