#!/usr/bin/env python3
"""How many instructions a worker executes for a frame as its queue pairs and their rings grow.

Valgrind counts the rounds of one worker over queue pairs on the echo port, in the steady state: each round
moves a burst on every busy pair, from the guest and back. The driver is not counted. Other pairs may idle
beside the busy ones. What a cache miss costs is not in these figures.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from instructions import read_annotated, run
from rich.console import Console
from rich.table import Table

from guestwire.datapath.counters import Counters
from guestwire.datapath.echo import EchoPort
from guestwire.datapath.packed_ring import PackedRing
from guestwire.datapath.queue_pair import QueuePair
from guestwire.datapath.split_ring import SplitRing
from guestwire.datapath.window import Window
from guestwire.datapath.worker import WorkLoop
from guestwire.testing import DRIVER_FEATURES, BufferLayout, DriverRing, FrameStream, SharedMemory, raw_ring
from guestwire.testing import QueuePair as Driver
from guestwire.virtio.features import Feature

# The rings' layout, queue pairs on the worker, how many of them are busy, and entries of a busy pair's rings.
CASES = (
    *(("split", *case) for case in ((1, 1, 256), (1, 1, 4096), (4, 4, 256), (4, 4, 4096), (4, 1, 256))),
    ("split", 64, 1, 256),
    ("packed", 1, 1, 256),
    ("packed", 4, 4, 4096),
)
HEADER = 12
FIRST_LAP = 0x8000  # where a packed ring begins: position 0, wrap counter 1
WARM_UP_ROUNDS = 24
# One round of the worker: what is counted. The other is called once where counting begins anew.
COUNTED = "__pyx_f_9guestwire_8datapath_6worker_make_round*"
BEGIN = "__pyx_pw_9guestwire_8datapath_6worker_8WorkLoop_*wake"


@dataclasses.dataclass(frozen=True, slots=True)
class Count:
    """Instructions executed by the worker's rounds.

    Attributes:
        layout: of the rings.
        pairs: on the worker. busy: how many of them moved frames. size: entries of each ring.
        frames: how many went around. instructions: for all of them.
    """

    layout: str
    pairs: int
    busy: int
    size: int
    frames: int
    instructions: int

    @property
    def per_frame(self) -> float:
        return self.instructions / self.frames


class Guest:
    """A guest's memory, and the drivers and the worker of its queue pairs."""

    def __init__(self, packed: bool, pairs: int, sizes: Sequence[int], length: int) -> None:
        self._packed = packed
        self._layout = BufferLayout(length=HEADER + length)
        self._memory = SharedMemory(sum(sizes) * 2 * (self._layout.share(HEADER) + 64) + pairs * 65536)
        table = [(r.guest_address, r.user_address, r.size, r.fd, r.mmap_offset) for r in self._memory.regions]
        self._window = Window(table, bounce_frames=0)
        fd = os.memfd_create("counters")
        self._counters = Counters(fd, pairs)
        os.close(fd)
        self.loop = WorkLoop(poll_us=0)
        self.drivers = [self._add(number, size) for number, size in enumerate(sizes)]

    def _add(self, number: int, size: int) -> Driver:
        (receive, rx), (send, tx) = (self._ring(size, receive) for receive in (True, False))
        pair = QueuePair(
            self._window, EchoPort(), rx, tx, mergeable=True, counters=self._counters, index=number
        )
        pair.enable(rx=True, tx=True)
        self.loop.add(pair)
        self.loop.round()
        receive.post()
        return Driver(receive, send)

    def _ring(self, size: int, receive: bool) -> tuple[DriverRing, SplitRing | PackedRing]:
        memory, layout = self._memory, self._layout
        table = memory.allocate(raw_ring.descriptor_table_size(size), 16)
        # Large enough, and aligned, for the two event suppression structures of a packed ring as well.
        available = memory.allocate(raw_ring.available_ring_size(size), 4)
        used = memory.allocate(raw_ring.used_ring_size(size), 4)
        area = memory.allocate(size * layout.share(HEADER))
        driver = DriverRing(
            size,
            table.bytes,
            available.bytes,
            used.bytes,
            area=area.bytes,
            area_address=area.guest_address,
            pieces=layout.pieces(HEADER),
            spacing=layout.share(HEADER),
            receive=receive,
            features=DRIVER_FEATURES | (Feature.VIRTIO_F_RING_PACKED if self._packed else 0),
            base=FIRST_LAP if self._packed else 0,
        )
        areas = (self._window.translate_guest(each.guest_address, 1) for each in (table, available, used))
        kind = PackedRing if self._packed else SplitRing
        return driver, kind(self._window, size, *areas, receive=receive, event_index=True)

    def close(self) -> None:
        for driver in self.drivers:
            driver.receive_ring.release()
            driver.transmit_ring.release()
        self._window.close()
        self._memory.close()


