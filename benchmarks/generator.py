#!/usr/bin/env python3
"""Send frames from an interface until we are ended: a burst, a pause, a burst.

usage: generator.py INTERFACE SIZE BURST PAUSE_US CPU

It runs with a real-time priority, so that a burst comes in time on a CPU where something else polls.
"""

from __future__ import annotations

import os
import sys
import time

from guestwire.testing import FrameStream, PacketSocket

LONGEST_SECONDS = 600  # nobody needs it longer
PRIORITY = 5


def main() -> None:
    interface = sys.argv[1]
    size, burst, pause_us, cpu = map(int, sys.argv[2:])
    os.sched_setaffinity(0, {cpu})
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(PRIORITY))
    stream = FrameStream(size, whole_every=1 << 16)
    end = time.monotonic() + LONGEST_SECONDS
    with PacketSocket(interface) as out:
        while time.monotonic() < end:
            out.send_stream(stream, burst)
            time.sleep(pause_us / 1e6)


if __name__ == "__main__":
    main()
