"""A demonstration without a virtual machine, a network interface or root.

The guest is `FakeGuest`; guestwire is the real one, as a process of its own, with its ``echo`` port
and then its ``pcap`` port.  Every byte of every frame is compared with what it has to be.
"""

from __future__ import annotations

import struct
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from guestwire.testing.backend import BackendProcess
from guestwire.testing.demo import DemoError, Observer
from guestwire.testing.driver import QueuePair
from guestwire.testing.fake_guest import FakeGuest
from guestwire.testing.frame_stream import FrameStream

SHORTEST_FRAME, LONGEST_FRAME = 60, 1514  # Ethernet's, without the checksum
ECHO_RUNS = ((64, 1_000_000), (LONGEST_FRAME, 200_000), ((SHORTEST_FRAME, LONGEST_FRAME), 200_000))
PCAP_FRAMES = 100_000
TIMEOUT = 120.0

# The file format of libpcap, pcap-savefile(5): magic number for microseconds, version 2.4, largest
# capture, Ethernet; before each frame its time, captured length and original length.
PCAP_HEADER = struct.pack("=IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 1)
PCAP_RECORD = struct.Struct("=IIII")


@dataclass(frozen=True)
class Run:
    """What one kind of traffic met.

    Attributes:
        work: what was done.
        sizes: shortest and longest frame, in bytes.
        frames: frames that made the journey, each compared byte by byte.
        seconds: how long it took.
        copied: of these frames, how many guestwire copied, by reason.
    """

    work: str
    sizes: tuple[int, int]
    frames: int
    seconds: float
    copied: dict[str, int]


def run(observer: Observer) -> list[Run]:
    """Send frames through guestwire, and compare every byte that comes back.

    Raises:
        GuestwireError: something is missing here, or a frame was lost or changed.
    """
    observer.step("Starting guestwire with an echo port")
    with BackendProcess("echo") as backend, FakeGuest(backend.socket_path) as guest:
        runs = [_echo(guest.pair, backend, observer, size, count) for size, count in ECHO_RUNS]
    with tempfile.TemporaryDirectory(prefix="guestwire-demo-") as folder:
        runs += _pcap(Path(folder), observer)
    return runs


def _echo(
    pair: QueuePair,
    backend: BackendProcess,
    observer: Observer,
    size: int | tuple[int, int],
    count: int,
) -> Run:
    sizes = size if isinstance(size, tuple) else (size, size)
    observer.step(f"Echoing {count:,} frames of {_words(sizes)} bytes")
    before = backend.status()
    traffic = pair.exchange(FrameStream(size), count, timeout=TIMEOUT)
    copied = _copied(before, backend.status(), "rx")
    return Run("echo", sizes, traffic.received, traffic.seconds, copied)


def _pcap(folder: Path, observer: Observer) -> list[Run]:
    sizes = (SHORTEST_FRAME, LONGEST_FRAME)
    delivered, sent = FrameStream(sizes, identifier=1), FrameStream(sizes, identifier=2)
    source, sink = folder / "in.pcap", folder / "out.pcap"
    observer.step(f"Writing a capture file of {PCAP_FRAMES:,} frames")
    with source.open("wb") as file:
        file.write(PCAP_HEADER)
        for frame in delivered.take(PCAP_FRAMES):
            file.write(PCAP_RECORD.pack(0, 0, len(frame), len(frame)) + frame)
    observer.step("Starting guestwire with a pcap port: the file is the network")
    runs = []
    with BackendProcess(f"pcap:{source},{sink}") as backend, FakeGuest(backend.socket_path) as guest:
        observer.step("Receiving the capture file in the guest")
        traffic = guest.pair.receive_stream(delivered, PCAP_FRAMES, timeout=TIMEOUT)
        after = backend.status()
        copied = dict(after["counters"]["rx"]["copied_frames"])
        runs.append(Run("from a file", sizes, traffic.received, traffic.seconds, copied))
        observer.step("Sending frames from the guest into another capture file")
        start = time.monotonic()
        traffic = guest.pair.send_stream(sent, PCAP_FRAMES, timeout=TIMEOUT)
        seconds = time.monotonic() - start
        copied = _copied(after, backend.status(), "tx")
        runs.append(Run("to a file", sizes, traffic.sent, seconds, copied))
    observer.step("Comparing that file with what was sent")
    received = FrameStream(sizes, identifier=2)
    for frame in _captured(sink):
        received.accept(frame)
    if received.received != PCAP_FRAMES:
        raise DemoError(f"{sink.name} holds {received.received:,} frames, not {PCAP_FRAMES:,}")
    return runs


def _captured(file: Path) -> Iterator[bytes]:
    """The frames in a capture file."""
    content = memoryview(file.read_bytes())
    position = len(PCAP_HEADER)
    while position < len(content):
        _, _, length, _ = PCAP_RECORD.unpack_from(content, position)
        position += PCAP_RECORD.size
        yield bytes(content[position : position + length])
        position += length


def _copied(before: dict[str, Any], after: dict[str, Any], way: str) -> dict[str, int]:
    old, new = (status["counters"][way]["copied_frames"] for status in (before, after))
    return {why: count - old.get(why, 0) for why, count in new.items() if count > old.get(why, 0)}


def _words(sizes: tuple[int, int]) -> str:
    return f"{sizes[0]}" if sizes[0] == sizes[1] else f"{sizes[0]} to {sizes[1]}"
