"""A guest in a process of its own, which can be killed as a virtual machine can."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from subprocess import Popen

from backend.process import wait_until
from guestwire.testing import processes

SCRIPT = """
import sys
from guestwire.testing import FakeGuest, FrameStream

with FakeGuest(sys.argv[1]) as guest:
    stream = FrameStream((60, 1514))
    guest.pair.exchange(stream, 100)
    print("alive", *(region.fd for region in guest.memory.regions), flush=True)
    while True:
        guest.pair.exchange(stream, 1000)
"""


@contextmanager
def guest_process(socket: Path, folder: Path) -> Iterator[tuple[Popen[bytes], Path]]:
    """A guest that exchanges frames until it is killed: its process, and the file of its memory."""
    log = folder / "guest.log"
    log.unlink(missing_ok=True)
    process = processes.spawn([sys.executable, "-c", SCRIPT, str(socket)], log)
    try:
        wait_until(lambda: "alive" in log.read_text() or process.poll() is not None)
        assert process.poll() is None, log.read_text()
        yield process, Path(f"/proc/{process.pid}/fd/{log.read_text().split()[1]}")
    finally:
        process.kill()
        process.wait()