def move_frames(layout: str, pairs: int, busy: int, size: int, rounds: int, burst: int, length: int) -> None:
    """Run the worker: what Valgrind watches. An idle pair has small rings, which nobody looks into."""
    sizes = [size] * busy + [256] * (pairs - busy)
    with contextlib.closing(Guest(layout == "packed", pairs, sizes, length)) as guest:
        streams = [FrameStream(length, identifier=number) for number in range(busy)]
        while guest.loop.round():
            pass
        for i in range(WARM_UP_ROUNDS + rounds):
            if i == WARM_UP_ROUNDS:
                guest.loop.wake()
            for driver, stream in zip(guest.drivers, streams, strict=False):
                driver.send_stream(stream, burst, drain=False)
            guest.loop.round()
            for driver, stream in zip(guest.drivers, streams, strict=False):
                assert driver.receive_stream(stream, burst).received == burst


def count(layout: str, pairs: int, busy: int, size: int, arguments: argparse.Namespace) -> Count:
    """Run this program under Valgrind and read what it counted."""
    with tempfile.TemporaryDirectory() as folder:
        profile = Path(folder, "profile")
        own = [__file__, "--measure", layout, str(pairs), str(busy), str(size)]
        own += [f"--{name}={getattr(arguments, name)}" for name in ("rounds", "burst", "length")]
        callgrind = ["valgrind", "--tool=callgrind", "--collect-atstart=no", f"--toggle-collect={COUNTED}"]
        callgrind += [f"--zero-before={BEGIN}", f"--callgrind-out-file={profile}"]
        run([*callgrind, sys.executable, *own])
        total, _ = read_annotated(run(["callgrind_annotate", "--threshold=100", "--auto=no", str(profile)]))
    return Count(layout, pairs, busy, size, arguments.rounds * arguments.burst * busy, total)


def show(counts: Sequence[Count], console: Console) -> None:
    table = Table("rings", "queue pairs", "busy", "ring size", "instructions a frame", "/ first row")
    for one in counts:
        growth = one.per_frame / counts[0].per_frame
        cells = map(str, (one.layout, one.pairs, one.busy, one.size))
        table.add_row(*cells, f"{one.per_frame:.1f}", f"{growth:.2f}")
    console.print(table)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--rounds", type=int, default=400, help="rounds of the worker to count (default: 400)"
    )
    parser.add_argument(
        "--burst", type=int, default=32, help="frames a round and pair, up to 64 (default: 32)"
    )
    parser.add_argument("--length", type=int, default=64, help="bytes of a frame (default: 64)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the counts to a file")
    parser.add_argument(
        "--measure", nargs=4, metavar=("LAYOUT", "PAIRS", "BUSY", "SIZE"), help=argparse.SUPPRESS
    )
    arguments = parser.parse_args()
    if not 1 <= arguments.burst <= 64:
        parser.error("a pass moves 1 to 64 frames")
    return arguments


def main() -> None:
    arguments = parse()
    if arguments.measure:
        layout, *case = arguments.measure
        move_frames(layout, *map(int, case), arguments.rounds, arguments.burst, arguments.length)
        return
    if not shutil.which("valgrind"):
        raise SystemExit("valgrind is missing: apt-get install valgrind")
    counts = [count(*case, arguments) for case in CASES]
    show(counts, Console())
    if arguments.json:
        setting = {name: getattr(arguments, name) for name in ("rounds", "burst", "length")}
        rows = [
            {**dataclasses.asdict(one), "instructions_per_frame": round(one.per_frame, 2)} for one in counts
        ]
        arguments.json.write_text(json.dumps({**setting, "counts": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
