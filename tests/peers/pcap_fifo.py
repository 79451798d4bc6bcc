"""A capture file without an end: DPDK's net_pcap port on FIFOs, so that a test can verify every byte.

testpmd forwards between this port and another one. What comes back is what was sent, in order; the
first frame that is not says how it differs.
"""

from __future__ import annotations

import contextlib
import io
import os
import struct
import threading
from pathlib import Path
from types import TracebackType
from typing import Self

from guestwire.testing import FrameStream

# pcap-savefile(5): little-endian, times in microseconds, version 2.4, LINKTYPE_ETHERNET.
FILE_HEADER = struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 1)
RECORD = struct.Struct("<IIII")  # seconds, microseconds, captured length, original length

BURST = 32  # frames; net_pcap waits in the middle of a burst for the rest of it
PATIENCE_SECONDS = 20.0


class PcapFifo:
    """Frames into a testpmd port and out of it, verified as they come.

    To be entered before testpmd starts, and left after it has ended: each waits for the other.

    Args:
        folder: for the two FIFOs.
        stream: the frames.
        count: how many of them; a multiple of a burst.
        window: how many may be on their way at most, a burst or more; None for as many as find room.

    Attributes:
        vdev: the port, for ``--vdev``.
    """

    def __init__(self, folder: Path, stream: FrameStream, count: int, window: int | None = None) -> None:
        assert count % BURST == 0
        assert window is None or window >= BURST
        self._in, self._out = folder / "in.pcap", folder / "out.pcap"
        self.vdev = f"net_pcap0,rx_pcap={self._in},tx_pcap={self._out}"
        self._stream, self._count = stream, count
        self._window = count if window is None else window
        self._error: BaseException | None = None
        self._arrived = threading.Condition()
        self._closing = False
        self._threads = [threading.Thread(target=body, daemon=True) for body in (self._write, self._read)]

    def _write(self) -> None:
        with contextlib.suppress(BrokenPipeError), self._in.open("wb", buffering=0) as file:
            file.write(FILE_HEADER)
            for _ in range(self._count // BURST):
                with self._arrived:
                    self._arrived.wait_for(self._may_write)
                if self._closing:
                    return
                frames = self._stream.take(BURST)
                file.write(b"".join(RECORD.pack(0, 0, len(f), len(f)) + f for f in frames))

    def _may_write(self) -> bool:
        on_their_way = self._stream.sent - self._stream.received
        return self._closing or on_their_way + BURST <= self._window

    def _read(self) -> None:
        with self._out.open("rb") as file:
            try:
                self._verify(file)
            except BaseException as error:
                self._error = error
                self._close()
            while file.read1():  # testpmd would not end if nobody read
                pass

    def _verify(self, file: io.BufferedReader) -> None:
        file.read(len(FILE_HEADER))
        pending = bytearray()
        while data := file.read1():
            pending += data
            self._accept(pending)
            with self._arrived:
                self._arrived.notify_all()
        assert not pending, "the last frame is cut off"

    def _accept(self, pending: bytearray) -> None:
        """Verify the frames of all complete records, and remove these."""
        start = 0
        while (body := start + RECORD.size) <= len(pending):
            end = body + RECORD.unpack_from(pending, start)[2]
            if end > len(pending):
                break
            self._stream.accept(pending[body:end])
            start = end
        del pending[:start]

    def _close(self) -> None:
        """Let the writer end: testpmd finds the end of its file, and can be told to stop."""
        with self._arrived:
            self._closing = True
            self._arrived.notify_all()

    def wait(self) -> None:
        """Wait until all frames have come back, as long as some come.

        Raises:
            VerificationError: a frame was changed, repeated or late.
            AssertionError: no more come.
        """
        before = -1
        while self._error is None and before < (now := self._stream.received) < self._count:
            before = now
            with self._arrived:
                self._arrived.wait_for(self._complete, PATIENCE_SECONDS)
        if self._error is not None:
            raise self._error
        if self._stream.received < self._count:
            self._close()
            raise AssertionError(f"only {self._stream.received} of {self._count} frames came back")

    def _complete(self) -> bool:
        return self._error is not None or self._stream.received >= self._count

    def __enter__(self) -> Self:
        for path in (self._in, self._out):
            os.mkfifo(path)
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._close()
        for path in (self._in, self._out):
            # A thread that still waits for testpmd to open the other end goes on, and finds it closed.
            os.close(os.open(path, os.O_RDWR | os.O_NONBLOCK))
        for thread in self._threads:
            thread.join(PATIENCE_SECONDS)
        for path in (self._in, self._out):
            path.unlink()
        if error is None and self._error is not None:
            raise self._error
